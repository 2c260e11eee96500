"""What the project's log tells: deletions, renames, and the server's offset from UTC.

The log's details hold patients' data. They are looked at here, row by row, and never kept.
"""

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta

from worker.errors import RightMissing
from worker.redcap import Client
from worker.stream import decoded
from worker.window import offset_of

_MINUTE = "%Y-%m-%d %H:%M"
_NEWEST_ROWS = 1_000  # other people's: this client's own rows are behind them where the server is busy
# Offsets from UTC go from -12 to +14 hours.
_ANY_OFFSET = timedelta(hours=13)
_CHANGE_OF_CLOCK = timedelta(hours=2)


def read_log(
    client: Client, begin_local: datetime, id_field: str, mark: Callable[[str, Iterable[str]], None]
) -> bool | None:
    """Mark the records that were `deleted` since a local time of the server, and as `wanted` those that were edited.

    Returns whether one was renamed; None without the Logging right, where nothing is known.
    """
    begin = {"beginTime": (begin_local - timedelta(minutes=1)).strftime(_MINUTE)}  # whole minutes, strictly after
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
        client.read("log", {**begin, "logtype": "record_delete"}, lambda rows: mark("deleted", ids(rows)))
        renamed = False  # a deletion's details begin as a rename's do
        client.read("log", {**begin, "logtype": "record_edit"}, lambda rows: mark("wanted", ids(rows)))
    except RightMissing:
        return None
    return renamed


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
