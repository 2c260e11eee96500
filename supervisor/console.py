"""Progress: on a terminal one line that is drawn over, elsewhere a line in the log once a minute."""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

from supervisor import log, terminal
from supervisor.messages import Message

BAR_CELLS = 20
BAR = 9  # its importance: the first to give way, and not for a log
PLAIN_EVERY_S = 60.0
HIGH, HIGHER = 0.75, 0.9  # shares of the ceiling that are worth a colour
RATE_AFTER_S = 0.5  # what was done in less says little of the rate


@dataclass(slots=True)
class Stretch:
    """What one job does without a break: so many of one unit, since then."""

    unit: str
    total: int | None
    from_done: int
    from_s: float
    done: int = 0
    plain_s: float = 0.0  # when a plain line was last written

    def rate(self, now_s: float) -> float | None:
        """Return how many a second were done; None while that can't be told."""
        took_s = now_s - self.from_s
        return (self.done - self.from_done) / took_s if took_s >= RATE_AFTER_S and self.done > self.from_done else None


class Console:
    """Shows the progress of the job that spoke last, on `stream` where that is a terminal."""

    def __init__(self, stream: TextIO, now_s: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._now_s = now_s
        self._drawn = False
        self._stretches: dict[str, Stretch] = {}
        self.terminal = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._color = self.terminal and not os.environ.get("NO_COLOR")

    def progress(self, job: str, rss_bytes: int, ceiling_bytes: int, about: Message) -> None:
        """Show what `state.progress` let through of what a worker says."""
        now_s = self._now_s()
        if about["done"] is None:
            return
        stretch = self._stretches.get(job)
        if (
            stretch is None
            or (stretch.unit, stretch.total) != (about["unit"], about["total"])
            or about["done"] < stretch.done
        ):
            stretch = Stretch(about["unit"], about["total"], about["done"], now_s, plain_s=now_s)
            self._stretches[job] = stretch
        stretch.done = about["done"]
        if self.terminal:
            line = drawn(parts(job, stretch, now_s, rss_bytes, ceiling_bytes), self.columns())
            if self._color and ceiling_bytes and rss_bytes >= HIGH * ceiling_bytes:
                line = f"\x1b[{31 if rss_bytes >= HIGHER * ceiling_bytes else 33}m{line}\x1b[0m"
            self._stream.write(f"\r\x1b[K{line}")
            self._stream.flush()
            self._drawn = True
        elif now_s - stretch.plain_s >= PLAIN_EVERY_S:
            stretch.plain_s = now_s
            line = "  ".join(
                text for importance, text in parts(job, stretch, now_s, rss_bytes, ceiling_bytes) if importance != BAR
            )
            log.say("progress", text=line, job=job, **about, rss_bytes=rss_bytes, rss_ceiling_bytes=ceiling_bytes)

    def columns(self) -> int:
        """Return how wide the terminal is."""
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except (OSError, ValueError):
            return shutil.get_terminal_size().columns

    def end(self, job: str) -> None:
        """Forget a cycle that is over, and take its line away, so that a log line stands there."""
        self._stretches.pop(job, None)
        self.clear()

    def clear(self) -> None:
        """Take the line away."""
        if self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._drawn = False


def parts(job: str, stretch: Stretch, now_s: float, rss_bytes: int, ceiling_bytes: int) -> list[tuple[int, str]]:
    """Return what there is to show, in its order; the larger the number, the earlier it gives way to a narrow terminal."""
    total, rate = stretch.total, stretch.rate(now_s)
    count = f"{stretch.done:,} of {total:,}" if total else f"{stretch.done:,}"
    shown = [(0, terminal.plain(job))]
    if total:
        shown.append((BAR, terminal.bar(stretch.done, total, BAR_CELLS)))
        shown.append((1, f"{max(0, min(100, 100 * stretch.done // total))} %"))
    shown.append((2, f"{count} {terminal.plain(stretch.unit)}".rstrip()))
    if rate:
        shown.append((5, f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s"))
    shown.append((4, f"{rss_bytes / 1e6:,.0f} of {ceiling_bytes / 1e6:,.0f} MB"))
    if rate and total and total >= stretch.done:
        shown.append((3, f"{_time((total - stretch.done) / rate)} left"))
    return shown


def drawn(shown: list[tuple[int, str]], columns: int) -> str:
    """Return the most important parts that fit one line of a terminal, cut if need be."""
    while len(shown) > 1 and sum(len(text) + 2 for _, text in shown) - 2 >= columns:
        shown = [part for part in shown if part != max(shown)]
    return "  ".join(text for _, text in shown)[: max(1, columns - 1)]


def _time(seconds: float) -> str:
    minutes, second = divmod(int(min(seconds, 1e7)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}" if minutes >= 60 else f"{minutes}:{second:02}"
