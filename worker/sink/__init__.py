"""Where rows go. `open_sink` is all that the job needs of it."""

from worker.sink.sql import Batch, Checkpoint, SqlSink

__all__ = ["Batch", "Checkpoint", "SqlSink", "open_sink"]


def open_sink(url: str, state_dir: str) -> SqlSink:
    """Return the sink of SYNC_SINK; the default is SQLite in the state directory.

    Raises SinkFailed when it can't be opened or written.
    """
    return SqlSink(url or f"sqlite:///{state_dir}/redcap.db")
