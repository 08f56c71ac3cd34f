"""One directory a run: its files' names, its lock, and the config it was started with."""

import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch

from linearize.config import RunConfig, dump_config, flatten, load_config
from linearize.errors import ConfigError
from linearize.files import remove_leftovers, write_atomic


class RunDir:
    """Paths of a run's files: the networks of reference and search are named after what made them."""

    def __init__(self, root: Path, method: str = "bcd", reference: str = "snl") -> None:
        self.root = root
        self.config = root / "config.yaml"
        self.baseline = root / "baseline.safetensors"
        self.reference = root / f"{reference}.safetensors"
        self.searched = root / f"{method}.safetensors"
        self.linearized = root / "linearized.safetensors"
        self.bcd_log = root / "bcd.jsonl"
        self.acceptance = root / "acceptance.png"
        self.state = root / "state"
        self.lock = root / ".lock"
        self.written = (
            self.config,
            self.baseline,
            self.reference,
            self.searched,
            self.linearized,
            self.bcd_log,
            self.acceptance,
            self.state / "*",
            self.state / "*" / "*",
        )


@contextmanager
def open_run(root: Path, config: RunConfig) -> Iterator[RunDir]:
    """Make or enter a run directory, hold its lock, and fix its config.

    Raises ConfigError if it cannot be written, another process works in it, or it was started with another config (the
    differing keys are named).
    """
    run = RunDir(root, config.method, config.reference)
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = os.open(run.lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ConfigError(
            f"run directory {root}: not writable ({error.strerror}); name another or change its permissions"
        ) from None
    try:
        try:
            # The system releases the lock when the process ends, however it ends.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"run directory {root}: another process works in it; wait for it or name another"
            ) from None
        for path in run.written:
            remove_leftovers(path)
        _fix_config(run, config)
        yield run
    finally:
        os.close(lock)


def _fix_config(run: RunDir, config: RunConfig) -> None:
    if not run.config.exists():
        write_atomic(run.config, f"{_environment()}{dump_config(config)}".encode())
        return
    before = dict(flatten(load_config(run.config).model_dump()))
    after = dict(flatten(config.model_dump()))
    changes = [f"{key} was {before[key]}, now {after[key]}" for key in after if before[key] != after[key]]
    if changes:
        raise ConfigError(
            f"run directory {run.root} belongs to another config ({'; '.join(changes)}); name another directory"
        )


def _environment() -> str:
    packages = ("pi-pipeline", "torch", "torchvision", "numpy")
    lines = [f"{package} {version(package)}" for package in packages]
    lines += [f"python {platform.python_version()}", f"machine {platform.machine()}, {os.cpu_count()} CPUs"]
    lines.append(f"threads {torch.get_num_threads()}, CUDA {'present' if torch.cuda.is_available() else 'absent'}")
    return "".join(f"# {line}\n" for line in lines)
