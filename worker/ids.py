"""The record ids of a cycle on disk, in order: a million of them take no memory."""

import os
import sqlite3
from collections.abc import Iterable

CACHE_KIB = 8_000


class IdList:
    """Ids with four marks: `rows` that the server lists of each, `known` to the sink, `deleted` by the log, `wanted`.

    In a temporary file of `folder` that has no name, so nothing is left of it behind the process.
    """

    def __init__(self, folder: str) -> None:
        os.environ["SQLITE_TMPDIR"] = folder  # the only way to say it (sqlite.org/tempfiles.html)
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._db.execute("PRAGMA journal_mode = OFF")
        marks = ", ".join(f"{name} INTEGER DEFAULT 0" for name in ("rows", "known", "deleted", "wanted"))
        self._db.execute(f"CREATE TABLE ids (id TEXT PRIMARY KEY, {marks}) WITHOUT ROWID")

    def close(self) -> None:
        """Give the file back."""
        self._db.close()

    def forget(self) -> None:
        """Be empty again."""
        self._db.execute("DELETE FROM ids")

    def mark(self, column: str, ids: Iterable[str], *, anew: bool = False) -> None:
        """Mark each id as often as it comes; `anew` forgets the marks of before."""
        if not self._db.in_transaction:  # else an answer broke off, and comes again
            self._db.execute("BEGIN")
        if anew:
            self._db.execute(f"UPDATE ids SET {column} = 0 WHERE {column}")
        add = f"INSERT INTO ids (id, {column}) VALUES (?, 1) ON CONFLICT DO UPDATE SET {column} = {column} + 1"
        self._db.executemany(add, ((one,) for one in ids))
        self._db.execute("COMMIT")

    def want(self, which: str) -> None:
        """Mark as wanted what a condition on the marks picks."""
        self._db.execute(f"UPDATE ids SET wanted = 1 WHERE {which}")

    def count(self, which: str, *values: str) -> int:
        """Return how many ids a condition on the marks picks."""
        return int(self._db.execute(f"SELECT COUNT(*) FROM ids WHERE {which}", values).fetchone()[0])

    def some(self, which: str, limit: int) -> list[str]:
        """Return ids that a condition on the marks picks; none when there are more than `limit`."""
        found = self._db.execute(f"SELECT id FROM ids WHERE {which} LIMIT ?", (limit + 1,)).fetchall()
        return [record_id for (record_id,) in found] if len(found) <= limit else []

    def listed(self, limit: int) -> list[str]:
        """Return some ids that the server lists."""
        return [one for (one,) in self._db.execute("SELECT id FROM ids WHERE rows > 0 LIMIT ?", (limit,))]

    def after(self, record_id: str, limit: int) -> dict[str, int]:
        """Return the next wanted ids behind one, in order, with the rows that the server lists of each."""
        query = "SELECT id, rows FROM ids WHERE wanted AND id > ? ORDER BY id LIMIT ?"
        return dict(self._db.execute(query, (record_id, limit)))
