"""The job: `worker.job:sync` is what the supervisor calls, and what its commands ask."""

import sqlite3
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from worker import metrics, settings
from worker.errors import CATALOGUE, StateFailed, SyncError, UnexpectedError
from worker.ids import IdList
from worker.redcap import Client
from worker.sink import open_sink
from worker.sync import Cycle, Sync

LOOK_S = 0.2  # how soon a wait ends when the service is stopped


class _Stopped(Exception):
    """A drain was asked for in the middle of a wait: whole batches are committed, and no other is begun."""


def sync(cycle: Cycle) -> dict[str, Any]:
    """Bring the sink up to date with the project; return the summary.

    Raises SyncError with what to do; nothing but whole batches is ever committed, and the
    next cycle does the rest. What was done until then is the error's `summary`.
    """
    work = None
    try:
        redcap, sync_settings = settings.load()
        with ExitStack() as stack:
            sink = open_sink(sync_settings.sink, cycle.state_dir)
            stack.callback(sink.close)
            client = Client(redcap, cycle.remaining_s, cycle.state_dir, lambda wait_s: _sleep(cycle, wait_s))
            stack.callback(client.close)
            ids = IdList(cycle.state_dir)
            stack.callback(ids.close)
            work = Sync(cycle, redcap, sync_settings, client, sink, ids)
            return work.run()
    except _Stopped:
        return work.summary() if work else {}
    except Exception as error:
        known = _known(error, cycle.state_dir)
        known.summary = work.summary() if work else {}  # type: ignore[attr-defined]
        if known is error:
            raise
        raise known from None


def _sleep(cycle: Cycle, wait_s: float) -> None:
    """Wait before the next request. A server in maintenance may ask for minutes, which no stop waits for."""
    until_s = time.monotonic() + wait_s
    while (left_s := until_s - time.monotonic()) > 0:
        if cycle.stopping:
            raise _Stopped
        time.sleep(min(left_s, LOOK_S))


def _known(error: Exception, state_dir: str) -> Exception:
    """Return the error as one that says what to do, and quotes no value."""
    if isinstance(error, SyncError | MemoryError):
        return error
    if isinstance(error, OSError | sqlite3.Error):  # of the ids, or of the requests' times
        what = f"{error.filename or ''} {error.strerror}".strip() if isinstance(error, OSError) else error
        return StateFailed(f"{state_dir} can't be used ({what}): is the disk full, or the folder not ours?")
    # A defect's own text may quote a record, so only its type and place are told.
    last = traceback.extract_tb(error.__traceback__)[-1]
    return UnexpectedError(
        f"{type(error).__name__} at {last.filename.rpartition('/')[2]}:{last.lineno}: a defect of the sync; "
        "please report it with this line"
    ).with_traceback(error.__traceback__)


def _check(state_dir: str) -> Iterator[dict[str, str]]:
    from worker import check  # noqa: PLC0415 - a cycle has no use for it

    return check.lines(state_dir)


# What the supervisor's commands ask a job for.
sync.settings = settings.MODELS  # type: ignore[attr-defined]
sync.settings_faults = settings.faults  # type: ignore[attr-defined]
sync.errors = CATALOGUE  # type: ignore[attr-defined]
sync.check = _check  # type: ignore[attr-defined]
sync.metrics = metrics.METRICS  # type: ignore[attr-defined]
