"""What a worker prints, as lines in the log: bounded in length and number, never in its way."""

from typing import Any

from supervisor import log

LINE_MAX_BYTES = 2_000
LINES_MAX_PER_CYCLE = 1_000


class Lines:
    """Cuts one job's output into lines and logs them with the job's and the cycle's name."""

    def __init__(self, job: str) -> None:
        self._job = job
        self._cycle = 0
        self._rest = b""
        self._logged = 0
        self._dropped = 0

    def begin(self, cycle: int) -> None:
        """Say that what comes now belongs to that cycle."""
        self._cycle, self._logged = cycle, 0

    def feed(self, chunk: bytes) -> None:
        """Take what was read; an empty chunk is the end."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if self._rest and (len(self._rest) > LINE_MAX_BYTES or not chunk):
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            self._log(line)

    def end(self) -> None:
        """Say that the worker is gone."""
        self.feed(b"")
        if self._dropped:
            self._say("output_dropped", f"printed {self._dropped:,} more lines, not shown", lines=self._dropped)
            self._dropped = 0

    def _log(self, line: bytes) -> None:
        if self._logged >= LINES_MAX_PER_CYCLE:
            self._dropped += 1
            return
        self._logged += 1
        text = line[:LINE_MAX_BYTES].decode("utf-8", "replace").rstrip("\r")
        # A terminal obeys what a job prints: nothing but characters may reach it.
        self._say("output", "| " + "".join(c if c.isprintable() or c == "\t" else "\ufffd" for c in text), line=text)

    def _say(self, event: str, text: str, **fields: Any) -> None:
        log.say(event, text=f"{self._job} #{self._cycle} {text}", job=self._job, cycle=self._cycle, **fields)
