"""What a cycle must know of a project: its id, its fields and events, its shape, and the hash of all that."""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from worker.errors import AnswerMalformed, LabelsAmbiguous
from worker.redcap import Client
from worker.stream import decoded

Row = dict[str, Any]
UNSEEN = "0" * 16  # of columns, where no row came that would show them


class Field(NamedTuple):
    """A line of the data dictionary, as far as it matters here; texts are the dictionary's own."""

    name: str
    instrument: str
    kind: str
    label: str
    choices: str
    validation: str
    is_identifier: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """A project's structure as the token sees it now."""

    project_id: int
    created: str  # when the project was made: with its id it tells two servers' projects apart
    fields: tuple[Field, ...]
    names: frozenset[str]  # of the fields
    events: Mapping[str, list[str]]  # of each instrument; the empty name alone in a classic project
    repeats: frozenset[tuple[str, str]]  # event and instrument; no instrument: the whole event
    labels: Mapping[str, str]  # of the instruments, where labels are exported instead of names
    missing_codes: str
    _hash: Any = field(repr=False)

    @property
    def id_field(self) -> str:
        """The name of the field that holds the record id."""
        return self.fields[0].name

    @property
    def identifiers(self) -> frozenset[str]:
        """The fields that the dictionary marks as identifiers, but for the id field."""
        return frozenset(one.name for one in self.fields[1:] if one.is_identifier)

    def hash(self, columns: Collection[str] | None) -> str:
        """Return the hash of all that, and behind it that of the columns that the token gets to see."""
        seen = hashlib.blake2b(json.dumps(sorted(columns or ())).encode(), digest_size=8).hexdigest()
        return str(self._hash.hexdigest()) + (seen if columns else UNSEEN)

    def field_of(self, column: str) -> str:
        """Return the field that an exported column belongs to: a check box has a column a choice."""
        if column in self.names:
            return column
        ends = [at for at in range(1, len(column)) if column.startswith("___", at)]
        # Names in old dictionaries may end in underscores, or hold three of them.
        known = [column[:at] for at in ends if column[:at] in self.names]
        return known[-1] if known else column.partition("___")[0]


def read(client: Client, wanted: Mapping[str, object], *, labels: bool) -> Structure:
    """Ask for the dictionary, the events and what repeats; three to six requests.

    `wanted` is what the settings choose of a project: other settings make other rows, and so
    another hash.
    """
    info = client.one("project")
    try:
        project_id = int(info["project_id"])
    except (KeyError, TypeError, ValueError):
        raise AnswerMalformed("the server's project information has no project_id") from None
    whole = hashlib.blake2b(
        json.dumps([info.get("missing_data_codes", ""), wanted], sort_keys=True).encode(), digest_size=8
    )

    def ask(content: str, *, when: bool = True) -> list[Row]:
        rows = client.table(content) if when else []
        whole.update(json.dumps([content, rows], sort_keys=True).encode())
        return rows

    def fields(rows: Iterator[bytes]) -> tuple[list[Field], Any]:
        seen = hashlib.blake2b()  # row by row: a dictionary of 40,000 fields is not held whole
        found = []
        for row in rows:
            seen.update(row)
            found.append(_field(decoded(row)))
        return found, seen.digest()

    found, digest = client.read("metadata", {}, fields)
    if not found:
        raise AnswerMalformed("the project's data dictionary is empty: is it still in draft?")
    whole.update(digest)
    longitudinal = _flag(info, "is_longitudinal")
    ask("event", when=longitudinal)
    mapping = ask("formEventMapping", when=longitudinal)
    # Servers before 8.0 do not tell; then nothing repeats.
    repeats = ask("repeatingFormsEvents", when=_flag(info, "has_repeating_instruments_or_events"))
    instruments = ask("instrument", when=labels)
    structure = Structure(
        project_id=project_id,
        created=str(info.get("creation_time") or ""),
        fields=tuple(found),
        names=frozenset(one.name for one in found),
        events=_events(found, mapping, longitudinal=longitudinal),
        repeats=frozenset((str(row.get("event_name") or ""), str(row.get("form_name") or "")) for row in repeats),
        labels={str(row.get("instrument_name")): str(row.get("instrument_label")) for row in instruments},
        missing_codes=str(info.get("missing_data_codes") or "").replace("\0", "\ufffd"),
        _hash=whole,
    )
    _refuse_ambiguous(structure)
    return structure


def _field(row: Row) -> Field:
    if not isinstance(row.get("field_name"), str) or not row["field_name"]:
        raise AnswerMalformed("the project's data dictionary has a field without a name")

    def text(name: str) -> str:
        return str(row.get(name) or "").replace("\0", "\ufffd")

    return Field(
        name=row["field_name"],
        instrument=text("form_name"),
        kind=text("field_type"),
        label=text("field_label"),
        choices=text("select_choices_or_calculations"),
        validation=text("text_validation_type_or_show_slider_number"),
        is_identifier=row.get("identifier") == "y",
    )


def _events(fields: Iterable[Field], mapping: Iterable[Row], *, longitudinal: bool) -> dict[str, list[str]]:
    events: dict[str, list[str]] = {one.instrument: [] if longitudinal else [""] for one in fields}
    for row in mapping:
        events.setdefault(str(row.get("form")), []).append(str(row.get("unique_event_name")))
    return events


def _refuse_ambiguous(structure: Structure) -> None:
    repeating = {instrument for _, instrument in structure.repeats if instrument}
    shown = [structure.labels.get(name, name) for name in repeating]
    if twice := {label for label in shown if shown.count(label) > 1}:
        raise LabelsAmbiguous(
            f"{len(twice)} label(s) stand for more than one repeating instrument, so that their rows can't be told "
            "apart: give the instruments different names in REDCap, or set REDCAP_RAW_OR_LABEL=raw"
        )


def _flag(info: Row, name: str) -> bool:
    return str(info.get(name, "0")) in ("1", "true", "True")
