"""What a worker prints, as lines in the log: bounded in length and number, never in its way."""

from collections.abc import Mapping
from typing import Any

from supervisor import log
from supervisor.failure import mask

LINE_MAX_BYTES = 2_000
LINES_MAX_PER_CYCLE = 1_000
SECRET_MAX_BYTES = 200


class Lines:
    """Cuts one job's output into lines and logs them with the job's and the cycle's name."""

    def __init__(self, job: str) -> None:
        self._job = job
        self._cycle = 0
        self._rest = b""
        self._env: Mapping[str, str] = {}
        self._logged = 0
        self._dropped = 0

    def begin(self, cycle: int, env: Mapping[str, str]) -> None:
        """Say that what comes now belongs to that cycle, whose job has these variables more: its secrets are masked."""
        self._cycle, self._logged, self._env = cycle, 0, env

    def feed(self, chunk: bytes) -> None:
        """Take what was read; an empty chunk is the end."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > LINE_MAX_BYTES:  # its end stays: half a secret could not be told
            whole = mask(self._rest.decode("utf-8", "surrogateescape"), self._env).encode("utf-8", "surrogateescape")
            lines, self._rest = [*lines, whole[:-SECRET_MAX_BYTES]], whole[-SECRET_MAX_BYTES:]
        if self._rest and not chunk:
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
        text = mask(line.decode("utf-8", "replace"), self._env)[:LINE_MAX_BYTES].rstrip("\r")
        # A terminal obeys what a job prints: nothing but characters may reach it.
        self._say("output", "| " + "".join(c if c.isprintable() or c == "\t" else "\ufffd" for c in text), line=text)

    def _say(self, event: str, text: str, **fields: Any) -> None:
        log.say(event, text=f"{self._job} #{self._cycle} {text}", job=self._job, cycle=self._cycle, **fields)
