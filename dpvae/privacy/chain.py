"""Append-only rows in a SQL database, chained by hashes: what the ledger is written on.

A row's hash covers the hash before it, so an edited or removed row breaks the chain for everyone who reads it. SQLite
is the default (write-ahead log, every commit flushed to the disk, one writer at a time). On PostgreSQL, for teams, one
advisory lock makes writers queue; whoever dies lets go of it. Anywhere else, and behind both, two writers that saw the
same head collide on ``seq`` and on ``previous``, and one of them starts over.

A server that goes away in the middle of a commit leaves its answer unknown. So an action must be safe to repeat
(every verb of the ledger is), and is repeated, on a new connection, until the server is back or patience ends.

>>> chain = Chain("sqlite://")
>>> row = chain.transact(lambda c: chain.append(c, chain.read(c), "adult", "run-1", "reserve", {"events": []}))
>>> [(r.seq, r.kind) for r in chain.rows()], row.hash == row.seal()
([(1, 'reserve')], True)
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import sqlalchemy as sa
from sqlalchemy.pool import NullPool, StaticPool

from dpvae.errors import LedgerError
from dpvae.privacy.events import canonical

T = TypeVar("T")

GENESIS = "0" * 64
WAIT_SECONDS = 120  # for another process that is pricing its own spend
RETURN_SECONDS = 60  # for a server that went away after it had been reached once
_WRITERS = 0x6470766165  # the advisory lock of PostgreSQL that all writers take: "dpvae"
_STALE = ("40001", "40P01")  # SQL states: could not serialise, deadlock
_INSTALL = "pip install 'dpvae[postgres]'"

_METADATA = sa.MetaData()
_ENTRIES = sa.Table(
    "entries",
    _METADATA,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("dataset", sa.Text, nullable=False),
    sa.Column("run", sa.Text, nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
    sa.Column("time", sa.String(40), nullable=False),
    sa.Column("previous", sa.String(64), nullable=False, unique=True),
    sa.Column("hash", sa.String(64), nullable=False),
)


class UnknownOutcome(LedgerError):
    """The server left during a commit: the row may be written. Whoever asked must keep what it would be known by."""


@dataclass(frozen=True)
class Row:
    """One line of the book; ``payload`` is canonical JSON."""

    seq: int
    dataset: str
    run: str
    kind: str
    payload: str
    time: str
    previous: str
    hash: str = ""

    def seal(self) -> str:
        """SHA-256 of the previous hash and of everything else in the row."""
        body = {name: getattr(self, name) for name in ("seq", "dataset", "run", "kind", "payload", "time")}
        return hashlib.sha256(self.previous.encode() + canonical(body)).hexdigest()

    @property
    def content(self) -> dict[str, Any]:
        """The payload, parsed."""
        content: dict[str, Any] = json.loads(self.payload)
        return content


class Chain:
    """The chain behind one SQLAlchemy URL, or the path of a SQLite file; made if it is new."""

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self._engine = _engine(url)
        except (sa.exc.SQLAlchemyError, ImportError, OSError, ValueError) as error:
            hint = f"; {_INSTALL}" if "psycopg" in str(error) else ""
            raise LedgerError(f"ledger={self.name!r}: cannot be opened ({_reason(error)}){hint}; "
                              "check ledger.url") from None
        self._reached = False
        self.transact(lambda connection: _METADATA.create_all(connection))
        self._reached = True

    @property
    def name(self) -> str:
        """The URL without its password: what may be printed."""
        try:
            return sa.make_url(self.url).render_as_string(hide_password=True) if "://" in self.url else self.url
        except (sa.exc.SQLAlchemyError, ValueError):
            return "://"

    def transact(self, action: Callable[[sa.Connection], T], *, writes: bool = True) -> T:
        """``action`` in one transaction; again from the start where another writer was faster or the server left."""
        start = time.monotonic()
        while True:
            try:
                with self._engine.connect().execution_options(writes=writes) as connection, connection.begin():
                    return action(connection)
            except (sa.exc.SQLAlchemyError, sqlite3.Error) as error:
                if time.monotonic() > start + self._patience(error):
                    raise self._failure(error) from None
                time.sleep(0.5 if _is_gone(error) else 0.02)

    def _patience(self, error: Exception) -> float:
        """Seconds that this failure is worth; 0 for one that trying again cannot mend."""
        state = getattr(getattr(error, "orig", None), "sqlstate", None)
        if _is_gone(error):
            return RETURN_SECONDS if self._reached or error.connection_invalidated or state else 0.0
        again = isinstance(error, sa.exc.IntegrityError) or "locked" in str(error) or state in _STALE
        return WAIT_SECONDS if again else 0.0

    def _failure(self, error: Exception) -> LedgerError:
        if _is_gone(error) and self._reached:
            return UnknownOutcome(f"ledger={self.name!r}: cannot be used ({_reason(error)}); whether it was booked is "
                                  "not known; give the same command again once the server is back, and it finds what "
                                  "was booked")
        return LedgerError(f"ledger={self.name!r}: cannot be used ({_reason(error)}); nothing was booked, check "
                           "ledger.url")

    def rows(self) -> list[Row]:
        """All rows, verified."""
        return self.transact(self.read, writes=False)

    def read(self, connection: sa.Connection) -> list[Row]:
        """All rows, verified: nothing is ever decided on a book that was edited."""
        rows: list[Row] = []
        previous = GENESIS
        for record in connection.execute(sa.select(_ENTRIES).order_by(_ENTRIES.c.seq)):
            row = Row(**record._mapping)
            if row.seq != len(rows) + 1 or row.previous != previous or row.hash != row.seal():
                raise LedgerError(
                    f"ledger={self.name!r}: row {len(rows) + 1} does not continue the chain (it was edited, or a row "
                    "was removed); restore a backup, and take the data set's budget as spent"
                )
            rows.append(row)
            previous = row.hash
        return rows

    def append(
        self, connection: sa.Connection, rows: Sequence[Row], dataset: str, run: str, kind: str,
        payload: dict[str, Any],
    ) -> Row:
        """One row after ``rows``, which :meth:`read` gave in the same transaction."""
        open_row = Row(
            seq=len(rows) + 1, dataset=dataset, run=run, kind=kind, payload=canonical(payload).decode(),
            time=datetime.now(UTC).isoformat(timespec="microseconds"), previous=rows[-1].hash if rows else GENESIS,
        )
        row = replace(open_row, hash=open_row.seal())
        connection.execute(_ENTRIES.insert().values(**vars(row)))
        return row


def _engine(url: str) -> sa.Engine:
    parsed = sa.make_url(url) if "://" in url else sa.URL.create("sqlite", database=url)  # a path means itself: a?b, 5%
    if parsed.drivername in ("postgresql", "postgres"):  # SQLAlchemy's own default is a driver of the last decade
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() == "postgresql":
        return _postgres(parsed)
    if parsed.get_backend_name() != "sqlite":
        return sa.create_engine(parsed, isolation_level="SERIALIZABLE", poolclass=NullPool)
    file = parsed.database
    if not file or file == ":memory:":
        engine = sa.create_engine(parsed, poolclass=StaticPool, connect_args={"check_same_thread": False})
    else:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        # A new connection each time: nothing is shared with a forked process.
        engine = sa.create_engine(parsed, poolclass=NullPool, connect_args={"timeout": WAIT_SECONDS})
    sa.event.listen(engine, "connect", _connected)
    sa.event.listen(engine, "begin", _begin)
    return engine


def _postgres(url: sa.URL) -> sa.Engine:
    """Read committed, behind one lock: whoever holds it sees every committed row, and nobody starts over for nothing.

    Nothing waits for ever: not for a server that does not answer, not for a writer that hangs, and the server lets go
    of the lock of a client that fell silent.
    """
    settings = {"synchronous_commit": "on", "lock_timeout": f"{WAIT_SECONDS}s",
                "idle_in_transaction_session_timeout": f"{WAIT_SECONDS}s"}
    arguments: dict[str, Any] = {
        "connect_timeout": 10, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3,
        "tcp_user_timeout": 30_000, "application_name": "dpvae",
        "options": " ".join(f"-c {name}={value}" for name, value in settings.items()),
    }
    engine = sa.create_engine(url, isolation_level="READ COMMITTED", poolclass=NullPool,
                              connect_args={k: v for k, v in arguments.items() if k not in url.query})
    sa.event.listen(engine, "begin", _queue)
    return engine


def _queue(connection: sa.Connection) -> None:
    if connection.get_execution_options().get("writes", True):
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_WRITERS)))


def _is_gone(error: Exception) -> TypeGuard[sa.exc.DBAPIError]:
    """Whether the server, not the statement, is the trouble."""
    if not isinstance(error, sa.exc.DBAPIError) or isinstance(error.orig, sqlite3.Error):
        return False
    state = getattr(error.orig, "sqlstate", None)
    refused = isinstance(error, sa.exc.OperationalError) and state is None
    return bool(error.connection_invalidated or refused or (state or "").startswith(("57P", "08")))


def _connected(raw: Any, _record: Any) -> None:
    raw.isolation_level = None  # the driver's own BEGIN would come too late
    if raw.execute("PRAGMA journal_mode").fetchone()[0] not in ("wal", "memory"):
        raw.execute("PRAGMA journal_mode=WAL")
    raw.execute("PRAGMA synchronous=FULL")  # a booked spend survives the power cut


def _begin(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("writes", True)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _reason(error: Exception) -> str:
    text = str(getattr(error, "orig", None) or error).splitlines()[0]
    return f"{text}: is there space left?" if text == "disk I/O error" else text
