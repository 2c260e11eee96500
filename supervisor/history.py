"""The journal, read as far as it is sound; the rest is counted and said. Never imported in the service.

A line may be cut off by a power cut, be of an older version, or be somebody's doing: nothing of it is
believed but what has the type and the range that it must have.
"""

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from typing import Annotated, Any, BinaryIO, Literal, get_args

import msgspec
from msgspec import Meta

from supervisor.report import BEFORE, JOURNAL

LINE_MAX_BYTES = 256 * 1024  # a report has a summary of at most 64 KiB, and a traceback of 16,000 characters
Size = Annotated[int, Meta(ge=0, le=1 << 53)]
Count = Annotated[int, Meta(ge=0, le=1 << 53)]
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
YEARS = (2000, 2200)  # with others, sums and zones go out of what a datetime holds
Time = Annotated[datetime, Meta(tz=True)]
Outcome = Literal["ok", "failed", "crashed", "ceiling", "timeout", "stopped", "oom"]
OUTCOMES: tuple[str, ...] = get_args(Outcome)


class Error(msgspec.Struct, frozen=True):
    """Why a cycle was not ok."""

    type: Annotated[str, Meta(max_length=500)]
    message: str = ""
    traceback: str = ""


class Report(msgspec.Struct, frozen=True):
    """One cycle, with what every version of its report has, and what some have."""

    event: Literal["cycle"]
    job: Annotated[str, Meta(min_length=1, max_length=500)]
    cycle: Count
    outcome: Outcome
    started_at: Time
    duration_s: Seconds
    worker_peak_rss_bytes: Size = 0
    rss_ceiling_bytes: Size = 0
    supervisor_rss_bytes: Size = 0
    missed_ticks: Count = 0
    recycled: str | None = None
    summary: dict[str, Any] = {}
    error: Error | None = None


def at_once(path: str, flags: int) -> int:
    """Open for reading without a wait, as `open`'s opener: a pipe would wait for its other end."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


class History:
    """Iterate over it for the reports, oldest first; `unreadable` counts the other lines by what is wrong with them.

    `last_bytes` bounds how much is read; with `name` and `from_byte` it is the rest of that one file.
    """

    def __init__(self, state_dir: str, *, last_bytes: int | None = None, name: str = "", from_byte: int = 0) -> None:
        self.unreadable: Counter[str] = Counter()
        self.read = 0  # reports that were sound
        self.next_byte = from_byte  # behind the last whole line of the last file
        self._paths = [os.path.join(state_dir, one) for one in ([name] if name else [JOURNAL + BEFORE, JOURNAL])]
        self._from_byte = from_byte
        self._last_bytes = last_bytes
        self._decode = msgspec.json.Decoder(Report).decode

    def __iter__(self) -> Iterator[Report]:
        """Read the lines. Raises OSError, but for a journal that is not there yet."""
        files = []
        with ExitStack() as stack:
            for path in self._paths:
                try:
                    file = stack.enter_context(open(path, "rb", opener=at_once))  # before one of them is renamed
                except FileNotFoundError:
                    continue
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise OSError(errno.EINVAL, "it is no regular file", path)
                files.append(file)
            sizes = [os.fstat(file.fileno()).st_size for file in files]
            for index, file in enumerate(files):
                left = None if self._last_bytes is None else self._last_bytes - sum(sizes[index + 1 :])
                yield from self._of_file(file, sizes[index], left)

    def _of_file(self, file: BinaryIO, size: int, last_bytes: int | None) -> Iterator[Report]:
        if last_bytes is not None and last_bytes <= 0:
            return
        start = self._from_byte if self._from_byte <= size else 0  # it was begun anew
        if last_bytes is not None and size - start > last_bytes:
            file.seek(size - last_bytes)
            file.readline(LINE_MAX_BYTES)  # the rest of a line
        else:
            file.seek(start)
        self.next_byte = file.tell()
        while line := file.readline(LINE_MAX_BYTES):
            report = None
            if line.endswith(b"\n"):
                report = self._report(line)
            elif len(line) < LINE_MAX_BYTES:
                self.unreadable["cut off"] += 1
                return
            else:
                self.unreadable["too long"] += 1
                while line and not line.endswith(b"\n"):
                    line = file.readline(LINE_MAX_BYTES)
            self.next_byte = file.tell()
            if report is not None:
                self.read += 1
                yield report

    def _report(self, line: bytes) -> Report | None:
        if not line.strip():
            return None  # the end of a line that was cut off
        try:
            report = self._decode(line)
            if YEARS[0] <= report.started_at.year <= YEARS[1]:
                return report
            self.unreadable["no report of a cycle"] += 1
        except msgspec.ValidationError:
            self.unreadable["no report of a cycle"] += 1
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.unreadable["no JSON"] += 1
        return None

    def said(self) -> str:
        """Return what was not read, in words; empty when all was."""
        count = self.unreadable.total()
        kinds = ", ".join(f"{number} {kind}" for kind, number in self.unreadable.items())
        return f"{count:,} {'line' if count == 1 else 'lines'} of the journal can't be read ({kinds})" if count else ""
