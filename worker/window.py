"""The begin of a window in the server's wall time, which is all that REDCap compares.

Pure: no network, no clock.
"""

from datetime import UTC, datetime, timedelta, tzinfo

# A gap that long may hold two changes of the clock, so that both its ends show one offset.
LONG_GAP = timedelta(days=30)
_HOUR = timedelta(hours=1)


def begin_local(begin: datetime, end: datetime, zone: tzinfo) -> datetime:
    """Return the earliest local time, without a zone, that the interval from begin to end touches.

    When the clock goes back in it, local times repeat: an entry of the second 02:10 is later
    than 02:30 of the first pass, and a filter by local time would leave it out.
    """
    begin, end = begin.astimezone(UTC), end.astimezone(UTC)  # arithmetic within a zone is naive
    earliest = _local(begin, zone)
    moment = begin
    while moment < end:
        following = min(moment + _HOUR, end)
        if _offset(following, zone) != _offset(moment, zone):
            earliest = min(earliest, _local(_change(moment, following, zone), zone))
        moment = following
    return earliest


def begin_by_offsets(begin: datetime, end: datetime, offset_then_s: int, offset_now_s: int) -> datetime:
    """Return the same where only the server's offset from UTC was seen, at both ends.

    Whatever the zone did in between, the smaller offset is never too late; over a long gap it
    may have been smaller by an hour and back.
    """
    smaller = timedelta(seconds=min(offset_then_s, offset_now_s))
    slack = _HOUR if end - begin > LONG_GAP else timedelta()
    return begin.astimezone(UTC).replace(tzinfo=None) + smaller - slack


def _local(moment: datetime, zone: tzinfo) -> datetime:
    return moment.astimezone(zone).replace(tzinfo=None)


def _offset(moment: datetime, zone: tzinfo) -> timedelta:
    # Not utcoffset(): of the hour that comes twice it needs `fold`, which copies easily lose.
    return _local(moment, zone) - moment.replace(tzinfo=None)


def _change(before: datetime, after: datetime, zone: tzinfo) -> datetime:
    """Return the first second with the later offset, between two moments an hour apart."""
    old = _offset(before, zone)
    while after - before > timedelta(seconds=1):
        middle = before + (after - before) / 2
        if _offset(middle, zone) == old:
            before = middle
        else:
            after = middle
    return after.replace(microsecond=0)


def offset_of(server_local: datetime, server_utc: datetime) -> int | None:
    """Return the server's offset from UTC in seconds, from one moment seen in both.

    `server_local` has whole minutes. Offsets are quarters of an hour; a difference that is
    none tells that the two are not one moment: None.
    """
    seconds = (server_local - server_utc.replace(tzinfo=None)).total_seconds()
    quarters = round(seconds / 900)
    if abs(seconds - quarters * 900) > 150 or abs(quarters) > 60:
        return None
    return quarters * 900


def server_format(moment: datetime) -> str:
    """Return a local time as REDCap's parameters want it."""
    return moment.strftime("%Y-%m-%d %H:%M:%S")
