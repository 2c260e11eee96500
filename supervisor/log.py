"""Log lines: JSON for machines, aligned text for a terminal; on standard error."""

import json
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from supervisor.clock import Clock, rfc3339

logger = logging.getLogger("supervisor")


_before: list[Callable[[], object]] = []


def _call_before(_: logging.LogRecord) -> bool:
    for call in _before:
        call()
    return True


def set_up(log_format: str, level: str) -> None:
    """Send the supervisor's lines to standard error in `json` or `text`; `auto` is text on a terminal."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Text() if log_format == "text" or (log_format == "auto" and os.isatty(2)) else _Json())
    handler.addFilter(_call_before)
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False


def before_each(call: Callable[[], object]) -> None:
    """Have something done before each line: what is drawn on the terminal is taken away."""
    _before[:] = [call]


def is_text() -> bool:
    """Return whether people read the lines, not programs."""
    return any(isinstance(handler.formatter, _Text) for handler in logger.handlers)


def say(event: str, level: int = logging.INFO, text: str = "", **fields: Any) -> None:
    """Log one event; `text` is its line on a terminal, `fields` its keys in JSON."""
    if logger.isEnabledFor(level):
        logger.log(level, text or event, extra={"event": event, "fields": fields})


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"time": rfc3339(Clock().wall()), "level": record.levelname}
        line["event"] = getattr(record, "event", record.name)
        fields = getattr(record, "fields", {})
        if not fields:  # where there are fields they say all that the text says
            line["message"] = record.getMessage()
        return json.dumps({**line, **fields}, separators=(",", ":"), default=str)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = Clock().wall().astimezone().strftime("%H:%M:%S")
        # A cycle's line says by its outcome what it is, and stands in a column with the others.
        marked = record.levelno >= logging.WARNING and getattr(record, "event", "") != "cycle"
        mark = f"{record.levelname}: " if marked else ""
        code = getattr(record, "fields", {}).get("code")
        return f"{time}  {mark}{record.getMessage()}" + (f" (redcap-sync explain {code})" if code else "")
