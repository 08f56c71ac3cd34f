"""Where a measurement was made: processor, memory, system, versions. No host and no user name."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from benchmarks.schema import Environment

PACKAGES = ("pi-pipeline", "torch", "onnx", "onnxruntime", "numpy", "crypten")


def describe_environment(threads: int) -> Environment:
    """Describes this machine; ``threads`` is how many threads each party was allowed."""
    return Environment(
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=_memory_bytes(),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        packages=_package_versions(),
        threads=threads,
        commit=_commit(),
    )


def cpu_text(cpuinfo: str) -> str | None:
    """The processor of ``/proc/cpuinfo``: its name, and in brackets family and model, where they are told.

    Machines for rent call processors of several generations by one name.
    """
    facts: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    name = facts.get("model name") or facts.get("Model")
    known = [f"{key.removeprefix('cpu ')} {facts[key]}" for key in ("cpu family", "model") if facts.get(key)]
    return f"{name} ({', '.join(known)})" if name and known else name


def _cpu() -> str:
    """The processor, and what torch finds that it can: AVX2 and AVX512 make a library several times as fast."""
    try:
        text = cpu_text(Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        text = None
    return f"{text or platform.processor() or platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0


def _package_versions() -> dict[str, str]:
    versions: dict[str, str] = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _commit() -> str | None:
    """The commit of the checkout that this file belongs to, with ``+`` where files differ from it; None outside one."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD").strip()
        changed = _git(root, "status", "--porcelain", "--untracked-files=no").strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True, timeout=10
    ).stdout
