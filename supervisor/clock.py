"""The two times: seconds that only grow, for deadlines; wall time, for people."""

import time
from datetime import UTC, datetime


class Clock:
    """Tell both times. Tests replace it by one that they move by hand."""

    def now_s(self) -> float:
        """Return seconds since boot, suspend included.

        `time.monotonic` stands still while the machine is suspended, so a tick that is due
        at eight would come late by the length of the night (clock_gettime(2)).
        """
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall(self) -> datetime:
        """Return the wall time in UTC."""
        return datetime.now(UTC)


def rfc3339(moment: datetime) -> str:
    """Return `moment` as RFC 3339 in UTC with milliseconds: 2026-11-24T06:30:00.000Z."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
