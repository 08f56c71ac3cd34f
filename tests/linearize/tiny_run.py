"""A whole linearization in a second or two, alone or killed again and again; run as a script by test_resume.

    python tiny_run.py RUN_DIR CONFIG_JSON [SURVIVE]

Without SURVIVE: one undisturbed run. With it: the run is started in a forked process that kills itself (SIGKILL) at its
write number SURVIVE + 1, half of the bytes written, and is started again the same way until one gets through; prints
the files at which it was killed as a JSON list.
"""

import importlib
import json
import os
import signal
import sys
from pathlib import Path

import torch

from linearize import files
from linearize.config import load_config
from linearize.data import load_dataset
from linearize.progress import Reporter
from linearize.run import run_linearization


def run(root: Path, overrides: dict[str, object]) -> None:
    run_linearization(load_config(None, overrides), root, Reporter(quiet=True))


def die_at_write(survive: int, last_words: int) -> None:
    """Patch the atomic writer so that this process is killed in the middle of a write."""
    write, count = files.write_atomic, 0

    def write_or_die(path: Path, content: bytes) -> None:
        nonlocal count
        count += 1
        if count > survive:
            path.with_name(f".{path.name}.{os.getpid()}.tmp").write_bytes(content[: len(content) // 2])
            os.write(last_words, path.name.encode())
            os.kill(os.getpid(), signal.SIGKILL)
        write(path, content)

    for module in list(sys.modules.values()):
        if getattr(module, "write_atomic", None) is write:
            module.write_atomic = write_or_die


def run_until_done(root: Path, overrides: dict[str, object], survive: int) -> list[str]:
    killed_at = []
    for _ in range(200):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            die_at_write(survive, writer)
            run(root, overrides)
            os._exit(0)
        os.close(writer)
        _, status = os.waitpid(child, 0)
        name = os.read(reader, 1000).decode()
        os.close(reader)
        if status == 0:
            return killed_at
        if os.WTERMSIG(status) != signal.SIGKILL:
            raise SystemExit(f"the run failed instead of being killed: status {status}")
        killed_at.append(name)
    raise SystemExit("no progress between kills")


if __name__ == "__main__":
    # Before any work, so that forked processes inherit no thread pool.
    torch.set_num_threads(1)
    root, overrides = Path(sys.argv[1]), json.loads(sys.argv[2])
    if len(sys.argv) == 3:
        run(root, overrides)
    else:
        # What every forked process would import anew.
        importlib.import_module("torch._dynamo")
        load_dataset(load_config(None, overrides).data, Reporter(quiet=True))
        print(json.dumps(run_until_done(root, overrides, int(sys.argv[3]))))
