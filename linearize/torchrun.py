"""What torchrun tells each process of its job by environment variables. Imports nothing heavy."""

import os


def world_size() -> int:
    """Processes of the job; 1 where torchrun started none."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the process that writes files and answers; true without torchrun."""
    return world_size() == 1 or int(os.environ.get("RANK", "0")) == 0


def local_rank() -> int:
    """The number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def was_started_by_torchrun() -> bool:
    """Whether the parent process is torchrun's agent, and not a launcher that sets the same variables."""
    return "TORCHELASTIC_RUN_ID" in os.environ
