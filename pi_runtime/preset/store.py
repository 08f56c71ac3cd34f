"""The store of bundles: one file of material a bundle, and SQLite for the marks that make each bundle one-time.

States. ``reserved``: the id is taken, its material is being written. ``ready``: whole and on disk. ``spent``: used, or
lost while it was written. A mark only moves forward, and a spent id can never be added, opened or handed out again; its
row stays for ever. :meth:`BundleStore.spend` returns when the mark is on disk; the rule that makes a bundle one-time
is the caller's: **spend before the first byte that depends on the material leaves this machine**.

Durability. SQLite runs with a rollback journal and ``synchronous=EXTRA``: a commit returns after the database, the
journal's removal and the directory are flushed. WAL would save a flush, but the marks of the last commits would then
lie in a second file, and whoever copies or restores the database without it would bring spent bundles back.

Exclusion. Who holds a :class:`Lease` has the material's file locked (``flock``), so no two processes or threads take
the same bundle; the lock goes with the process that held it. Even without the lock only one caller's ``spend``
succeeds, because the mark is moved in one transaction.

Erasing. Spent material is unlinked at once and its directory flushed. It is *not* overwritten: on SSDs and on journals
that write elsewhere this would promise what it cannot keep. Keep a store on an encrypted disk if old material matters.

Rollback. A store that was restored from a backup, or a machine from a snapshot, cannot know what it forgot; nothing on
the same disk can tell it. What protects is the other party, whose store was not rolled back and refuses the bundle. Two
easy cases are noticed here. A *copy* (another directory, a restored tree) is refused on opening, since the database
remembers its own inode. And a database restored without its material finds no file and marks the bundle spent. Not
noticed: a database and material both overwritten in place by older contents, and a snapshot of the whole disk.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from pi_runtime.errors import ConfigError, LocalProtocolError

_APPLICATION_ID = 0x70496273  # "pIbs"
_SCHEMA_VERSION = 1
_BUSY_S = 60.0
_HEX_ID = re.compile(r"[0-9a-f]{32}")
_SUFFIXES = (".part", ".material")
_COLUMNS = "bundle_id, model_id, graph_hash, batch, owner, material_bytes"
_SCHEMA = (
    "CREATE TABLE store (role TEXT NOT NULL, inode TEXT NOT NULL)",
    "CREATE TABLE bundles (sequence INTEGER PRIMARY KEY AUTOINCREMENT, bundle_id TEXT NOT NULL UNIQUE,"
    " model_id TEXT NOT NULL, graph_hash TEXT NOT NULL, batch INTEGER NOT NULL, owner TEXT NOT NULL,"
    " material_bytes INTEGER NOT NULL, state TEXT NOT NULL CHECK (state IN ('reserved', 'ready', 'spent')))",
    "CREATE INDEX by_model ON bundles (model_id, graph_hash, batch, sequence) WHERE state = 'ready'",
    "CREATE TRIGGER forward BEFORE UPDATE OF state ON bundles"
    " WHEN OLD.state = 'spent' OR NEW.state = 'reserved'"
    " BEGIN SELECT RAISE(ABORT, 'a mark only moves forward'); END",
    "CREATE TRIGGER forever BEFORE DELETE ON bundles BEGIN SELECT RAISE(ABORT, 'a mark is never deleted'); END",
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {_SCHEMA_VERSION}",
)
_INODE_GENERATION = 0x80087601  # FS_IOC_GETVERSION of Linux: tells a new file from an old one with the same number


@dataclass(frozen=True)
class Bundle:
    """What a store knows of a bundle beside its material.

    bundle_id, model_id: 32 hex digits. graph_hash: 64. batch: images. owner: name of the client that may use it.
    material_bytes: length of the material.
    """

    bundle_id: str
    model_id: str
    graph_hash: str
    batch: int
    owner: str
    material_bytes: int


class Lease:
    """A ready bundle that nobody else can take until :meth:`close`; a context manager.

    The material stays readable through the lease after the bundle was spent and its file unlinked.
    """

    def __init__(self, bundle: Bundle, file: BinaryIO) -> None:
        self.bundle = bundle
        self._file = file

    def map(self) -> mmap.mmap:
        """The material, mapped read-only; stays valid after :meth:`close`, and goes when nothing refers to it."""
        return mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)

    def close(self) -> None:
        """Lets go of the bundle; it is ready again unless it was spent. Safe to call twice."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class BundleStore:
    """The bundles of one party in a directory. Many threads and processes may share it; open it anew after a fork.

    Every method raises ConfigError when the database is damaged or the disk fails.
    """

    def __init__(self, directory: Path, role: str) -> None:
        """Opens the store in ``directory``, or makes one for ``role``, and clears what a killed process left behind.

        Raises:
            ConfigError: not a directory that can be written, a store of another role, a copy of a store, or damaged.
        """
        self.directory = directory
        self.role = role
        self._lock = threading.Lock()
        self._database_path = directory / "bundles.sqlite3"
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(self._database_path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            raise ConfigError(f"cannot write the store {directory}: {error.strerror}; choose another place") from error
        with self._told():
            self._database = sqlite3.connect(
                self._database_path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
            )
            try:
                self._open()
                self._sweep()
            except BaseException:
                self._database.close()
                raise

    @contextmanager
    def adding(self, bundle_id: str, *, model_id: str, graph_hash: str, batch: int, owner: str) -> Iterator[BinaryIO]:
        """Yields a file to write the material to; when the block ends well the bundle is whole, on disk and ready.

        The id is taken from the beginning. If the block raises, or the process dies in it, the id is spent.

        Raises:
            LocalProtocolError: the id is malformed or was ever added here, or no byte was written.
        """
        part = self._path(bundle_id, ".part")
        with self._told(), ExitStack() as stack:
            with self._transaction():
                if self._lookup(bundle_id):
                    raise LocalProtocolError(f"bundle {bundle_id} was added before; an id is used once")
                descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
                file = stack.enter_context(os.fdopen(descriptor, "w+b"))
                # The lock tells the sweep of another process that the writer of this bundle is alive.
                fcntl.flock(file, fcntl.LOCK_EX)
                self._database.execute(
                    f"INSERT INTO bundles ({_COLUMNS}, state) VALUES (?, ?, ?, ?, ?, 0, 'reserved')",
                    (bundle_id, model_id, graph_hash, batch, owner),
                )
            try:
                yield file
                file.flush()
                self._finish(bundle_id, file, part)
            except BaseException:
                with self._transaction():
                    self._mark_spent(bundle_id)
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

    def next_ready(self, *, model_id: str, graph_hash: str, batch: int) -> Lease | None:
        """A lease of the oldest ready bundle of this kind that nobody holds; None if there is none."""
        after = -1
        while True:
            with self._told(), self._lock:
                row = self._database.execute(
                    "SELECT sequence, bundle_id FROM bundles WHERE state = 'ready' AND model_id = ? "
                    "AND graph_hash = ? AND batch = ? AND sequence > ? ORDER BY sequence LIMIT 1",
                    (model_id, graph_hash, batch, after),
                ).fetchone()
            if row is None:
                return None
            after, bundle_id = row
            with suppress(LocalProtocolError):
                return self.open_material(bundle_id)

    def open_material(self, bundle_id: str) -> Lease:
        """A lease of the bundle ``bundle_id``.

        Raises:
            LocalProtocolError: it is unknown, not whole, spent, or held by another.
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
            with self._lock:
                bundle = self._require_ready(bundle_id)
            if file is None:
                raise LocalProtocolError(f"the material of bundle {bundle_id} is gone; make new bundles")
            stack.pop_all()
            return Lease(bundle, file)

    def spend(self, bundle_id: str) -> Bundle:
        """Marks a ready bundle as spent, durably, then erases its material; returns what it was.

        Of several callers, in whatever processes, exactly one succeeds.

        Raises:
            LocalProtocolError: it is unknown, not whole, or spent already.
        """
        with self._told():
            with self._transaction():
                bundle = self._require_ready(bundle_id)
                self._mark_spent(bundle_id)
            self._erase(bundle_id)
        return bundle

    def count_ready(self, *, model_id: str, graph_hash: str, batch: int) -> int:
        """How many bundles of this kind are ready, held ones included."""
        with self._told(), self._lock:
            row = self._database.execute(
                "SELECT count(*) FROM bundles WHERE state = 'ready' AND model_id = ? AND graph_hash = ? AND batch = ?",
                (model_id, graph_hash, batch),
            ).fetchone()
        return int(row[0])

    def count_unspent_of(self, owner: str, *, model_id: str) -> int:
        """How many bundles of a model ``owner`` has here that are ready or being made."""
        with self._told(), self._lock:
            row = self._database.execute(
                "SELECT count(*) FROM bundles WHERE state != 'spent' AND owner = ? AND model_id = ?", (owner, model_id)
            ).fetchone()
        return int(row[0])

    def counts(self) -> dict[str, int]:
        """How many bundles there are in each state."""
        with self._told(), self._lock:
            rows = self._database.execute("SELECT state, count(*) FROM bundles GROUP BY state").fetchall()
        return {"reserved": 0, "ready": 0, "spent": 0} | dict(rows)

    def close(self) -> None:
        """Closes the database; leases stay valid. Safe to call twice."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # The inside

    def _open(self) -> None:
        execute = self._database.execute
        execute("PRAGMA synchronous = EXTRA")
        if not execute("PRAGMA user_version").fetchone()[0]:
            self._create()
        if execute("PRAGMA application_id").fetchone()[0] != _APPLICATION_ID:
            raise ConfigError(f"{self._database_path} is no store of bundles; choose another directory")
        version = execute("PRAGMA user_version").fetchone()[0]
        if version != _SCHEMA_VERSION:
            raise ConfigError(f"{self._database_path} has format {version}, this program {_SCHEMA_VERSION}; update it")
        execute("PRAGMA journal_mode = DELETE").fetchall()
        role, inode = execute("SELECT role, inode FROM store").fetchone()
        if role != self.role:
            raise ConfigError(f"{self.directory} is the store of a {role}, not of a {self.role}; choose another one")
        if inode != self._inode():
            raise ConfigError(
                f"{self.directory} is a copy of a store, so its bundles may be spent elsewhere; "
                "use the original, or make new bundles in an empty directory"
            )

    def _create(self) -> None:
        with self._transaction():
            # Looked at inside the transaction: another process may have been first, or the database be a foreign one.
            if self._database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                return
            for statement in _SCHEMA:
                self._database.execute(statement)
            self._database.execute("INSERT INTO store VALUES (?, ?)", (self.role, self._inode()))
        self._flush_directory()

    def _inode(self) -> str:
        """What tells this database file from a copy of it, as far as the file system says."""
        with self._database_path.open("rb") as file:
            number = os.fstat(file.fileno()).st_ino
            try:
                generation = fcntl.ioctl(file, _INODE_GENERATION, bytes(8))[:4].hex()
            except OSError:
                generation = ""  # a file system without generations, such as tmpfs
        return f"{number}.{generation}"

    def _sweep(self) -> None:
        """Spends what a killed process left half-written and what lost its material; erases spent material."""
        with self._transaction():
            rows = self._database.execute("SELECT bundle_id, state FROM bundles WHERE state != 'spent'").fetchall()
            alive = set()
            for bundle_id, state in rows:
                if self._path(bundle_id, ".material").exists() if state == "ready" else self._is_written(bundle_id):
                    alive.add(bundle_id)
                else:
                    self._mark_spent(bundle_id)
            for path in self.directory.iterdir():
                if path.suffix in _SUFFIXES and _HEX_ID.fullmatch(path.stem) and path.stem not in alive:
                    path.unlink(missing_ok=True)
            self._flush_directory()

    def _is_written(self, bundle_id: str) -> bool:
        """Whether a living process is writing the material of a reserved bundle."""
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
        with self._transaction():
            self._database.execute(
                "UPDATE bundles SET state = 'ready', material_bytes = ? WHERE bundle_id = ?", (size, bundle_id)
            )

    def _mark_spent(self, bundle_id: str) -> None:
        self._database.execute("UPDATE bundles SET state = 'spent' WHERE bundle_id = ?", (bundle_id,))

    def _erase(self, bundle_id: str) -> None:
        for suffix in _SUFFIXES:
            self._path(bundle_id, suffix).unlink(missing_ok=True)
        self._flush_directory()

    def _lookup(self, bundle_id: str) -> tuple[Bundle, str] | None:
        row = self._database.execute(
            f"SELECT {_COLUMNS}, state FROM bundles WHERE bundle_id = ?", (bundle_id,)
        ).fetchone()
        return (Bundle(*row[:-1]), row[-1]) if row else None

    def _require_ready(self, bundle_id: str) -> Bundle:
        bundle, state = self._lookup(bundle_id) or (None, "unknown here")
        if bundle is None or state != "ready":
            raise LocalProtocolError(f"bundle {bundle_id} is {state}; it must be ready")
        return bundle

    def _path(self, bundle_id: str, suffix: str) -> Path:
        if not _HEX_ID.fullmatch(bundle_id):
            raise LocalProtocolError("a bundle id must be 32 lower-case hex digits")
        return self.directory / (bundle_id + suffix)

    def _flush_directory(self) -> None:
        descriptor = os.open(self.directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """One transaction of this process, alone among all processes that have the store open."""
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turns failures of the database and the disk into one clear line."""
        try:
            yield
        except sqlite3.Error as error:
            raise ConfigError(f"the store {self.directory} is damaged or cannot be used: {error}") from error
        except OSError as error:
            raise ConfigError(f"the store {self.directory} cannot be used: {error.strerror or error}") from error
