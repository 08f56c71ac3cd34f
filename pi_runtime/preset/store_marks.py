"""The marks that make each bundle one-time: a SQLite database with one row a bundle, for ever.

States. ``reserved``: the id is taken, its material is being written. ``ready``: whole and on disk. ``spent``: used, or
lost. A trigger lets a mark only move forward and forbids deleting a row, whoever opens the database.

Durability. SQLite runs with a rollback journal and ``synchronous=EXTRA``: a commit returns after the database, the
journal's removal and the directory are flushed. WAL would save a flush, but the marks of the last commits would then
lie in a second file, and whoever copies or restores the database without it would bring spent bundles back.

Copies. The database remembers its own inode, so a copy of it (another directory, a restored tree) is told from the
original and refused.
"""

from __future__ import annotations

import fcntl
import os
import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

from pi_runtime.closing import Closing
from pi_runtime.errors import ConfigError, LocalProtocolError

_APPLICATION_ID = 0x70496273  # "pIbs"
_SCHEMA_VERSION = 2
_BUSY_S = 60.0
_HEX_ID = re.compile(r"[0-9a-f]{32}")
_COLUMNS = "bundle_id, model_id, graph_hash, batch, owner, server, material_bytes"
_OF_KIND = "state = 'ready' AND owner = ? AND model_id = ? AND graph_hash = ? AND batch = ?"
_SCHEMA = (
    "CREATE TABLE store (role TEXT NOT NULL, inode TEXT NOT NULL)",
    "CREATE TABLE bundles (sequence INTEGER PRIMARY KEY AUTOINCREMENT, bundle_id TEXT NOT NULL UNIQUE,"
    " model_id TEXT NOT NULL, graph_hash TEXT NOT NULL, batch INTEGER NOT NULL, owner TEXT NOT NULL,"
    " server TEXT NOT NULL, material_bytes INTEGER NOT NULL,"
    " state TEXT NOT NULL CHECK (state IN ('reserved', 'ready', 'spent')))",
    "CREATE INDEX by_kind ON bundles (owner, model_id, graph_hash, batch, sequence) WHERE state = 'ready'",
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
    server: which server the client made it with, so that it is known whose change of model ends it; empty in the
    server's own store. material_bytes: length of the material; 0 until it is whole.
    """

    bundle_id: str
    model_id: str
    graph_hash: str
    batch: int
    owner: str
    server: str = ""
    material_bytes: int = 0


class TooManyBundlesError(LocalProtocolError):
    """The owner of a bundle to be added has as many as it may have."""


def is_bundle_id(text: str) -> bool:
    """Whether ``text`` can be the id of a bundle."""
    return _HEX_ID.fullmatch(text) is not None


class Marks(Closing):
    """The database ``path`` of one party; threads may share it, and so may processes that opened it themselves.

    Methods that say so run inside :meth:`transaction`; the others are atomic by themselves.
    """

    def __init__(self, path: Path, role: str) -> None:
        """Opens the database, or makes one for ``role``.

        Raises:
            ConfigError: a database of another role, version or program, or a copy.
            OSError, sqlite3.Error: it cannot be written, or is damaged.
        """
        self.role = role
        self._path = path
        self._lock = threading.Lock()
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        self._database = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            self._open()
        except BaseException:
            self._database.close()
            raise

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """One transaction of this process, alone among all processes that have the database open."""
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    # Inside a transaction

    def reserve(self, bundle: Bundle, *, max_unspent: int | None = None) -> None:
        """Takes the id of ``bundle``, whose owner may have ``max_unspent`` of its model that are not spent.

        Raises:
            LocalProtocolError: it was ever taken here.
            TooManyBundlesError: the owner has as many already.
        """
        if max_unspent is not None and (unspent := self._count_unspent_like(bundle)) >= max_unspent:
            raise TooManyBundlesError(
                f"{unspent} bundles of this client are unspent, at most {max_unspent}; use some first"
            )
        if self._lookup(bundle.bundle_id):
            raise LocalProtocolError(f"bundle {bundle.bundle_id} was added before; an id is used once")
        self._database.execute(
            f"INSERT INTO bundles ({_COLUMNS}, state) VALUES (?, ?, ?, ?, ?, ?, ?, 'reserved')",
            astuple(bundle),
        )

    def make_ready(self, bundle_id: str, material_bytes: int) -> None:
        """Says that the material of a reserved bundle is whole."""
        self._database.execute(
            "UPDATE bundles SET state = 'ready', material_bytes = ? WHERE bundle_id = ?", (material_bytes, bundle_id)
        )

    def mark_spent(self, bundle_id: str) -> None:
        """Moves a bundle to its last state."""
        self._database.execute("UPDATE bundles SET state = 'spent' WHERE bundle_id = ?", (bundle_id,))

    def spend_ready(self, bundle_id: str) -> Bundle:
        """Marks a bundle spent.

        Raises:
            LocalProtocolError: it is not ready.
        """
        bundle = self._require_ready(bundle_id)
        self.mark_spent(bundle_id)
        return bundle

    def unspent(self) -> list[tuple[str, str]]:
        """Id and state of each bundle that is reserved or ready."""
        return self._database.execute("SELECT bundle_id, state FROM bundles WHERE state != 'spent'").fetchall()

    def outdated(self, server: str, *, model_id: str, graph_hash: str) -> list[str]:
        """Ids of the ready bundles made with ``server`` for another model than this one."""
        rows = self._database.execute(
            "SELECT bundle_id FROM bundles WHERE state = 'ready' AND server = ? AND (model_id != ? OR graph_hash != ?)",
            (server, model_id, graph_hash),
        ).fetchall()
        return [bundle_id for (bundle_id,) in rows]

    # By themselves

    def require_ready(self, bundle_id: str) -> Bundle:
        """What is known of a bundle that is ready.

        Raises:
            LocalProtocolError: it is unknown, not whole, or spent.
        """
        with self._lock:
            return self._require_ready(bundle_id)

    def ready_after(
        self, sequence: int, *, owner: str, model_id: str, graph_hash: str, batch: int
    ) -> tuple[int, str] | None:
        """The oldest ready bundle of this kind after ``sequence``: its own sequence and its id; None if none is."""
        with self._lock:
            row: tuple[int, str] | None = self._database.execute(
                f"SELECT sequence, bundle_id FROM bundles WHERE {_OF_KIND} AND sequence > ? ORDER BY sequence LIMIT 1",
                (owner, model_id, graph_hash, batch, sequence),
            ).fetchone()
        return row

    def count_ready(self, *, owner: str, model_id: str, graph_hash: str, batch: int) -> int:
        """How many bundles of this kind are ready."""
        with self._lock:
            row = self._database.execute(
                f"SELECT count(*) FROM bundles WHERE {_OF_KIND}", (owner, model_id, graph_hash, batch)
            ).fetchone()
        return int(row[0])

    def counts(self) -> dict[str, int]:
        """How many bundles there are in each state."""
        with self._lock:
            rows = self._database.execute("SELECT state, count(*) FROM bundles GROUP BY state").fetchall()
        return {"reserved": 0, "ready": 0, "spent": 0} | dict(rows)

    def close(self) -> None:
        self._database.close()

    # The inside

    def _open(self) -> None:
        execute = self._database.execute
        execute("PRAGMA synchronous = EXTRA")
        if not execute("PRAGMA user_version").fetchone()[0]:
            self._create()
        if execute("PRAGMA application_id").fetchone()[0] != _APPLICATION_ID:
            raise ConfigError(f"{self._path} is no store of bundles; choose another directory")
        version = execute("PRAGMA user_version").fetchone()[0]
        if version != _SCHEMA_VERSION:
            raise ConfigError(
                f"{self._path} has format {version}, this program {_SCHEMA_VERSION}; "
                "use the program that made it, or make new bundles in an empty directory"
            )
        execute("PRAGMA journal_mode = DELETE").fetchall()
        role, inode = execute("SELECT role, inode FROM store").fetchone()
        directory = self._path.parent
        if role != self.role:
            raise ConfigError(f"{directory} is the store of a {role}, not of a {self.role}; choose another one")
        if inode != self._inode():
            raise ConfigError(
                f"{directory} is a copy of a store, so its bundles may be spent elsewhere; "
                "use the original, or make new bundles in an empty directory"
            )

    def _create(self) -> None:
        with self.transaction():
            # Looked at inside the transaction: another process may have been first, or the database be a foreign one.
            if self._database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                return
            for statement in _SCHEMA:
                self._database.execute(statement)
            self._database.execute("INSERT INTO store VALUES (?, ?)", (self.role, self._inode()))

    def _inode(self) -> str:
        """What tells this database file from a copy of it, as far as the file system says."""
        with self._path.open("rb") as file:
            number = os.fstat(file.fileno()).st_ino
            try:
                generation = fcntl.ioctl(file, _INODE_GENERATION, bytes(8))[:4].hex()
            except OSError:
                generation = ""  # a file system without generations, such as tmpfs
        return f"{number}.{generation}"

    def _count_unspent_like(self, bundle: Bundle) -> int:
        row = self._database.execute(
            "SELECT count(*) FROM bundles WHERE state != 'spent' AND owner = ? AND model_id = ?",
            (bundle.owner, bundle.model_id),
        ).fetchone()
        return int(row[0])

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
