"""The Python that SPU lives in. SPU 0.9.5 needs numpy 1 and Python 3.10 or 3.11, and this package needs numpy 2.

So SPU has an environment of its own, and ``PI_SPU_PYTHON`` names its interpreter. The processes of the parties run
under it; of this package they load only what needs neither torch nor onnx.
"""

from __future__ import annotations

import json
import os
import subprocess
from functools import cache
from pathlib import Path

from pi_runtime.errors import BackendError

VARIABLE = "PI_SPU_PYTHON"
PINS = {"spu": "0.9.5", "jax": "0.4.34", "jaxlib": "0.4.34", "numpy": "1.26.4"}
"""What the backends were made and measured with. SPU's link log, where rounds are read, is of this version."""

_RECIPE = (
    "make it and name it: python3.11 -m venv spu-env"
    f" && spu-env/bin/pip install {' '.join(f'{name}=={version}' for name, version in PINS.items())}"
    f' && export {VARIABLE}="$PWD/spu-env/bin/python"'
)
_PROBE_S = 60.0
_PROBE = """
import json
from importlib import metadata
found = {}
for name in NAMES:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def spu_interpreter() -> str:
    """The path of SPU's Python, whose packages were looked at.

    Raises:
        BackendError: it is not named, does not run, or has not the packages; with what to do.
    """
    python = os.environ.get(VARIABLE, "")
    if not python:
        raise BackendError(f"SPU needs an environment of its own, and {VARIABLE} does not name its Python; {_RECIPE}")
    found = _versions(python)
    for name, version in PINS.items():
        if found.get(name) != version:
            raise BackendError(
                f"{VARIABLE} must name a Python with {name} {version}, got {python} with"
                f" {found.get(name, 'none')}; {_RECIPE}"
            )
    return python


def party_command() -> tuple[str, ...]:
    """What runs a module of this package under SPU's Python, for :class:`pi_runtime.child.process.Process`.

    Raises:
        BackendError: as :func:`spu_interpreter`.
    """
    return (spu_interpreter(), "-I", str(Path(__file__).with_name("bootstrap.py")))


@cache
def _versions(python: str) -> dict[str, str]:
    """Versions of the packages of ``PINS`` that ``python`` has."""
    code = _PROBE.replace("NAMES", repr(tuple(PINS)))
    try:
        done = subprocess.run(
            [python, "-I", "-c", code], capture_output=True, text=True, timeout=_PROBE_S, check=True, close_fds=True
        )
        found = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise BackendError(f"{VARIABLE} must name a Python, got {python!r} ({error}); {_RECIPE}") from error
    return {str(name): str(version) for name, version in found.items()}
