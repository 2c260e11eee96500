"""Rows into SQLite or PostgreSQL through SQLAlchemy Core; a transaction a batch."""

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    Connection,
    Text,
    and_,
    bindparam,
    cast,
    create_engine,
    delete,
    event,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.engine import URL, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from worker.errors import SinkBusy, SinkFailed
from worker.records import Key, Record, Stored, stored, to_json
from worker.sink import schema
from worker.sink.schema import checkpoints, cycles, records
from worker.stream import decoded

Handle = Callable[[str, Record, Connection], Record]

BUSY_TIMEOUT_S = 30.0
LOCK_PATIENCE_S = 10  # a killed worker's connection lives until the server has noticed
LOOKUP_RECORDS = 500  # records in one SELECT; SQLite takes 32,766 variables, PostgreSQL 65,535
CURSOR_ROWS = 10_000

_KEY = ("project_id", *Key._fields)
_BY_KEY = and_(*(records.c[name] == bindparam(f"k_{name}") for name in _KEY))


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """How far a project is synced. Times are UTC of the server's clock."""

    synced_until: datetime | None = None
    utc_offset_s: int | None = None
    structure_hash: str | None = None
    reconciled_at: datetime | None = None
    backfill_started_at: datetime | None = None
    backfill_cursor: str | None = None
    backfill_structure_hash: str | None = None
    project_created: str | None = None
    skew_s: float | None = None  # the server's clock against the host's, at that cycle's start


@dataclass(slots=True)
class Counts:
    """What was done to the rows."""

    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    deleted: int = 0


class SqlSink:
    """One database on one connection. Raises SinkFailed for whatever it refuses, without quoting a value."""

    has_views = True

    def __init__(self, url: URL, *, rehearsal: bool = False) -> None:
        """Open it; a rehearsal makes the tables and takes them back."""
        # A query may hold a password too.
        self._name = url.set(username=None, password=None, query={}).render_as_string()
        # hide_parameters: SQLAlchemy's errors would quote the rows otherwise.
        self._engine = create_engine(url, hide_parameters=True, json_serializer=str)
        self._upsert = _upsert(self._engine.dialect.name)
        if self._engine.dialect.name == "sqlite":
            _set_up_sqlite(self._engine)
        self._lock_fd = -1
        self._revision = 0
        with self._errors("be opened"), ExitStack() as undo:
            undo.callback(self._engine.dispose)
            self._connection = undo.enter_context(self._engine.connect())
            with self._connection.begin() as transaction:
                schema.prepare(self._connection)
                if rehearsal:
                    transaction.rollback()
            undo.pop_all()

    def close(self) -> None:
        """Close the connection, and with it let the lock go."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
        self._connection.close()
        self._engine.dispose()

    def about(self) -> str:
        """Return what it is, and of which version."""
        version = ".".join(map(str, (self._engine.dialect.server_version_info or ())[:2]))
        name = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}[self._engine.dialect.name]
        host = f" on {self._engine.url.host}" if self._engine.url.host else ""
        return f"{name} {version}, {self._engine.url.database}{host}"

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise SinkFailed(f"{self._name} can't {what}: {_reason(error, connecting=what == 'be opened')}") from None
        except SQLAlchemyError as error:
            raise SinkFailed(f"{self._name} can't {what} ({type(error).__name__})") from None

    def lock(self, project_id: int) -> None:
        """Hold the project until `close`, or until this process ends. Raises SinkBusy."""
        busy = SinkBusy(
            f"another sync is at work on project {project_id} in {self._name}: run one instance for a project"
        )
        file = self._engine.url.database
        if self._engine.dialect.name == "sqlite" and file and file != ":memory:":
            self._lock_fd = os.open(f"{file}.{project_id}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel drops it with its holder
            except BlockingIOError:
                raise busy from None
        elif self._engine.dialect.name == "postgresql":
            with self._errors("be locked"):
                try:
                    with self._connection.begin():
                        self._connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_PATIENCE_S}s'"))
                        take = text("SELECT pg_advisory_lock(hashtext('redcap-sync'), :project_id)")
                        self._connection.execute(take, {"project_id": project_id})
                except DBAPIError as error:
                    if getattr(error.orig, "sqlstate", None) == "55P03":  # lock_not_available
                        raise busy from None
                    raise

    def checkpoint(self, project_id: int) -> Checkpoint:
        """Return the checkpoint of a project; an empty one where there is none yet."""
        with self._errors("be read"), self._connection.begin():
            query = select(checkpoints).where(checkpoints.c.project_id == project_id)
            found = self._connection.execute(query).mappings().first()
            if found is None:
                self._revision = 0
                self._connection.execute(insert(checkpoints).values(project_id=project_id, revision=0))
                return Checkpoint()
        fields = dict(found)
        self._revision = fields.pop("revision")
        del fields["project_id"]
        return Checkpoint(**{name: _utc(value) for name, value in fields.items()})

    def record_ids(self, project_id: int, limit: int | None = None) -> Iterator[str]:
        """Yield the ids of all records, or of some, that have a row which is not deleted."""
        query = (
            select(records.c.record_id)
            .where(records.c.project_id == project_id, records.c.deleted_at.is_(None))
            .distinct()
            .limit(limit)
        )
        with self._errors("be read"), self._connection.begin():
            yield from self._connection.execute(query, execution_options={"yield_per": CURSOR_ROWS}).scalars()

    def rows_of(self, project_id: int, record_id: str) -> Record:
        """Return the rows of a record that are not deleted."""
        columns = [records.c[name] for name in (*Key._fields, "data_hash")]
        query = select(*columns, cast(records.c.data, Text)).where(
            records.c.project_id == project_id, records.c.record_id == record_id, records.c.deleted_at.is_(None)
        )
        with self._errors("be read"), self._connection.begin():
            rows = self._connection.execute(query)
            return {Key(*key): Stored(data, digest, False) for *key, digest, data in rows}

    @contextmanager
    def transaction(self, project_id: int, checkpoint: Checkpoint) -> Iterator["Transaction"]:
        """Move the checkpoint, with whatever is done inside: all of it is there afterwards, or nothing.

        Raises SinkBusy when another sync has moved it meanwhile.
        """
        with self._errors("be written"), self._connection.begin():
            moved = self._connection.execute(
                update(checkpoints)
                .where(checkpoints.c.project_id == project_id, checkpoints.c.revision == self._revision)
                .values(revision=self._revision + 1, **asdict(checkpoint))
            )
            if moved.rowcount != 1:
                raise SinkBusy(
                    f"another sync has written project {project_id} into {self._name} during this cycle: "
                    "run one instance for a project"
                )
            yield self._transaction(project_id)
        self._revision += 1

    def _transaction(self, project_id: int) -> "Transaction":
        return Transaction(self._connection, project_id, self._upsert)


@dataclass(slots=True)
class Transaction:
    """What can be done to a project's rows in one transaction."""

    connection: Connection
    project_id: int
    upsert: str

    def put(
        self,
        found: Mapping[str, Record],
        gone: Sequence[str],
        *,
        at: datetime,
        erase: bool,
        handle: Handle | None = None,
    ) -> Counts:
        """Make each record of `found` exactly its rows, and end those of `gone`; return what that came to."""
        known = self._stored([*found, *gone])
        done = Counts()
        changed: list[tuple[Any, ...]] = []
        for record_id in [*found, *gone]:
            record = found.get(record_id, {})
            if handle is not None:
                record = handle(record_id, record, self.connection)
            for key, row in record.items():
                before = known.pop(key, None)
                if before == (row.data_hash, False):
                    done.unchanged += 1
                    continue
                done.inserted += before is None
                done.updated += before is not None
                changed.append((*key, row.data, row.data_hash))
        ended = [key for key, (_, deleted) in known.items() if not deleted or erase]
        done.deleted = len(ended)
        self._change(changed, ended, at=at, erase=erase)
        return done

    def _change(self, changed: list[tuple[Any, ...]], ended: list[Key], *, at: datetime, erase: bool) -> None:
        if changed:
            # By the driver itself: SQLAlchemy's own way of many rows takes longer than the database (measured).
            fixed = (at if self.connection.dialect.name == "postgresql" else at.strftime("%Y-%m-%d %H:%M:%S.%f"),) * 2
            self.connection.exec_driver_sql(self.upsert, [(self.project_id, *row, *fixed) for row in changed])
        if ended:
            keys = [{f"k_{name}": v for name, v in zip(_KEY, (self.project_id, *key), strict=True)} for key in ended]
            mark = update(records).where(_BY_KEY).values(deleted_at=at, changed_at=at)
            self.connection.execute(delete(records).where(_BY_KEY) if erase else mark, keys)

    def _stored(self, ids: Sequence[str]) -> dict[Key, tuple[str, bool]]:
        stored: dict[Key, tuple[str, bool]] = {}  # hash, whether it is deleted
        columns = [records.c[name] for name in (*Key._fields, "data_hash", "deleted_at")]
        for start in range(0, len(ids), LOOKUP_RECORDS):
            some = ids[start : start + LOOKUP_RECORDS]
            query = select(*columns).where(records.c.project_id == self.project_id, records.c.record_id.in_(some))
            for *key, digest, deleted_at in self.connection.execute(query):
                stored[Key(*key)] = (digest, deleted_at is not None)
        return stored

    def rename(self, old: str, new: str) -> None:
        """Give the rows of a record another id, unless there are rows with that one."""
        if not self._stored([new]):
            of = (records.c.project_id == self.project_id, records.c.record_id == old, records.c.deleted_at.is_(None))
            self.connection.execute(update(records).where(*of).values(record_id=new))

    def erase_deleted(self) -> None:
        """Remove what was marked as deleted before that was to be erased."""
        marked = (records.c.project_id == self.project_id, records.c.deleted_at.is_not(None))
        self.connection.execute(delete(records).where(*marked))

    def keep_columns(self, keeps: Callable[[str], bool], is_read: Callable[[str], bool]) -> None:
        """Take what is not kept any more out of all rows but those that were read anew: deleted ones, and unseen ones.

        What was read has passed `keeps` already, and may have got columns of a handler's since.
        """
        columns = [*(records.c[name] for name in Key._fields), records.c.deleted_at]
        ours, after = records.c.project_id == self.project_id, ""
        by_id = select(records.c.record_id).distinct().order_by(records.c.record_id).limit(LOOKUP_RECORDS)
        while ids := self.connection.execute(by_id.where(ours, records.c.record_id > after)).scalars().all():
            after = ids[-1]
            query = select(*columns, cast(records.c.data, Text)).where(ours, records.c.record_id.in_(ids))
            for *key, deleted_at, data in self.connection.execute(query).all():
                if deleted_at is None and is_read(key[0]):
                    continue
                before = decoded(data.encode())
                kept = {name: value for name, value in before.items() if keeps(name)}
                if len(kept) < len(before):
                    where = {f"k_{name}": value for name, value in zip(_KEY, (self.project_id, *key), strict=True)}
                    row = stored(to_json(kept))
                    change = update(records).where(_BY_KEY).values(data=row.data, data_hash=row.data_hash)
                    self.connection.execute(change, where)

    def keep_cycle(self, row: Mapping[str, Any]) -> None:
        """Write the summary of the cycle."""
        self.connection.execute(insert(cycles).values(**row))


def _upsert(dialect: str) -> str:
    """Return the statement that writes a row, with the parameters in the order of `Transaction._change`."""
    columns = (*_KEY, "data", "data_hash", "first_seen_at", "changed_at")
    places = ", ".join("?" if dialect == "sqlite" else "%s" for _ in columns)
    new = ", ".join(f"{name} = excluded.{name}" for name in ("data", "data_hash", "changed_at"))
    return (
        f"INSERT INTO records ({', '.join(columns)}) VALUES ({places}) "
        f"ON CONFLICT ({', '.join(_KEY)}) DO UPDATE SET {new}, deleted_at = NULL"
    )


def _utc(value: Any) -> Any:
    if isinstance(value, datetime):  # SQLite keeps no zone; what we store is UTC
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    return value


def _set_up_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def connect(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None  # the driver must not begin transactions of its own
        connection.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
        connection.execute("PRAGMA journal_mode = WAL")  # readers and the sync do not wait for each other
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA secure_delete = ON")  # what is erased is not left in free pages
        connection.execute("PRAGMA wal_autocheckpoint = 10000")  # pages; each one waits for the disk

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # Taking the write lock at once: a read that becomes a write later can't wait for it.
        connection.execute(text("BEGIN IMMEDIATE"))


def _reason(error: DBAPIError, *, connecting: bool) -> str:
    """Return the driver's own words where they hold no values: SQLite's, and those of a connection that fails."""
    if isinstance(error.orig, sqlite3.Error):
        return f"{error.orig}"[:200]
    code = getattr(error.orig, "sqlstate", None)
    name = type(error.orig).__name__ + (f" {code}" if code else "")
    if connecting and not code:
        return f"{name}: {' '.join(str(error.orig).split())[:300]}"
    return f"{name}: the connection was lost" if error.connection_invalidated else name
