"""A program on a terminal of a given size, and what is to be seen on its screen."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyte

PATIENCE_S = 30.0


class Screen:
    """The screen of a running program; look at it with `wait`."""

    def __init__(self, program: subprocess.Popen[bytes], fd: int, columns: int, lines: int) -> None:
        self.program = program
        self.raw = b""
        self.seen: list[list[str]] = []  # each state of the screen that was met
        self._fd = fd
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)

    @property
    def lines(self) -> list[str]:
        """What is on the screen now, without the empty lines."""
        return [line.rstrip() for line in self._screen.display if line.strip()]

    @property
    def colors(self) -> set[str]:
        """The colours in use on it."""
        return {cell.fg for row in self._screen.buffer.values() for cell in row.values()}

    def _read(self) -> bool:
        """Take in what was written; return whether there may be more."""
        if not select.select([self._fd], [], [], 0.05)[0]:
            return self.program.poll() is None
        try:
            piece = os.read(self._fd, 65_536)
        except OSError:  # the other side is closed
            return False
        self.raw += piece
        self._stream.feed(piece)
        self.seen.append(self.lines)
        return bool(piece)

    def wait(self, condition: Callable[[list[str]], object]) -> list[str]:
        """Read until the lines on the screen fulfil a condition; return them."""
        until_s = time.monotonic() + PATIENCE_S
        while not condition(self.lines):
            assert self._read() or condition(self.lines), f"the program is over; the screen: {self.lines}"
            assert time.monotonic() < until_s, f"this did not come onto the screen: {self.lines}"
        return self.lines

    def finish(self) -> int:
        """Read to the program's end; return its exit code."""
        while self._read():
            pass
        return self.program.wait(PATIENCE_S)


@contextmanager
def running(command: list[str], env: dict[str, str], columns: int = 120, lines: int = 30) -> Iterator[Screen]:
    """Run a program whose standard streams are a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    env = {name: value for name, value in env.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")} | env
    program = subprocess.Popen(
        command, env={"TERM": "xterm-256color"} | env, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    try:
        yield Screen(program, ours, columns, lines)
    finally:
        os.close(ours)
        if program.poll() is None:
            program.kill()
            program.wait()
