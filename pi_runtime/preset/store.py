"""The store of bundles: one file of material a bundle, beside the marks of :mod:`pi_runtime.preset.store_marks`.

A mark only moves forward, from reserved to ready to spent, and a spent id can never be added, opened or handed out
again; its row stays for ever. :meth:`BundleStore.spend` returns when the mark is on disk; the rule that makes a bundle
one-time is the caller's: **spend before the first byte that depends on the material leaves this machine**.

Exclusion. Who holds a :class:`Lease` has the material's file locked (``flock``), so no two processes or threads take
the same bundle; the lock goes with the process that held it. Even without the lock only one caller's ``spend``
succeeds, because the mark is moved in one transaction.

Erasing. Spent material is unlinked at once and its directory flushed. It is *not* overwritten: on SSDs and on journals
that write elsewhere this would promise what it cannot keep. Keep a store on an encrypted disk if old material matters.

Rollback. A store that was restored from a backup, or a machine from a snapshot, cannot know what it forgot; nothing on
the same disk can tell it. What protects is the other party, whose store was not rolled back and refuses the bundle. Two
easy cases are noticed here. A *copy* is refused on opening. And a database restored without its material finds no file
and marks the bundle spent. Not noticed: a database and material both overwritten in place by older contents, and a
snapshot of the whole disk.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pi_runtime.closing import Closing
from pi_runtime.errors import ConfigError, LocalProtocolError
from pi_runtime.preset.store_marks import Bundle, Marks, is_bundle_id

log = logging.getLogger("pi_runtime.preset")

_SUFFIXES = (".part", ".material")


class Lease(Closing):
    """A ready bundle that nobody else can take until :meth:`close`.

    The material stays readable through the lease after the bundle was spent and its file unlinked. A bundle that was
    let go of unspent is ready again.
    """

    def __init__(self, bundle: Bundle, file: BinaryIO) -> None:
        self.bundle = bundle
        self._file = file

    def map(self) -> mmap.mmap:
        """The material, mapped read-only; stays valid after :meth:`close`, and goes when nothing refers to it."""
        return mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)

    def close(self) -> None:
        if not self._file.closed:
            fcntl.flock(self._file, fcntl.LOCK_UN)  # a map would keep the lock
            self._file.close()


class BundleStore(Closing):
    """The bundles of one party in a directory. Many threads and processes may share it; open it anew after a fork.

    Every method raises ConfigError when the database is damaged or the disk fails. Leases outlive :meth:`close`.
    """

    def __init__(self, directory: Path, role: str) -> None:
        """Opens the store in ``directory``, or makes one for ``role``, and clears what a killed process left behind.

        Raises:
            ConfigError: not a directory that can be written, a store of another role, a copy of a store, or damaged.
        """
        self.directory = directory
        self.role = role
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigError(f"cannot write the store {directory}: {error.strerror}; choose another place") from error
        with self._told():
            self._marks = Marks(directory / "bundles.sqlite3", role)
            try:
                self._sweep()
            except BaseException:
                self._marks.close()
                raise

    @contextmanager
    def adding(
        self,
        bundle_id: str,
        *,
        model_id: str,
        graph_hash: str,
        batch: int,
        owner: str,
        server: str = "",
        max_unspent: int | None = None,
    ) -> Iterator[BinaryIO]:
        """Yields a file to write the material to; when the block ends well the bundle is whole, on disk and ready.

        The id is taken from the beginning. If the block raises, or the process dies in it, the id is spent.
        server: which server a client makes it with, see :meth:`retire`. max_unspent: bundles of this model that the
        owner may have here unspent, this one and those being made included.

        Raises:
            LocalProtocolError: the id is malformed or was ever added here, or no byte was written.
            TooManyBundlesError: the owner has ``max_unspent`` already.
        """
        part = self._path(bundle_id, ".part")
        with self._told(), ExitStack() as stack:
            with self._marks.transaction():
                self._marks.reserve(
                    Bundle(bundle_id, model_id, graph_hash, batch, owner, server), max_unspent=max_unspent
                )
                descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
                file = stack.enter_context(os.fdopen(descriptor, "w+b"))
                # The lock tells the sweep of another process that the writer of this bundle is alive.
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield file
                file.flush()
                self._finish(bundle_id, file, part)
                # Now, not with the descriptor: a map of the file that somebody still refers to would keep the lock.
                fcntl.flock(file, fcntl.LOCK_UN)
            except BaseException:
                with self._marks.transaction():
                    self._marks.mark_spent(bundle_id)
                self._erase(bundle_id)
                raise

    def add(
        self,
        bundle_id: str,
        write: Callable[[BinaryIO], object],
        *,
        model_id: str,
        graph_hash: str,
        batch: int,
        owner: str,
    ) -> None:
        """As :meth:`adding`, with a function that writes the material."""
        with self.adding(bundle_id, model_id=model_id, graph_hash=graph_hash, batch=batch, owner=owner) as file:
            write(file)

    def next_ready(self, *, owner: str, model_id: str, graph_hash: str, batch: int) -> Lease | None:
        """A lease of the oldest ready bundle of this owner and kind that nobody holds; None if there is none."""
        after = -1
        while True:
            with self._told():
                found = self._marks.ready_after(
                    after, owner=owner, model_id=model_id, graph_hash=graph_hash, batch=batch
                )
            if found is None:
                return None
            after, bundle_id = found
            with suppress(LocalProtocolError):
                return self.open_material(bundle_id)

    def open_material(self, bundle_id: str) -> Lease:
        """A lease of the bundle ``bundle_id``.

        Raises:
            LocalProtocolError: it is unknown, not whole, spent, or held by another; or its file is gone or of another
                length than was written, and then it is spent now, so that it stands in nobody's way.
        """
        path = self._path(bundle_id, ".material")
        with self._told(), ExitStack() as stack:
            try:
                file = stack.enter_context(path.open("rb"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except FileNotFoundError:
                file = None
            except BlockingIOError:
                raise LocalProtocolError(f"bundle {bundle_id} is in use by another process or thread") from None
            # Looked up under the file's lock: it may have been spent between opening and locking.
            bundle = self._marks.require_ready(bundle_id)
            if file is None and path.exists():
                raise LocalProtocolError(f"bundle {bundle_id} was not whole yet; try again")
            if file is None or os.fstat(file.fileno()).st_size != bundle.material_bytes:
                self.spend(bundle_id)
                fault = "gone" if file is None else f"damaged: it must have {bundle.material_bytes:,} bytes"
                log.warning("a bundle is spent unused: its material is %s", fault)
                raise LocalProtocolError(f"the material of bundle {bundle_id} is {fault}; make new bundles")
            stack.pop_all()
            return Lease(bundle, file)

    def spend(self, bundle_id: str) -> Bundle:
        """Marks a ready bundle as spent, durably, then erases its material; returns what it was.

        Of several callers, in whatever processes, exactly one succeeds.

        Raises:
            LocalProtocolError: it is unknown, not whole, or spent already.
        """
        with self._told():
            with self._marks.transaction():
                bundle = self._marks.spend_ready(bundle_id)
            self._erase(bundle_id)
        return bundle

    def retire(self, server: str = "", *, model_id: str, graph_hash: str) -> int:
        """Spends the bundles made with ``server`` for any model but this one, which it serves now; returns how many.

        They can never be used: a server serves one model, and one that comes back gets a new id. Bundles that somebody
        has a lease of are left to their holder.
        """
        with self._told():
            with self._marks.transaction():
                outdated = self._marks.outdated(server, model_id=model_id, graph_hash=graph_hash)
                retired = [bundle_id for bundle_id in outdated if not self._is_held(bundle_id)]
                for bundle_id in retired:
                    self._marks.mark_spent(bundle_id)
            self._erase(*retired)
        if retired:
            log.info("%d bundles of models that are served no more were erased", len(retired))
        return len(retired)

    def count_ready(self, *, owner: str, model_id: str, graph_hash: str, batch: int) -> int:
        """How many bundles of this owner and kind are ready, held ones included."""
        with self._told():
            return self._marks.count_ready(owner=owner, model_id=model_id, graph_hash=graph_hash, batch=batch)

    def counts(self) -> dict[str, int]:
        """How many bundles there are in each state."""
        with self._told():
            return self._marks.counts()

    def close(self) -> None:
        self._marks.close()

    # The inside

    def _sweep(self) -> None:
        """Spends what a killed process left half-written and what lost its material; erases spent material."""
        with self._marks.transaction():
            alive, lost = set(), 0
            for bundle_id, state in self._marks.unspent():
                if self._path(bundle_id, ".material").exists() if state == "ready" else self._is_held(bundle_id):
                    alive.add(bundle_id)
                else:
                    self._marks.mark_spent(bundle_id)
                    lost += 1
            for path in self.directory.iterdir():
                if path.suffix in _SUFFIXES and is_bundle_id(path.stem) and path.stem not in alive:
                    path.unlink(missing_ok=True)
            self._flush_directory()
        if lost:
            log.info("%d bundles that were half made or lost their material are spent", lost)

    def _is_held(self, bundle_id: str) -> bool:
        """Whether a living process or thread is writing the material of a bundle, or has a lease of it."""
        for suffix in _SUFFIXES:
            with suppress(FileNotFoundError), self._path(bundle_id, suffix).open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return True
        return False

    def _finish(self, bundle_id: str, file: BinaryIO, part: Path) -> None:
        size = os.fstat(file.fileno()).st_size
        if not size:
            raise LocalProtocolError(f"bundle {bundle_id} has no material; write it before the block ends")
        os.fsync(file.fileno())
        part.rename(self._path(bundle_id, ".material"))
        self._flush_directory()
        with self._marks.transaction():
            self._marks.make_ready(bundle_id, size)

    def _erase(self, *bundle_ids: str) -> None:
        for bundle_id in bundle_ids:
            for suffix in _SUFFIXES:
                self._path(bundle_id, suffix).unlink(missing_ok=True)
        self._flush_directory()

    def _path(self, bundle_id: str, suffix: str) -> Path:
        if not is_bundle_id(bundle_id):
            raise LocalProtocolError("a bundle id must be 32 lower-case hex digits")
        return self.directory / (bundle_id + suffix)

    def _flush_directory(self) -> None:
        descriptor = os.open(self.directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turns failures of the database and the disk into one clear line."""
        try:
            yield
        except sqlite3.Error as error:
            raise ConfigError(f"the store {self.directory} is damaged or cannot be used: {error}") from error
        except OSError as error:
            raise ConfigError(f"the store {self.directory} cannot be used: {error.strerror or error}") from error
