"""The ranks of torchrun: candidates of a search are spread over them, and the first one decides what is written.

What passes between ranks are numbers and tensors of a fixed layout; nothing is unpickled. A rank that waits for another
one learns of its end: gloo notices closed connections, and torchrun ends all ranks when one has failed.
"""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn

from linearize.errors import ConfigError, RankError
from linearize.progress import Reporter
from linearize.stage import SavedState, StageContext
from linearize.torchrun import local_rank, was_started_by_torchrun, world_size

T = TypeVar("T")
_DONE = b"done"

# Ranks wait for the first one while it finetunes; the default of gloo, half an hour, is too short for that.
_TIMEOUT = timedelta(days=7)


@dataclass(frozen=True)
class Ranks:
    """This process among `world` of them. device: where tensors lie that are exchanged."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.rank == 0

    def gather(self, row: Sequence[float]) -> list[list[float]]:
        """Every rank's row of equal length, in order; exact for integers below 2**53."""
        if self.world == 1:
            return [list(row)]
        own = torch.tensor(row, dtype=torch.float64, device=self.device)
        rows = [torch.empty_like(own) for _ in range(self.world)]
        with _reaching():
            dist.all_gather(rows, own)
        return [other.tolist() for other in rows]

    def broadcast(self, tensor: Tensor, source: int = 0) -> Tensor:
        """The tensor of one rank, on its own device; others give one of the same shape and dtype."""
        if self.world == 1:
            return tensor
        moved = tensor.detach().to(self.device).contiguous().clone()
        with _reaching():
            dist.broadcast(moved, source)
        return moved.to(tensor.device)

    def broadcast_bytes(self, content: bytes) -> bytes:
        """The first rank's bytes."""
        if self.world == 1:
            return content
        size = self.broadcast(torch.tensor([len(content)]))
        buffer = torch.zeros(int(size), dtype=torch.uint8)
        if self.first:
            buffer = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        return bytes(self.broadcast(buffer).cpu().numpy())

    def agree(self, value: bool) -> bool:
        """The first rank's value."""
        return bool(self.broadcast(torch.tensor([value], dtype=torch.uint8)))

    def first_alone(self, work: Callable[[], T]) -> T | None:
        """Have the first rank do some work while the others wait: its result there, None on the others.

        Raises what the work raises there, and RankError on the others.
        """
        if self.world == 1:
            return work()
        if not self.first:
            answer = self.broadcast_bytes(b"")
            if answer != _DONE:
                raise RankError(f"the first rank of this torchrun job stopped: {answer.decode()}")
            return None
        try:
            result = work()
        except Exception as error:
            with suppress(RankError):
                self.broadcast_bytes(f"{type(error).__name__}: {error}".encode())
            raise
        self.broadcast_bytes(_DONE)
        return result

    @torch.no_grad()
    def share_model(self, model: nn.Module) -> None:
        """Make every rank's network the first one's, in place."""
        if self.world > 1:
            for tensor in model.state_dict().values():
                tensor.copy_(self.broadcast(tensor))


@contextmanager
def open_ranks(device: torch.device) -> Iterator[Ranks]:
    """The ranks that torchrun started, connected by gloo (CPU) or nccl (CUDA); one rank where it started none.

    Raises ConfigError if more ranks than CUDA devices share a machine.
    """
    world = world_size()
    if world == 1:
        yield Ranks()
        return
    if device.type == "cuda":
        local = local_rank()
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f"torchrun must start at most {torch.cuda.device_count()} processes here (CUDA devices), got more; "
                "lower --nproc-per-node or set device to cpu"
            )
        torch.cuda.set_device(local)
        device = torch.device("cuda", local)
    with _ending_with_torchrun():
        with _reaching():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)
        try:
            yield Ranks(dist.get_rank(), world, device)
        finally:
            dist.destroy_process_group()


@contextmanager
def _reaching() -> Iterator[None]:
    """Turn what gloo and nccl raise into RankError."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise RankError(
            f"another rank of this torchrun job ended or is out of reach ({reason}); the same command goes on from here"
        ) from error


@contextmanager
def _ending_with_torchrun() -> Iterator[None]:
    """End this process when torchrun is killed: alone it would go on unseen and hold the run directory."""
    agent, over = os.getppid(), threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            if os.getppid() != agent:
                os.kill(os.getpid(), signal.SIGTERM)

    if was_started_by_torchrun():
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


class SharedState(SavedState):
    """A saved state that the first rank reads and writes, and that all ranks load the same; all must call together."""

    def __init__(self, path: Path, context: StageContext, ranks: Ranks) -> None:
        super().__init__(path, context.meter)
        self._ranks = ranks

    def save(self, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
        if self._ranks.first:
            super().save(tensors, document)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        found = super().load() if self._ranks.first else None
        return found if self._ranks.world == 1 else _unpack(self._ranks.broadcast_bytes(_pack(found)))

    def clear(self) -> None:
        if self._ranks.first:
            super().clear()


@dataclass(frozen=True)
class SharedContext(StageContext):
    """A stage's context on all ranks at once: its states are shared, and only the first rank reports progress."""

    ranks: Ranks = field(default_factory=Ranks)

    def state(self, name: str) -> SavedState:
        return SharedState(self.state_dir / f"{name}.safetensors", self, self.ranks)


def share_context(context: StageContext, ranks: Ranks) -> SharedContext:
    """The context as every rank uses it."""
    values = {entry.name: getattr(context, entry.name) for entry in fields(StageContext)}
    if not ranks.first:
        values["reporter"] = Reporter(quiet=True)
    return SharedContext(**values, ranks=ranks)


def _pack(state: tuple[dict[str, Tensor], dict[str, Any]] | None) -> bytes:
    """A byte (0: no state, 1: one follows), 8 bytes of length, the document as JSON, the tensors as safetensors."""
    if state is None:
        return b"\0"
    document = json.dumps(state[1]).encode()
    tensors: bytes = safetensors.torch.save(state[0])
    return b"\1" + len(document).to_bytes(8, "little") + document + tensors


def _unpack(content: bytes) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    if content == b"\0":
        return None
    end = 9 + int.from_bytes(content[1:9], "little")
    return safetensors.torch.load(content[end:]), json.loads(content[9:end])
