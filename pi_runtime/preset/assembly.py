"""How the server's part of a bundle comes together from two sides that know nothing of each other's progress.

The client announces a bundle and streams b_l of each linear layer; the dealer delivers a_l and the gates' material on
another connection. Each side's thread puts its parts into one mapped file, in any interleaving; the linear share is
whole once both have come.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import BinaryIO

import numpy as np

from pi_runtime.errors import LocalProtocolError
from pi_runtime.net.messages import ErrorCode
from pi_runtime.preset.bundle import BundleLayout, load_linear_part
from pi_runtime.preset.model import ServedModel
from pi_runtime.preset.offline import server_share
from pi_runtime.preset.program import Step
from pi_runtime.preset.service import RefusedRequest
from pi_runtime.preset.store import BundleStore
from pi_runtime.preset.store_marks import TooManyBundlesError
from pi_runtime.primitives.ring import I64


class PendingBundle:
    """A bundle that is being filled; both sides' threads use it."""

    def __init__(self, model: ServedModel, layout: BundleLayout, owner: str, file: BinaryIO) -> None:
        self.batch = layout.batch
        self.owner = owner
        self._model = model
        self._layout = layout
        file.truncate(layout.total_bytes)
        self._map = mmap.mmap(file.fileno(), layout.total_bytes)
        self._changed = threading.Condition()
        self._halves: set[int] = set()  # linear steps that one side has delivered
        self._sides = {"client", "provider"}  # that have not delivered everything
        self._failure = ""

    def add_linear(self, step: Step, part: I64) -> None:
        """Adds one side's share of a linear step, int64 [B, *shape]; each side calls it once a step."""
        stored = self._linear(step)
        with self._changed:
            if step.index in self._halves:
                stored[:] = server_share(step, self._model.weights, stored, part)
            else:
                stored[:] = part
                self._halves.add(step.index)

    def gate_view(self, step: Step) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        """Where the material of a gate step belongs: uint8, of the size of its part."""
        part = self._layout.parts[step.index]
        return np.frombuffer(self._map, np.uint8, part.size, part.offset)

    def delivered(self, side: str) -> None:
        """Says that ``side`` (``client`` or ``provider``) has delivered all its parts."""
        with self._changed:
            self._sides.discard(side)
            self._changed.notify_all()

    @property
    def awaits_provider(self) -> bool:
        """Whether the provider's part has yet to come; it is taken once, since what is stored may be in use."""
        return "provider" in self._sides

    def fail(self, reason: str) -> None:
        """Says that the bundle will never be whole."""
        with self._changed:
            self._failure = reason
            self._changed.notify_all()

    def wait(self, within_s: float) -> None:
        """Waits until both sides have delivered everything.

        Raises:
            RefusedRequest: one failed, or it takes too long.
        """
        with self._changed:
            done = self._changed.wait_for(lambda: not self._sides or self._failure, within_s)
            if self._failure:
                raise RefusedRequest(ErrorCode.BUSY, self._failure)
            if not done:
                raise RefusedRequest(ErrorCode.BUSY, "the dealer's material did not come in time; try again")
        self._map.flush()

    def _linear(self, step: Step) -> I64:
        part = self._layout.parts[step.index]
        return load_linear_part(step, self.batch, memoryview(self._map)[part.offset : part.offset + part.size])


class Assembly:
    """The bundles in the making; a client may have ``max_unspent`` of the model, those included."""

    def __init__(self, model: ServedModel, store: BundleStore, *, max_unspent: int) -> None:
        self._max_unspent = max_unspent
        self._model = model
        self._store = store
        self._lock = threading.Lock()
        self._pending: dict[str, PendingBundle] = {}

    @contextmanager
    def collecting(self, bundle_id: str, batch: int, owner: str) -> Iterator[PendingBundle]:
        """A bundle to be filled inside the block; it is in the store, durably, when the block has ended well.

        Raises:
            RefusedRequest: the id was used before, or ``owner`` has too many bundles.
        """
        model = self._model.public
        layout = BundleLayout(model.program, batch)
        adding = self._store.adding(bundle_id, batch=batch, owner=owner, max_unspent=self._max_unspent, **model.fields)
        with ExitStack() as stack:
            try:
                file = stack.enter_context(adding)
            except TooManyBundlesError as error:
                raise RefusedRequest(ErrorCode.BUSY, str(error)) from error
            except LocalProtocolError as error:
                raise RefusedRequest(ErrorCode.BUNDLE, str(error)) from error
            pending = PendingBundle(self._model, layout, owner, file)
            with self._lock:
                self._pending[bundle_id] = pending
            try:
                yield pending
            finally:
                with self._lock:
                    del self._pending[bundle_id]

    def find(self, bundle_id: str, batch: int, owner: str) -> PendingBundle | None:
        """The bundle that ``owner`` announced under this id, while it awaits its provider; None if there is none."""
        with self._lock:
            pending = self._pending.get(bundle_id)
        if pending is None or (pending.owner, pending.batch) != (owner, batch):
            return None
        return pending if pending.awaits_provider else None
