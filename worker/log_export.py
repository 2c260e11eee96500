"""What the project's log tells: deletions, renames, and the server's offset from UTC.

The log's details hold patients' data. They are looked at here, row by row, and never kept.
"""

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta

from worker.errors import RightMissing, SyncError
from worker.redcap import Client
from worker.stream import decoded
from worker.window import offset_of

_MINUTE = "%Y-%m-%d %H:%M"
_NEWEST_ROWS = 1_000  # other people's: this client's own rows are behind them where the server is busy
# Offsets from UTC go from -12 to +14 hours.
_ANY_OFFSET = timedelta(hours=13)
_ANY_OFFSET_EAST = timedelta(hours=14)
_CHANGE_OF_CLOCK = timedelta(hours=2)
_MINUTES = timedelta(minutes=1)
_SHORTEST = timedelta(hours=1)  # of a window that is halved


def read_log(
    client: Client, begin_local: datetime, id_field: str, mark: Callable[[str, Iterable[str]], None]
) -> bool | None:
    """Mark the records that were `deleted` since a local time of the server, and as `wanted` those that were made or edited.

    Returns whether one was renamed; None without the Logging right, where nothing is known.
    """
    renamed = False

    def ids(rows: Iterator[bytes]) -> Iterator[str]:
        # A rename is logged as an edit whose details begin with the id field. A record that lost
        # its last row to an edit is in no answer to a range of dates: the log alone names it.
        nonlocal renamed
        for row in map(decoded, rows):
            renamed = renamed or str(row.get("details", "")).startswith(f"{id_field} = ")
            if row.get("record"):
                yield str(row["record"])

    try:
        _read(client, "record_delete", begin_local, lambda rows: mark("deleted", ids(rows)))
        _read(client, "record_add", begin_local, lambda rows: mark("wanted", ids(rows)))
        renamed = False  # the details of the others begin as a rename's do
        _read(client, "record_edit", begin_local, lambda rows: mark("wanted", ids(rows)))
    except RightMissing:
        return None
    return renamed


def _read(
    client: Client, kind: str, begin: datetime, consume: Callable[[Iterator[bytes]], None], end: datetime | None = None
) -> None:
    """Read the entries of one kind; a window that is too much for the server in halves: after weeks without a cycle it may be."""
    window = {"logtype": kind, "beginTime": (begin - _MINUTES).strftime(_MINUTE)}  # whole minutes, strictly after
    if end is not None:
        window["endTime"] = (end + _MINUTES).strftime(_MINUTE)
    until = end or (client.server_time or datetime.now(UTC)).replace(tzinfo=None) + _ANY_OFFSET_EAST
    try:
        client.read("log", window, consume, divisible=until - begin > _SHORTEST)
    except SyncError as error:
        if not error.smaller or until - begin <= _SHORTEST:
            raise
        middle = begin + (until - begin) / 2
        client.counters.retries += 1
        _read(client, kind, begin, consume, middle)
        _read(client, kind, middle, consume, end)


def server_offset(client: Client, last_offset_s: int | None) -> int | None:
    """Return the server's offset from UTC in seconds, from its newest log rows and its Date header.

    This client's own requests of a moment ago are in the log, so the newest row of an API
    export is of now. None when the token may not read the log, or no row is of now.
    """
    server_utc = client.server_time
    if server_utc is None:
        return None

    def newest(rows: Iterator[bytes]) -> int | None:
        for number, row in enumerate(map(decoded, rows)):
            if number >= _NEWEST_ROWS:
                return None
            if "API" in str(row.get("action", "")):
                try:
                    at = datetime.strptime(str(row.get("timestamp", ""))[:16], _MINUTE)  # noqa: DTZ007
                except ValueError:
                    return None
                return offset_of(at, server_utc)
        return None

    def ask(begin: datetime) -> int | None:
        return client.read("log", {"beginTime": begin.strftime(_MINUTE)}, newest)

    utc = server_utc.replace(tzinfo=None)
    try:
        if (
            last_offset_s is not None
            and ask(utc + timedelta(seconds=last_offset_s) - _CHANGE_OF_CLOCK) == last_offset_s
        ):
            return last_offset_s
        return ask(utc - _ANY_OFFSET)  # more rows: where the clock was put far back, those of now are behind the old
    except RightMissing:
        return None
