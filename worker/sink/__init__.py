"""Where rows go. `open_sink` is all that the job needs of it."""

import os
import shutil
import tempfile

from sqlalchemy import URL, make_url

from worker.errors import SinkFailed
from worker.sink.sql import Checkpoint, Counts, SqlSink

__all__ = ["Checkpoint", "Counts", "SqlSink", "open_sink", "rehearse"]


ROOM_MIN_BYTES = 50_000_000


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
        folder = os.path.abspath(file) if feed else os.path.dirname(os.path.abspath(file))
        there = folder
        while not os.path.exists(there):
            there = os.path.dirname(there)
        # A feed's folder and the state directory are made; another folder of a SQLite file must be there.
        if there != folder and not feed and folder != os.path.abspath(state_dir):
            raise SinkFailed(f"{file} can't be made: there is no folder {folder}")
        try:
            with tempfile.TemporaryFile(dir=there):
                room = shutil.disk_usage(there).free
        except OSError as error:
            raise SinkFailed(f"{file} can't be made: {there} takes no file ({error.strerror})") from None
        if room < ROOM_MIN_BYTES:
            raise SinkFailed(f"{file} has {room / 1e6:,.0f} MB left on its disk")
        return f"{'the change feed in ' if feed else 'SQLite, '}{file}" + ("" if there == file else ", not made yet")
    assert parsed is not None
    sink = SqlSink(parsed, rehearsal=True)
    try:
        return sink.about()
    finally:
        sink.close()


def _url(url: str, state_dir: str) -> URL:
    return make_url(url) if url else URL.create("sqlite", database=f"{state_dir}/redcap.db")
