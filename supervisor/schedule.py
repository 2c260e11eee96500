"""When a job runs next: a drift-free grid of ticks, back-off after failures, the breaker.

Pure: no clock, no process, no logging; times are seconds of a clock that only grows, and
chance comes in as a number.
"""

import math
from dataclasses import dataclass

BACK_OFF_FIRST_S = 10.0


@dataclass(slots=True)
class Schedule:
    """The ticks of one job: the first at `first_s`, then one every `interval_s`.

    A late start does not move the later ticks. Ticks that passed while nothing could start
    (a long cycle, a suspended machine) are one run, and counted.
    """

    interval_s: float
    first_s: float
    max_failures: int = 0
    failures: int = 0  # in a row
    _passed: int = 0  # ticks that are done with
    _retry_s: float | None = None
    _asked: bool = False

    @property
    def tick_s(self) -> float:
        """The next tick of the grid that no run has answered yet."""
        return self.first_s + self._passed * self.interval_s

    @property
    def due_s(self) -> float:
        """When the job should run next."""
        if self._asked:
            return -math.inf
        return self.tick_s if self._retry_s is None else self._retry_s

    def ask(self) -> None:
        """Make the job due at once; asked twice before it starts is asked once."""
        self._asked = True

    def begin(self, now_s: float) -> int:
        """Say that a run starts now; return the number of ticks that were missed before it."""
        self._asked = False
        self._retry_s = None
        if now_s < self.tick_s:
            return 0
        missed = math.floor((now_s - self.tick_s) / self.interval_s)
        self._passed += missed + 1
        return missed

    def end(self, now_s: float, *, ok: bool, chance: float) -> None:
        """Say how the run ended; `chance` in [0, 1) spreads the retries of many machines."""
        if ok:
            self.failures = 0
            return
        self.failures += 1
        self._retry_s = now_s + back_off_s(self.failures, self.interval_s, chance)

    @property
    def broken(self) -> bool:
        """Whether so many runs failed in a row that going on makes no sense."""
        return 0 < self.max_failures <= self.failures


def back_off_s(failures: int, interval_s: float, chance: float) -> float:
    """Return the wait after that many failures in a row: doubling, half of it by chance."""
    longest_s = min(interval_s, BACK_OFF_FIRST_S * 2.0 ** min(failures - 1, 60))
    return longest_s * (0.5 + 0.5 * chance)
