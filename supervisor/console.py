"""Progress on a terminal: one line that is drawn over, and nothing at all elsewhere."""

import os
import shutil
from typing import TextIO

from supervisor import terminal
from supervisor.messages import Message

BAR_CELLS = 24
WIDE_COLUMNS = 80


class Console:
    """Draws the progress of the job that spoke last, on `stream` where that is a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._drawn = False
        self._terminal = stream.isatty() and os.environ.get("TERM") != "dumb"

    def progress(self, job: str, rss_bytes: int, said: Message) -> None:
        """Draw `done` of `total`, and what the worker holds now."""
        if self._terminal:
            columns = shutil.get_terminal_size().columns
            line = progress_line(job, rss_bytes, said, BAR_CELLS if columns >= WIDE_COLUMNS else 0)[: columns - 1]
            self._stream.write(f"\r\x1b[K{line}")
            self._stream.flush()
            self._drawn = True

    def clear(self) -> None:
        """Take the line away, so that a log line stands where it was."""
        if self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._drawn = False


def progress_line(job: str, rss_bytes: int, said: Message, cells: int = BAR_CELLS) -> str:
    """Return the line that shows one progress message; what a worker says is never trusted."""
    done, total = said.get("done"), said.get("total")
    unit = "".join(c for c in str(said.get("unit", "")) if c.isprintable())[:40]
    if not isinstance(done, int) or not isinstance(total, int | None):
        return f"{job}"
    if not total:
        return f"{job}  {done:,} {unit}  {rss_bytes / 1e6:.0f} MB"
    bar = terminal.bar(done, total, cells) + " " if cells else ""
    return f"{job}  {bar}{done:,} of {total:,} {unit}  {rss_bytes / 1e6:.0f} MB"
