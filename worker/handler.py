"""SYNC_HANDLER: somebody's own callable on each record's rows, inside the transaction that writes them."""

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection

from worker import records
from worker.errors import AnswerMalformed, HandlerFailed
from worker.records import Keys, Record, Row

# The record's id, its rows as REDCap sent them (none: the record is gone), the transaction's
# connection. Returns the rows to keep: the same, changed ones, more; an empty list leaves the record out.
Handler = Callable[[str, list[Row], Connection], list[Row]]


def find(target: str) -> Handler | None:
    """Return the callable of `module:callable`, None for an empty text. Raises ValueError."""
    if not target:
        return None
    module_name, _, attribute = target.partition(":")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:
        raise ValueError(f"can't be imported as module:callable ({type(error).__name__}): {error}") from None
    if not callable(found):
        raise ValueError("names something that is no callable: name a function")  # noqa: TRY004 - of a setting
    return found  # type: ignore[no-any-return]


def at_work(handler: Handler, keys: Keys) -> Callable[[str, Record, Connection], Record]:
    """Return a function from a record to what the handler makes of it; a record that is gone stays so.

    It raises HandlerFailed, which names the record's position and the handler's line, never a value.
    """
    position = 0

    def handle(record_id: str, record: Record, connection: Connection) -> Record:
        nonlocal position
        position += 1
        rows = [json.loads(row.data) for row in record.values()]
        try:
            made: Any = handler(record_id, rows, connection)
        except MemoryError:
            raise
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{os.path.basename(last.filename)}:{last.lineno}"
            raise HandlerFailed(
                f"SYNC_HANDLER raised {type(error).__name__} at {place} for record {position:,} of this cycle; "
                "nothing of its batch was written"
            ).with_traceback(error.__traceback__) from None
        if not rows:
            return {}
        if not isinstance(made, list) or not all(isinstance(row, dict) for row in made):
            raise HandlerFailed(
                f"SYNC_HANDLER returned no list of dicts for record {position:,} of this cycle: return the rows to "
                "keep, or an empty list to leave the record out"
            )
        try:
            kept = records.group(map(records.to_json, made), keys, [record_id])
        except (AnswerMalformed, TypeError, ValueError, RecursionError):
            kept = {"": {}}
        if not kept.keys() <= {record_id}:
            raise HandlerFailed(
                f"SYNC_HANDLER returned rows of another record, two rows with one key, or values that have no JSON "
                f"form for record {position:,} of this cycle"
            )
        return kept.get(record_id, {})

    return handle
