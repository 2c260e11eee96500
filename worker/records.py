"""Rows and records: keys, hashes, grouping, batches.

Pure: no network, no database, no clock.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from worker.errors import AnswerMalformed, IdsHashed, SyncError
from worker.stream import decoded

Row = dict[str, Any]

# PHP drops what is more than 1,000 variables without a word (max_input_vars); a request has
# some twenty besides its records.
RECORDS_MAX_PER_REQUEST = 900
CELLS_PER_BATCH = 200_000

_HASHED = re.compile(r"[0-9a-f]{32}", re.IGNORECASE)


class Key(NamedTuple):
    """What tells a project's rows apart; the empty string and 0 where a part is absent."""

    record_id: str
    event: str
    repeat_instrument: str
    repeat_instance: int


class Stored(NamedTuple):
    """A row as it is kept: JSON text as it came, and the hash by which rows are compared."""

    data: str
    data_hash: str
    mended: bool  # a NUL, which PostgreSQL does not take, was replaced by U+FFFD


Record = dict[Key, Stored]


class Keys:
    """Reads the keys of rows. With `columns`, each row must have exactly these, and no lists or objects in them."""

    def __init__(self, id_field: str, columns: Sequence[str] = ()) -> None:
        self.id_field = id_field
        self.columns = len(columns)
        names = {"record_id": id_field, **{name: f"redcap_{name}" for name in ("repeat_instrument", "repeat_instance")}}
        names |= {"event": "redcap_event_name"}
        parts: list[Any] = [("record_id", str), ("event", str, ""), ("repeat_instrument", str, "")]
        parts.append(("repeat_instance", int | str, 0))
        others = [column for column in columns if column not in names.values()]
        names |= {f"c{number}": column for number, column in enumerate(others)}
        parts += [(f"c{number}", str | int | float | bool | None) for number in range(len(others))]
        row = msgspec.defstruct("Row", parts, rename=names, kw_only=True, forbid_unknown_fields=bool(columns))
        self._decode = msgspec.json.Decoder(row).decode

    def of(self, row: bytes) -> Key:
        """Return the key of a row. Raises AnswerMalformed."""
        # Most values hold no `":`, so that it counts the columns; a row in which it does not is looked at.
        if self.columns and row.count(b'":') != self.columns:
            decoded(row)
        try:
            found: Any = self._decode(row)
        except msgspec.ValidationError as error:  # it names columns and types, and quotes no value
            raise AnswerMalformed(
                f"a row is not as it should be ({error}): the first field of the dictionary ({self.id_field}) was renamed "
                "during the cycle, or the token may not export its instrument, or the server is at fault"
            ) from None
        if not found.record_id or "\0" in found.record_id:
            raise AnswerMalformed(f"a row came with a record id ({self.id_field}) that is empty or holds a NUL")
        try:
            instance = int(found.repeat_instance or 0)
        except ValueError:
            raise AnswerMalformed("a row's redcap_repeat_instance is no number") from None
        return Key(found.record_id, found.event, found.repeat_instrument, instance)


def to_json(row: Row) -> bytes:
    """Return a row as JSON in the form that PHP writes, which is what a server's rows have."""
    return json.dumps(row, separators=(",", ":")).encode()


def stored(row: bytes) -> Stored:
    """Return a row as it is kept."""
    mended = b"\\u0000" in row
    if mended:
        before = decoded(row)
        clean = {name: v.replace("\0", "\ufffd") if isinstance(v, str) else v for name, v in before.items()}
        row, mended = to_json(clean), clean != before
    return Stored(row.decode(), hashlib.blake2b(row, digest_size=16).hexdigest(), mended)


def folded(record_id: str) -> str:
    """Return what the server compares of an id: MySQL's collation ignores case, accents, trailing blanks."""
    if record_id.isascii():
        return record_id.rstrip().lower()
    apart = unicodedata.normalize("NFKD", record_id.rstrip().casefold())
    return "".join(one for one in apart if not unicodedata.combining(one))


def group(rows: Iterable[bytes], keys: Keys, asked: Iterable[str]) -> dict[str, Record]:
    """Return the rows of each record that was asked for, by record id and key.

    Raises AnswerMalformed for a record that was not asked for, and for two rows of one key.
    """
    wanted = set(map(folded, asked))
    records: dict[str, Record] = {}
    for row in rows:
        key = keys.of(row)
        into = records.get(key.record_id)
        if into is None:
            if folded(key.record_id) not in wanted:
                if is_hashed(key.record_id):
                    raise hidden_ids(keys.id_field)
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
    return max(1, min(RECORDS_MAX_PER_REQUEST, CELLS_PER_BATCH // max(1, columns)))
