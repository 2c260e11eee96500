"""A change feed: one line a change, only ever appended to, so that it is safe to tail.

What is known of the rows stands in a SQLite file beside the feed, without their data. The lines
of a transaction are committed there first and appended behind it; whatever a kill left out of the
feed is known by its length, and appended by the next cycle, from the very byte on.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import URL, BigInteger, Column, Integer, MetaData, Table, Text, insert, select

from worker.errors import SinkFailed
from worker.records import Key
from worker.sink.sql import Checkpoint, SqlSink, Transaction

_metadata = MetaData()
outbox = Table(
    "outbox",
    _metadata,
    Column("number", Integer, primary_key=True),
    Column("file", Text, nullable=False),
    Column("start_byte", BigInteger, nullable=False),  # of the lines in the file
    Column("lines", Text, nullable=False),
)


class JsonlSink(SqlSink):
    """`changes-PROJECT-MONTH.jsonl` in a folder. Raises SinkFailed."""

    has_views = False

    def __init__(self, folder: str) -> None:
        self._folder = folder
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
        except OSError as error:
            raise SinkFailed(f"jsonl:{folder} can't be made: {error.strerror}") from None
        super().__init__(URL.create("sqlite", database=f"{folder}/index.db"))
        # On the disk before the feed is: what a power cut leaves of a line is completed by it.
        self._connection.connection.execute("PRAGMA synchronous = FULL")
        with self._errors("be opened"), self._connection.begin():
            _metadata.create_all(self._connection)

    def lock(self, project_id: int) -> None:
        """Hold the project, and append what a cycle that was killed left out."""
        super().lock(project_id)
        self._append()

    @contextmanager
    def transaction(self, project_id: int, checkpoint: Checkpoint) -> Iterator[Transaction]:
        """As SqlSink's, and append the lines of what was done behind it."""
        with super().transaction(project_id, checkpoint) as transaction:
            yield transaction
            assert isinstance(transaction, _Feed)
            for name, lines in transaction.lines.items():
                size = os.path.getsize(path) if os.path.exists(path := os.path.join(self._folder, name)) else 0
                add = insert(outbox).values(file=name, start_byte=size, lines="".join(lines))
                self._connection.execute(add)
        self._append()

    def _transaction(self, project_id: int) -> Transaction:
        return _Feed(self._connection, project_id, self._upsert)

    def _append(self) -> None:
        with self._errors("be written"), self._connection.begin():
            for entry in self._connection.execute(select(outbox).order_by(outbox.c.number)).all():
                try:
                    _complete(os.path.join(self._folder, entry.file), entry.start_byte, entry.lines.encode())
                except OSError as error:
                    raise SinkFailed(f"{self._folder}/{entry.file} can't be written: {error.strerror}") from None
                self._connection.execute(outbox.delete().where(outbox.c.number == entry.number))


@dataclass(slots=True)
class _Feed(Transaction):
    """Keeps the lines, and the rows without their data."""

    lines: dict[str, list[str]] = field(default_factory=dict)

    def _change(self, changed: list[tuple[Any, ...]], ended: list[Key], *, at: datetime, erase: bool) -> None:
        for *parts, data, _ in changed:
            self._tell(at, "changed", Key(*parts), data)
        for key in ended:
            self._tell(at, "deleted", key, "null")
        changed = [(*row[:-2], "{}", row[-1]) for row in changed]
        Transaction._change(self, changed, ended, at=at, erase=erase)  # noqa: SLF001 - its own base; super() does not know a class with slots

    def rename(self, old: str, new: str) -> None:
        """Do nothing: who replays the feed gets a deletion and a record."""

    def _tell(self, at: datetime, change: str, key: Key, data: str) -> None:
        head = {"at": at.isoformat(), "change": change, "project_id": self.project_id, **key._asdict()}
        line = json.dumps(head, ensure_ascii=False, separators=(",", ":"))[:-1] + f',"data":{data}}}\n'
        self.lines.setdefault(f"changes-{self.project_id}-{at:%Y-%m}.jsonl", []).append(line)


def _complete(path: str, start_byte: int, lines: bytes) -> None:
    """Append what of these lines is not there; a file that was taken away begins with them."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        there = os.fstat(fd).st_size - start_byte
        rest = lines[there:] if there >= 0 else lines
        while rest:
            rest = rest[os.write(fd, rest) :]
        os.fsync(fd)
    finally:
        os.close(fd)
