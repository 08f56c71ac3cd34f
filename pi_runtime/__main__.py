"""``python -m pi_runtime``, the same as ``pi-pipeline``; torchrun takes it as ``-m pi_runtime``."""

from pi_runtime.cli.main import main

main()
