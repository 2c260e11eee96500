"""Rows and records: keys, hashes, grouping, batches.

Pure: no network, no database, no clock.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from worker.errors import AnswerMalformed, IdsHashed

Row = dict[str, Any]

# PHP drops what is more than 1,000 variables without a word (max_input_vars); a request has
# some twenty besides its records.
RECORDS_MAX_PER_REQUEST = 900
CELLS_PER_BATCH = 100_000
BATCH_MAX_AUTO = 500

_HASHED = re.compile(r"[0-9a-f]{32}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Key:
    """What tells a project's rows apart; the empty string and 0 where a part is absent."""

    record_id: str
    event: str
    repeat_instrument: str
    repeat_instance: int


def key_of(row: Row, id_field: str) -> Key:
    """Return the key of a row. Raises AnswerMalformed when it has none."""
    record_id = row.get(id_field)
    if not isinstance(record_id, str) or not record_id:
        raise AnswerMalformed(
            f"a row came without its record id ({id_field}): the first field of the dictionary was renamed "
            "during the cycle, or the token may not export its instrument"
        )
    instance = row.get("redcap_repeat_instance", "")
    try:
        number = int(instance) if instance != "" else 0
    except (TypeError, ValueError):
        raise AnswerMalformed("a row's redcap_repeat_instance is no number") from None
    return Key(record_id, str(row.get("redcap_event_name", "")), str(row.get("redcap_repeat_instrument", "")), number)


def without(row: Row, fields: Collection[str]) -> Row:
    """Return a row without the columns of `fields`, those of check boxes included."""
    return {column: value for column, value in row.items() if column.partition("___")[0] not in fields}


def data_of(row: Row) -> tuple[str, str]:
    """Return a row as JSON text, its keys as they came, and the hash by which rows are compared."""
    text = json.dumps(row, ensure_ascii=False, separators=(",", ":"))
    text = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")  # no database takes half a character
    canonical = json.dumps(row, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return text, hashlib.blake2b(canonical.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def group(rows: Iterable[Row], id_field: str, asked: Iterable[str]) -> dict[str, dict[Key, Row]]:
    """Return the rows of each record that was asked for, by record id and key.

    Raises AnswerMalformed for a record that was not asked for, and for two rows of one key.
    """
    # The server compares ids as MySQL does: case and trailing blanks do not count.
    folded = {name.rstrip().casefold() for name in asked}
    records: dict[str, dict[Key, Row]] = {}
    for row in rows:
        key = key_of(row, id_field)
        if key.record_id.rstrip().casefold() not in folded:
            raise AnswerMalformed("the server sent a record that was not asked for")
        into = records.setdefault(key.record_id, {})
        if key in into:
            raise AnswerMalformed("the server sent two rows with one key")
        into[key] = row
    return records


def refuse_hashed(ids: Sequence[str], id_field: str) -> None:
    """Raise IdsHashed when all ids are hashes, which the token's export rights make of them."""
    if ids and all(_HASHED.fullmatch(one) for one in ids):
        raise IdsHashed(
            f"all {len(ids):,} record ids came as hashes: {id_field} is marked as an identifier and the token's "
            "export rights are de-identified. Give the token's user full data export rights for it"
        )


def batch_size(setting: int | str, columns: int) -> int:
    """Return how many records to ask for at once."""
    if isinstance(setting, int):
        return min(setting, RECORDS_MAX_PER_REQUEST)
    return max(1, min(BATCH_MAX_AUTO, CELLS_PER_BATCH // max(1, columns)))
