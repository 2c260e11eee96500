"""Jobs to measure with."""

import time
from typing import Any


def nothing() -> None:
    """Be a cycle that does nothing."""


def called(**_: Any) -> None:
    """Be a function that does nothing, for the supervisor's own calls."""


def grow(bytes_per_s: float) -> None:
    """Write new pages for ever, at that rate; at 0 as fast as the machine does."""
    held = []
    piece_bytes = 1 << 20
    started_s = time.monotonic()
    while True:
        held.append(b"x" * piece_bytes)
        if bytes_per_s:
            ahead_s = len(held) * piece_bytes / bytes_per_s - (time.monotonic() - started_s)
            if ahead_s > 0:
                time.sleep(ahead_s)


def hold(size_bytes: int, seconds: float) -> None:
    """Hold memory, and do nothing."""
    held = b"x" * size_bytes
    time.sleep(seconds)
    del held
