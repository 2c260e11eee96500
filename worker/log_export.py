"""What the project's log tells: deletions, renames, and the server's offset from UTC.

The log's details hold patients' data. They are looked at here, row by row, and never kept.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from worker.errors import RightMissing
from worker.redcap import Client, Row
from worker.window import offset_of

_MINUTE = "%Y-%m-%d %H:%M"
_NEWEST_ROWS = 20
# Offsets from UTC go from -12 to +14 hours.
_ANY_OFFSET = timedelta(hours=13)
_CHANGE_OF_CLOCK = timedelta(hours=2)


@dataclass(slots=True)
class LogWindow:
    """What happened in a window; nothing is known of it without the Logging right."""

    touched: set[str] = field(default_factory=set)  # records that were edited or deleted
    renamed: bool = False


def read_log(client: Client, begin_local: datetime, id_field: str) -> LogWindow:
    """Return the deletions and whether there was a rename since a local time of the server."""
    begin = {"beginTime": (begin_local - timedelta(minutes=1)).strftime(_MINUTE)}  # whole minutes, strictly after

    def ids(rows: Iterator[Row]) -> set[str]:
        return {str(row["record"]) for row in rows if row.get("record")}

    def edits(rows: Iterator[Row]) -> tuple[set[str], bool]:
        # A rename is logged as an edit whose details begin with the id field. A record that lost
        # its last row to an edit is in no answer to a range of dates: the log alone names it.
        edited: set[str] = set()
        renamed = False
        for row in rows:
            edited.add(str(row.get("record") or ""))
            renamed = renamed or str(row.get("details", "")).startswith(f"{id_field} = ")
        return edited - {""}, renamed

    try:
        deleted = client.read("log", {**begin, "logtype": "record_delete"}, ids)
        edited, renamed = client.read("log", {**begin, "logtype": "record_edit"}, edits)
    except RightMissing:
        return LogWindow()
    return LogWindow(deleted | edited, renamed)


def server_offset(client: Client, last_offset_s: int | None) -> int | None:
    """Return the server's offset from UTC in seconds, from its newest log rows and its Date header.

    This client's own requests of a moment ago are in the log, so the newest row of an API
    export is of now. None when the token may not read the log, or no row is of now.
    """
    server_utc = client.server_time
    if server_utc is None:
        return None
    begin = server_utc.replace(tzinfo=None) - _ANY_OFFSET
    if last_offset_s is not None:
        begin += _ANY_OFFSET + timedelta(seconds=last_offset_s) - _CHANGE_OF_CLOCK

    def newest(rows: Iterator[Row]) -> int | None:
        for number, row in enumerate(rows):
            if number >= _NEWEST_ROWS:
                return None
            if "API" in str(row.get("action", "")):
                try:
                    at = datetime.strptime(str(row.get("timestamp", ""))[:16], _MINUTE)  # noqa: DTZ007
                except ValueError:
                    return None
                return offset_of(at, server_utc)
        return None

    try:
        return client.read("log", {"beginTime": begin.strftime(_MINUTE)}, newest)
    except RightMissing:
        return None
