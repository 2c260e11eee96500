"""What a cycle must know of a project: its id, its id field, its shape, and the hash of all that."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.errors import AnswerMalformed
from worker.redcap import Client

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Structure:
    """A project's structure as the token sees it now."""

    project_id: int
    id_field: str
    columns: int  # of one exported row, about: checkboxes count once a choice
    id_is_identifier: bool  # then de-identified rights hash it
    identifiers: frozenset[str]  # fields that the dictionary marks, but for the id field
    hash: str


def read(client: Client, wanted: Mapping[str, object]) -> Structure:
    """Ask for the dictionary, the events and what repeats; three to five requests.

    `wanted` is what the settings choose of a project: other settings make other rows, and so
    another hash.
    """
    info = client.one("project")
    try:
        project_id = int(info["project_id"])
    except (KeyError, TypeError, ValueError):
        raise AnswerMalformed("the server's project information has no project_id") from None
    metadata = client.table("metadata")
    if not metadata or not isinstance(metadata[0].get("field_name"), str):
        raise AnswerMalformed("the project's data dictionary is empty: is it still in draft?")
    longitudinal = _flag(info, "is_longitudinal")
    events = client.table("event") if longitudinal else []
    mapping = client.table("formEventMapping") if longitudinal else []
    # Servers before 8.0 do not tell; then nothing repeats.
    repeats = client.table("repeatingFormsEvents") if _flag(info, "has_repeating_instruments_or_events") else []
    return Structure(
        project_id=project_id,
        id_field=metadata[0]["field_name"],
        columns=sum(_columns(row) for row in metadata),
        id_is_identifier=metadata[0].get("identifier") == "y",
        identifiers=frozenset(row["field_name"] for row in metadata[1:] if row.get("identifier") == "y"),
        hash=_hash([metadata, events, mapping, repeats, info.get("missing_data_codes", ""), wanted]),
    )


def _flag(info: Row, name: str) -> bool:
    return str(info.get(name, "0")) in ("1", "true", "True")


def _columns(row: Row) -> int:
    if row.get("field_type") != "checkbox":
        return 1
    return max(1, str(row.get("select_choices_or_calculations", "")).count("|") + 1)


def _hash(parts: list[Any]) -> str:
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
