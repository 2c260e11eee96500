"""Where rows go. `open_sink` is all that the job needs of it."""

from sqlalchemy import URL, make_url

from worker.sink.sql import Checkpoint, Counts, SqlSink

__all__ = ["Checkpoint", "Counts", "SqlSink", "open_sink"]


def open_sink(url: str, state_dir: str) -> SqlSink:
    """Return the sink of SYNC_SINK; the default is SQLite in the state directory.

    Raises SinkFailed when it can't be opened or written.
    """
    if url.startswith("jsonl:"):
        from worker.sink.jsonl import JsonlSink  # noqa: PLC0415 - a database has no use for it

        return JsonlSink(url.removeprefix("jsonl:"))
    return SqlSink(make_url(url) if url else URL.create("sqlite", database=f"{state_dir}/redcap.db"))
