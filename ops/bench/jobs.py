"""Jobs to measure with."""

from typing import Any


def nothing() -> None:
    """Be a cycle that does nothing."""


def called(**_: Any) -> None:
    """Be a function that does nothing, for the supervisor's own calls."""
