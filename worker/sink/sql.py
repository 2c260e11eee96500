"""Rows into SQLite or PostgreSQL through SQLAlchemy Core; a transaction a batch."""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy import Connection, and_, bindparam, create_engine, delete, event, insert, select, text, update
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.sql.dml import Delete, Update

from worker.errors import SinkBusy, SinkFailed
from worker.records import Key, Row, data_of
from worker.sink.schema import checkpoints, cycles, metadata, records

Statement = TypeVar("Statement", Update, Delete)

BUSY_TIMEOUT_S = 30.0
LOOKUP_RECORDS = 500  # records in one SELECT; SQLite takes 32,766 variables, PostgreSQL 65,535


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


@dataclass(slots=True)
class Batch:
    """What one transaction did."""

    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    deleted: int = 0


class SqlSink:
    """One database. Raises SinkFailed for whatever it refuses, without quoting a value."""

    def __init__(self, url: str) -> None:
        # hide_parameters: SQLAlchemy's errors would quote the rows otherwise.
        shown = make_url(url).set(username=None, password=None, query={})  # a query may hold a password too
        self._name = shown.render_as_string()
        self._engine = create_engine(url, hide_parameters=True, json_serializer=str)
        if self._engine.dialect.name == "sqlite":
            _set_up_sqlite(self._engine)
        self._revisions: dict[int, int] = {}
        with self._errors("be opened"):
            metadata.create_all(self._engine)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise SinkFailed(f"{self._name} can't {what}: {_reason(error)}") from None
        except SQLAlchemyError as error:
            raise SinkFailed(f"{self._name} can't {what} ({type(error).__name__})") from None

    def checkpoint(self, project_id: int) -> Checkpoint:
        """Return the checkpoint of a project; an empty one where there is none yet."""
        with self._errors("be read"), self._engine.begin() as connection:
            found = (
                connection.execute(select(checkpoints).where(checkpoints.c.project_id == project_id)).mappings().first()
            )
            if found is None:
                self._revisions[project_id] = 0
                connection.execute(insert(checkpoints).values(project_id=project_id, revision=0))
                return Checkpoint()
        fields = dict(found)
        self._revisions[fields.pop("project_id")] = fields.pop("revision")
        return Checkpoint(**{name: _utc(value) for name, value in fields.items()})

    def record_ids(self, project_id: int) -> set[str]:
        """Return the ids of all records that have a row which is not deleted."""
        with self._errors("be read"), self._engine.connect() as connection:
            found = connection.execute(
                select(records.c.record_id)
                .where(records.c.project_id == project_id, records.c.deleted_at.is_(None))
                .distinct()
            )
            return {row.record_id for row in found}

    def write(
        self,
        project_id: int,
        found: Mapping[str, Mapping[Key, Row]],
        gone: Sequence[str],
        *,
        at: datetime,
        erase: bool,
        checkpoint: Checkpoint,
        cycle: Mapping[str, Any] | None = None,
        counts: Batch | None = None,
    ) -> Batch:
        """Make each record of `found` exactly its rows, end those of `gone`, move the checkpoint.

        One transaction: all of it is there afterwards, or nothing. `cycle` is the row of the
        cycles table, filled up with `counts` and with what this transaction did. Raises
        SinkBusy when another sync has moved the checkpoint meanwhile.
        """
        done = Batch()
        with self._errors("be written"), self._engine.begin() as connection:
            self._move(connection, project_id, checkpoint)
            stored = self._stored(connection, project_id, [*found, *gone])
            inserts: list[dict[str, Any]] = []
            updates: list[dict[str, Any]] = []
            for rows in found.values():
                for key, row in rows.items():
                    data, digest = data_of(row)
                    before = stored.pop(key, None)
                    if before is None:
                        inserts.append(_values(project_id, key, data, digest, at))
                    elif before != (digest, False):
                        updates.append(
                            _bound(project_id, key)
                            | {"data": data, "data_hash": digest, "changed_at": at, "deleted_at": None}
                        )
                    else:
                        done.unchanged += 1
            ended = [_bound(project_id, key) for key, (_, deleted) in stored.items() if not deleted or erase]
            done.inserted, done.updated, done.deleted = len(inserts), len(updates), len(ended)
            if inserts:
                connection.execute(insert(records), inserts)
            if updates:
                connection.execute(_where_key(update(records)), updates)
            if ended and erase:
                connection.execute(_where_key(delete(records)), ended)
            elif ended:
                marks = {"deleted_at": at, "changed_at": at}
                connection.execute(_where_key(update(records)), [one | marks for one in ended])
            if cycle is not None:
                connection.execute(insert(cycles).values(**_summed(cycle, counts, done)))
        self._revisions[project_id] += 1
        return done

    def _move(self, connection: Connection, project_id: int, checkpoint: Checkpoint) -> None:
        seen = self._revisions[project_id]
        moved = connection.execute(
            update(checkpoints)
            .where(checkpoints.c.project_id == project_id, checkpoints.c.revision == seen)
            .values(revision=seen + 1, **asdict(checkpoint))
        )
        if moved.rowcount != 1:
            raise SinkBusy(
                f"another sync has written project {project_id} into {self._name} during this cycle: "
                "run one instance for a project"
            )

    def _stored(self, connection: Connection, project_id: int, ids: Sequence[str]) -> dict[Key, tuple[str, bool]]:
        stored: dict[Key, tuple[str, bool]] = {}  # hash, whether it is deleted
        columns = [records.c[name] for name in (*Key.__slots__, "data_hash", "deleted_at")]
        for start in range(0, len(ids), LOOKUP_RECORDS):
            some = ids[start : start + LOOKUP_RECORDS]
            query = select(*columns).where(records.c.project_id == project_id, records.c.record_id.in_(some))
            for *key, digest, deleted_at in connection.execute(query):
                stored[Key(*key)] = (digest, deleted_at is not None)
        return stored


def _where_key(statement: Statement) -> Statement:
    return statement.where(
        and_(*(records.c[name] == bindparam(f"k_{name}") for name in ("project_id", *Key.__slots__)))
    )


def _bound(project_id: int, key: Key) -> dict[str, Any]:
    return {"k_project_id": project_id, **{f"k_{name}": getattr(key, name) for name in Key.__slots__}}


def _values(project_id: int, key: Key, data: str, digest: str, at: datetime) -> dict[str, Any]:
    return {
        "project_id": project_id,
        **{name: getattr(key, name) for name in Key.__slots__},
        "data": data,
        "data_hash": digest,
        "first_seen_at": at,
        "changed_at": at,
        "deleted_at": None,
    }


def _summed(cycle: Mapping[str, Any], counts: Batch | None, done: Batch) -> dict[str, Any]:
    before = counts or Batch()
    names = ("inserted", "updated", "unchanged", "deleted")
    return {**cycle, **{name: getattr(before, name) + getattr(done, name) for name in names}}


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

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # Taking the write lock at once: a read that becomes a write later can't wait for it.
        connection.execute(text("BEGIN IMMEDIATE"))


def _reason(error: DBAPIError) -> str:
    """Return the driver's own words where they hold no values."""
    if isinstance(error.orig, sqlite3.Error):
        return f"{error.orig}"[:200]
    code = getattr(error.orig, "sqlstate", None)
    return f"{type(error.orig).__name__}" + (f" {code}" if code else "")
