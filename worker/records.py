"""Rows and records: keys, hashes, grouping, batches.

Pure: no network, no database, no clock.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from worker.errors import AnswerMalformed, IdsHashed, SyncError

Row = dict[str, Any]

# PHP drops what is more than 1,000 variables without a word (max_input_vars); a request has
# some twenty besides its records.
RECORDS_MAX_PER_REQUEST = 900
CELLS_PER_BATCH = 100_000
BATCH_MAX_AUTO = 500

_HASHED = re.compile(r"[0-9a-f]{32}", re.IGNORECASE)
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # no database takes half a character, PostgreSQL no NUL
_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode


class Key(NamedTuple):
    """What tells a project's rows apart; the empty string and 0 where a part is absent."""

    record_id: str
    event: str
    repeat_instrument: str
    repeat_instance: int


class Stored(NamedTuple):
    """A row as it is kept: JSON text, its keys as they came, and the hash by which rows are compared."""

    data: str
    data_hash: str
    mended: bool  # a character that no database takes was replaced by U+FFFD


Record = dict[Key, Stored]


def key_of(row: Row, id_field: str) -> Key:
    """Return the key of a row. Raises AnswerMalformed when it has none."""
    record_id = row.get(id_field)
    if not isinstance(record_id, str) or not record_id or _UNSTORABLE.search(record_id):
        raise AnswerMalformed(
            f"a row came without a record id ({id_field}), or with one that no database takes: the first field of the "
            "dictionary was renamed during the cycle, or the token may not export its instrument"
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


def stored(row: Row) -> Stored:
    """Return a row as it is kept."""
    text = _to_json(row)
    # A NUL is an escape in JSON; the other characters stand for themselves.
    mended = False
    if "\\u0000" in text or (not text.isascii() and _UNSTORABLE.search(text)):
        clean = {
            key: _UNSTORABLE.sub("\ufffd", value) if isinstance(value, str) else value for key, value in row.items()
        }
        text, mended = _to_json(clean), clean != row
    return Stored(text, hashlib.blake2b(text.encode(), digest_size=16).hexdigest(), mended)


def folded(record_id: str) -> str:
    """Return what the server compares of an id: MySQL's collation ignores case, accents, trailing blanks."""
    if record_id.isascii():
        return record_id.rstrip().lower()
    apart = unicodedata.normalize("NFKD", record_id.rstrip().casefold())
    return "".join(one for one in apart if not unicodedata.combining(one))


def group(rows: Iterable[Row], id_field: str, asked: Iterable[str]) -> dict[str, Record]:
    """Return the rows of each record that was asked for, by record id and key.

    Raises AnswerMalformed for a record that was not asked for, and for two rows of one key.
    """
    wanted = set(map(folded, asked))
    records: dict[str, Record] = {}
    for row in rows:
        key = key_of(row, id_field)
        into = records.get(key.record_id)
        if into is None:
            if folded(key.record_id) not in wanted:
                if is_hashed(key.record_id):
                    raise hidden_ids(id_field)
                raise AnswerMalformed("the server sent a record that was not asked for")
            into = records[key.record_id] = {}
        if key in into:
            raise AnswerMalformed("the server sent two rows with one key")
        into[key] = stored(row)
    return records


def is_hashed(record_id: str) -> bool:
    """Return whether an id looks like the hash that de-identified export rights make of it."""
    return bool(_HASHED.fullmatch(record_id))


def hidden_ids(id_field: str) -> SyncError:
    """Return the error of ids that came as hashes."""
    return IdsHashed(
        f"the record ids came as hashes: {id_field} is marked as an identifier and the token's export rights are "
        "de-identified. Give the token's user full data export rights for it"
    )


def batch_size(setting: int | str, columns: int) -> int:
    """Return how many records to ask for at once."""
    if isinstance(setting, int):
        return min(setting, RECORDS_MAX_PER_REQUEST)
    return max(1, min(BATCH_MAX_AUTO, CELLS_PER_BATCH // max(1, columns)))
