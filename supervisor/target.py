"""`module:callable`, imported: in children only, so that an upgrade takes effect at the next one."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any


class JobError(Exception):
    """The job can't be found, or can't be called."""


def find(text: str) -> Callable[..., Any]:
    """Return the callable that `module:callable` names. Raises JobError."""
    module_name, _, attribute = text.partition(":")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a console script does not look where it was started
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        where = f" in {error.filename}, line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise JobError(
            f"SUPERVISOR_JOB is {text!r}, and {module_name!r} can't be imported: {type(error).__name__}: {error}{where}"
        ) from error
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise JobError(
                f"SUPERVISOR_JOB is {text!r}, but {module_name!r} has no {attribute!r}: name a callable of that module"
            ) from None
    if not callable(found):
        raise JobError(f"SUPERVISOR_JOB is {text!r}, which is no callable: name a function")
    return found  # type: ignore[no-any-return]


def attribute(text: str, name: str, default: Any) -> Any:
    """Return what a job brings along beside itself; `default` where it has none, or can't be imported.

    Such a job is no fault of whoever asks: its cycle fails, and reports the whole error.
    """
    try:
        return getattr(find(text), name, default)
    except (Exception, SystemExit):
        return default
