"""Where rows go. `open_sink` is all that the job needs of it."""

import os

from sqlalchemy import URL, make_url

from worker.errors import SinkFailed
from worker.sink.sql import Checkpoint, Counts, SqlSink

__all__ = ["Checkpoint", "Counts", "SqlSink", "open_sink", "rehearse"]


def open_sink(url: str, state_dir: str) -> SqlSink:
    """Return the sink of SYNC_SINK; the default is SQLite in the state directory.

    Raises SinkFailed when it can't be opened or written.
    """
    if url.startswith("jsonl:"):
        from worker.sink.jsonl import JsonlSink  # noqa: PLC0415 - a database has no use for it

        return JsonlSink(url.removeprefix("jsonl:"))
    return SqlSink(_url(url, state_dir))


def rehearse(url: str, state_dir: str) -> str:
    """Open the sink, make its tables, take them back; return what it is. Makes no file. Raises SinkFailed."""
    feed = url.startswith("jsonl:")
    parsed = None if feed else _url(url, state_dir)
    file = url.removeprefix("jsonl:") if parsed is None else parsed.database or ""
    if feed or (parsed and parsed.drivername == "sqlite" and not os.path.exists(file)):
        there = os.path.abspath(file)
        while not os.path.exists(there):
            there = os.path.dirname(there)
        if not os.access(there, os.W_OK | os.X_OK) or not os.path.isdir(there):
            raise SinkFailed(f"{file} can't be made: {there} is no folder that we may write to")
        return f"{'the change feed in ' if feed else 'SQLite, '}{file}" + ("" if there == file else ", not made yet")
    assert parsed is not None
    sink = SqlSink(parsed, rehearsal=True)
    try:
        return sink.about()
    finally:
        sink.close()


def _url(url: str, state_dir: str) -> URL:
    return make_url(url) if url else URL.create("sqlite", database=f"{state_dir}/redcap.db")
