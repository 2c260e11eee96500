"""Which way into PostgreSQL is the fastest for one batch: rows that are new, and the same rows changed.

`ops/start bench upsert [URL]`; without a URL it starts a server of the tests' own.
"""

import contextlib
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import psycopg

ROWS = 900
ROUNDS = 7
WIDTHS = (60, 600)
TABLE = """
DROP TABLE IF EXISTS bench_rows;
CREATE TABLE bench_rows (project_id BIGINT, record_id TEXT, event TEXT, repeat_instrument TEXT, repeat_instance INTEGER,
    data JSONB NOT NULL, data_hash VARCHAR(32) NOT NULL, first_seen_at TIMESTAMPTZ NOT NULL,
    changed_at TIMESTAMPTZ NOT NULL, deleted_at TIMESTAMPTZ,
    PRIMARY KEY (project_id, record_id, event, repeat_instrument, repeat_instance));
CREATE INDEX ON bench_rows (project_id, changed_at)
"""
COLUMNS = "project_id, record_id, event, repeat_instrument, repeat_instance, data, data_hash, first_seen_at, changed_at"
CONFLICT = (
    "ON CONFLICT (project_id, record_id, event, repeat_instrument, repeat_instance) DO UPDATE SET "
    "data = excluded.data, data_hash = excluded.data_hash, changed_at = excluded.changed_at, deleted_at = NULL"
)
TYPES = ("bigint", "text", "text", "text", "integer", "jsonb", "text", "timestamptz", "timestamptz")
Cursor = psycopg.Cursor[Any]


def executemany(cursor: Cursor, rows: list[tuple[Any, ...]]) -> None:
    """One statement a row, in pipeline mode."""
    cursor.executemany(f"INSERT INTO bench_rows ({COLUMNS}) VALUES ({', '.join(['%s'] * 9)}) {CONFLICT}", rows)


def copy(cursor: Cursor, rows: list[tuple[Any, ...]]) -> None:
    """COPY into a temporary table, and from there."""
    cursor.execute(f"CREATE TEMP TABLE fresh ON COMMIT DROP AS SELECT {COLUMNS} FROM bench_rows LIMIT 0")
    with cursor.copy(f"COPY fresh ({COLUMNS}) FROM STDIN") as into:
        for row in rows:
            into.write_row(row)
    cursor.execute(f"INSERT INTO bench_rows ({COLUMNS}) SELECT {COLUMNS} FROM fresh {CONFLICT}")


def unnest(cursor: Cursor, rows: list[tuple[Any, ...]]) -> None:
    """One statement with an array a column."""
    arrays = ", ".join(f"%s::{kind}[]" for kind in TYPES)
    columns = [list(column) for column in zip(*rows, strict=True)]
    cursor.execute(f"INSERT INTO bench_rows ({COLUMNS}) SELECT * FROM unnest({arrays}) {CONFLICT}", columns)


WAYS: dict[str, Callable[[Cursor, list[tuple[Any, ...]]], None]] = {
    "executemany": executemany,
    "COPY and INSERT … SELECT": copy,
    "INSERT … SELECT unnest": unnest,
}


def _rows(fields: int, word: str) -> list[tuple[Any, ...]]:
    now = datetime.now(UTC)
    data = "{" + ",".join(f'"field_{number:04d}":"{word} {number}"' for number in range(fields)) + "}"
    return [(1, str(number), "", "", 0, data, word, now, now) for number in range(ROWS)]


def main() -> int:
    """Measure; print the rows a second of each way."""
    with contextlib.ExitStack() as stack:
        if sys.argv[2:]:
            url = sys.argv[2]
        else:
            from tests.sync import postgres  # noqa: PLC0415 - not there in an installed product

            url = stack.enter_context(postgres.server())
        connection = stack.enter_context(psycopg.connect(url.replace("+psycopg", "")))
        for fields in WIDTHS:
            seen: dict[tuple[str, str], list[float]] = {}
            for _ in range(ROUNDS):
                for name, way in WAYS.items():
                    connection.execute(TABLE)
                    connection.commit()
                    for what, word in (("new", "first"), ("changed", "second")):
                        rows = _rows(fields, word)
                        started_s = time.perf_counter()
                        with connection.transaction():
                            way(connection.cursor(), rows)
                        seen.setdefault((what, name), []).append(time.perf_counter() - started_s)
            print(f"{ROWS} rows of {fields} fields in one transaction")
            for (what, name), times in sorted(seen.items()):
                print(f"  {what:<8} {name:<26} {ROWS / statistics.median(times):>8,.0f} rows/s")
    return 0
