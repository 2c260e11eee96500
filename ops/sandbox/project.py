"""A REDCap project in memory: its structure, its records, its log."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

METADATA_COLUMNS = (
    "field_name",
    "form_name",
    "section_header",
    "field_type",
    "field_label",
    "select_choices_or_calculations",
    "field_note",
    "text_validation_type_or_show_slider_number",
    "text_validation_min",
    "text_validation_max",
    "identifier",
    "branching_logic",
    "required_field",
    "custom_alignment",
    "question_number",
    "matrix_group_name",
    "matrix_ranking",
    "field_annotation",
)

# (event, repeat_instrument, repeat_instance); "" and 0 where a part is absent.
RowKey = tuple[str, str, int]
Values = dict[str, str]

YES_NO = {"yesno": (("1", "Yes"), ("0", "No")), "truefalse": (("1", "True"), ("0", "False"))}
STATUS = (("0", "Incomplete"), ("1", "Unverified"), ("2", "Complete"))


@dataclass(slots=True)
class Field:
    """One row of the data dictionary."""

    name: str
    form: str
    kind: str = "text"
    label: str = ""
    choices: str = ""  # "1, Male | 2, Female", a calculation, or slider labels
    validation: str = ""
    identifier: bool = False
    rest: Values = field(default_factory=dict)  # the other columns, as they are

    def codes(self) -> list[tuple[str, str]]:
        """Return code and label of each choice, in order."""
        if self.kind in YES_NO:
            return list(YES_NO[self.kind])
        if self.kind not in ("radio", "dropdown", "checkbox"):
            return []
        pairs = (choice.partition(",") for choice in self.choices.split("|") if choice.strip())
        return [(code.strip(), label.strip()) for code, _, label in pairs]

    def columns(self, missing_codes: Iterable[str] = ()) -> list[str]:
        """Return the columns of an export that show this field."""
        if self.kind == "descriptive":
            return []
        if self.kind == "checkbox":
            codes = [code for code, _ in self.codes()] + list(missing_codes)
            return [checkbox_column(self.name, code) for code in codes]
        return [self.name]

    def metadata(self) -> Values:
        """Return the row as content=metadata has it: 18 strings."""
        row = dict.fromkeys(METADATA_COLUMNS, "") | self.rest
        return row | {
            "field_name": self.name,
            "form_name": self.form,
            "field_type": self.kind,
            "field_label": self.label,
            "select_choices_or_calculations": self.choices,
            "text_validation_type_or_show_slider_number": self.validation,
            "identifier": "y" if self.identifier else "",
        }


def field_from_metadata(row: Values) -> Field:
    """Make a Field of a row of the data dictionary."""
    return Field(
        name=row["field_name"],
        form=row["form_name"],
        kind=row.get("field_type") or "text",
        label=row.get("field_label", ""),
        choices=row.get("select_choices_or_calculations", ""),
        validation=row.get("text_validation_type_or_show_slider_number", ""),
        identifier=row.get("identifier", "") == "y",
        rest={name: row.get(name, "") for name in METADATA_COLUMNS},
    )


def checkbox_column(name: str, code: str) -> str:
    """Return the column of a choice: lower case, what is no letter or digit becomes `_`."""
    return f"{name}___{re.sub(r'[^a-z0-9_]', '_', code.lower())}"


@dataclass(slots=True)
class Event:
    """One event of an arm, and the instruments that are designated for it."""

    unique_name: str
    name: str
    arm: int = 1
    forms: list[str] = field(default_factory=list)
    custom_label: str = ""
    id: int = 1


@dataclass(slots=True)
class Record:
    """The rows of one record. A base row has no repeat instrument and instance 0."""

    rows: dict[RowKey, Values] = field(default_factory=dict)
    group: str = ""  # unique name of its data access group
    survey_identifier: str = ""

    def has_base(self, event: str) -> bool:
        """Whether the event's row that does not repeat holds anything."""
        return (event, "", 0) in self.rows


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One line of the project's log; `at` is the server's wall time, whole seconds inside."""

    at: datetime
    user: str
    action: str
    details: str
    record: str
    kind: str  # as the API's logtype: record_add, record_edit, record_delete, export, manage
    group: str = ""  # the data access group of the record, then


@dataclass(slots=True)
class Project:
    """Everything the API tells of one project."""

    title: str
    fields: list[Field]
    forms: dict[str, str]  # unique name: label, in order
    id: int = 1
    info: dict[str, object] = field(default_factory=dict)  # what content=project adds
    arms: dict[int, str] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)  # empty: a classic project
    repeating_forms: dict[tuple[str, str], str] = field(default_factory=dict)  # (event, form): label
    repeating_events: set[str] = field(default_factory=set)
    groups: dict[str, str] = field(default_factory=dict)  # unique name: name
    surveys: list[str] = field(default_factory=list)  # forms that are surveys
    missing_codes: list[tuple[str, str]] = field(default_factory=list)
    records: dict[str, Record] = field(default_factory=dict)
    log: list[LogEntry] = field(default_factory=list)  # oldest first

    @property
    def id_field(self) -> str:
        """The field that holds the record id: the first of the dictionary."""
        return self.fields[0].name

    @property
    def longitudinal(self) -> bool:
        """Whether rows carry an event."""
        return bool(self.events)

    @property
    def repeats(self) -> bool:
        """Whether anything repeats, so that all rows carry the two repeat columns."""
        return bool(self.repeating_forms or self.repeating_events)

    def fields_of(self, form: str) -> list[Field]:
        """Return the fields of an instrument, in the order of the dictionary."""
        return [one for one in self.fields if one.form == form]

    def forms_of(self, event: str) -> set[str]:
        """Return the instruments that are designated for an event; all in a classic project."""
        for one in self.events:
            if one.unique_name == event:
                return set(one.forms)
        return set(self.forms)

    def forms_of_row(self, key: RowKey) -> set[str]:
        """Return the instruments whose fields a row can hold."""
        event, instrument, instance = key
        if instrument:
            return {instrument}
        forms = self.forms_of(event)
        if instance:  # a row of a repeating event
            return forms
        return {form for form in forms if (event, form) not in self.repeating_forms}

    def event_names(self) -> list[str]:
        """Return the unique event names in order; one empty name in a classic project."""
        return [one.unique_name for one in self.events] or [""]

    def ordered_records(self) -> Iterator[tuple[str, Record]]:
        """Yield the records as the server orders them: numbers by value, then text."""
        for name in sorted(self.records, key=natural):
            yield name, self.records[name]


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sorting key that has 2 before 10, and 1-2 before 1-10."""
    parts = re.split(r"([0-9]+)", text)
    return tuple((0, int(part), part) if part.isdecimal() else (1, 0, part.lower()) for part in parts if part)


def unique_group_name(name: str) -> str:
    """Return the unique name that REDCap makes of a data access group's name."""
    return re.sub(r"[^a-z0-9_]", "", name.lower().replace(" ", "_"))[:18]
