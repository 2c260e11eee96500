"""The rows of a record export, as content=record answers them."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from ops.sandbox.logic import Condition
from ops.sandbox.project import STATUS, Field, Project, Record, RowKey, Values, checkbox_column

Row = dict[str, object]

PSEUDO_FIELDS = frozenset(
    ("redcap_event_name", "redcap_repeat_instrument", "redcap_repeat_instance", "redcap_data_access_group")
)


class ExportError(Exception):
    """The request asks for what the project has not; the text is the server's."""


@dataclass(frozen=True, slots=True)
class Rights:
    """What the token may see."""

    deidentified: bool = False
    logging: bool = True
    group: str = ""  # unique name of the data access group the user is in

    def sees(self, one: Field, id_field: str) -> bool:
        """Whether a field is in this token's answers."""
        if not self.deidentified or one.name == id_field:
            return True
        free_text = one.kind == "notes" or (one.kind == "text" and not one.validation)
        return not one.identifier and not free_text and not one.validation.startswith("date")


@dataclass(slots=True, kw_only=True)
class Query:
    """The parameters of a record export; an empty list stands for all, as on the server."""

    records: list[str] = field(default_factory=list)
    fields: list[str] = field(default_factory=list)
    forms: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    label: bool = False
    checkbox_label: bool = False
    survey_fields: bool = False
    groups: bool = False
    blank_for_gray: bool = False
    combine_checkboxes: bool = False
    condition: Condition | None = None
    only: set[str] | None = None  # records that a date range picks


class Export:
    """One export of a project for one token."""

    def __init__(self, project: Project, query: Query, rights: Rights) -> None:
        self._project = project
        self._query = query
        self._rights = rights
        self._check()
        self._by_form = {form: self._asked(form) for form in project.forms}
        id_asked = not query.fields and not query.forms
        first_form = project.fields[0].form
        self._with_id = id_asked or project.id_field in query.fields or first_form in query.forms
        self._codes = [code for code, _ in project.missing_codes]
        self._labels = {one.name: dict(one.codes()) | dict(project.missing_codes) for one in project.fields}
        self._hash_ids = rights.deidentified and project.fields[0].identifier

    def _check(self) -> None:
        project, query = self._project, self._query
        known = {one.name for one in project.fields} | {f"{form}_complete" for form in project.forms}
        for parameter, asked, valid in (
            ("fields", query.fields, known),
            ("forms", query.forms, set(project.forms)),
            ("events", query.events, set(project.event_names())),
        ):
            if wrong := [name for name in asked if name not in valid]:
                names = ", ".join(f"'{name}'" for name in wrong)
                raise ExportError(f'The following values in the parameter "{parameter}" are not valid: {names}')

    def _asked(self, form: str) -> list[tuple[Field, list[str]]]:
        query, project = self._query, self._project
        whole = (not query.fields and not query.forms) or form in query.forms
        return [
            (one, self._columns_of(one))
            for one in project.fields_of(form)
            if one.name != project.id_field
            and (whole or one.name in query.fields)
            and self._rights.sees(one, project.id_field)
        ]

    def _columns_of(self, one: Field) -> list[str]:
        if one.kind == "checkbox" and self._query.combine_checkboxes:
            return [one.name]
        return one.columns(code for code, _ in self._project.missing_codes)

    def _status_asked(self, form: str) -> bool:
        query = self._query
        whole = (not query.fields and not query.forms) or form in query.forms
        return whole or f"{form}_complete" in query.fields

    def columns(self) -> list[str]:
        """Return the columns in the server's order."""
        project = self._project
        names = [project.id_field] if self._with_id else []
        if project.longitudinal:
            names.append("redcap_event_name")
        if project.repeats:
            names += ["redcap_repeat_instrument", "redcap_repeat_instance"]
        if self._shows_groups():
            names.append("redcap_data_access_group")
        if self._query.survey_fields:
            names.append("redcap_survey_identifier")
        for form in project.forms:
            if self._query.survey_fields and form in project.surveys and self._status_asked(form):
                names.append(f"{form}_timestamp")
            for _, columns in self._by_form[form]:
                names += columns
            if self._status_asked(form):
                names.append(f"{form}_complete")
        return names

    def _shows_groups(self) -> bool:
        # The server leaves it out, without a word, for a user who is in a group.
        return self._query.groups and bool(self._project.groups) and not self._rights.group

    def rows(self) -> Iterator[Row]:
        """Yield the rows: by record, then event, the plain row before its repeats."""
        query, project = self._query, self._project
        wanted = {name.lower().rstrip() for name in query.records}
        columns = self.columns()
        order = {name: position for position, name in enumerate(project.event_names())}
        forms = {name: position for position, name in enumerate(project.forms)}
        for name, record in project.ordered_records():
            if wanted and name.lower() not in wanted:
                continue
            if query.only is not None and name not in query.only:
                continue
            if self._rights.group and record.group != self._rights.group:
                continue
            keys = [key for key in record.rows if not query.events or key[0] in query.events]
            for key in sorted(keys, key=lambda key: (order.get(key[0], 0), forms.get(key[1], -1), key[2])):
                row = self._row(name, record, key, columns)
                if query.condition is None or query.condition.holds(self._context(name, record, key)):
                    yield row

    def _context(self, name: str, record: Record, key: RowKey) -> dict[str, Values]:
        """Return the values that filterLogic can see: its own row, and base rows by event."""
        own = record.rows[key] | {self._project.id_field: name}
        return {"": own} | {
            event: values
            for (event, instrument, instance), values in record.rows.items()
            if not instrument and not instance
        }

    def _row(self, name: str, record: Record, key: RowKey, columns: list[str]) -> Row:
        project, query = self._project, self._query
        event, instrument, instance = key
        row: Row = dict.fromkeys(columns, "")
        if self._with_id:
            hashed = hashlib.md5(f"{project.id}:{name}".encode(), usedforsecurity=False)
            row[project.id_field] = hashed.hexdigest() if self._hash_ids else name
        if project.longitudinal:
            row["redcap_event_name"] = self._event_label(event) if query.label else event
        if project.repeats:
            row["redcap_repeat_instrument"] = project.forms[instrument] if query.label and instrument else instrument
            row["redcap_repeat_instance"] = instance or ""
        if self._shows_groups():
            row["redcap_data_access_group"] = project.groups.get(record.group, "") if query.label else record.group
        if query.survey_fields:
            row["redcap_survey_identifier"] = record.survey_identifier
        values = record.rows[key]
        for form in project.forms_of_row(key):
            self._fill(row, values, form)
        return row

    def _event_label(self, event: str) -> str:
        return next((one.name for one in self._project.events if one.unique_name == event), event)

    def _fill(self, row: Row, values: Values, form: str) -> None:
        query = self._query
        for one, columns in self._by_form[form]:
            if one.kind == "checkbox":
                self._fill_checkbox(row, values, one)
                continue
            for column in columns:
                value = values.get(column, "")
                row[column] = self._labels[one.name].get(value, value) if query.label else value
        if (stamp := f"{form}_timestamp") in row:
            row[stamp] = values.get(stamp, "")
        if (status := f"{form}_complete") in row:
            # A form that nobody has touched is gray: "0", or empty when that is asked for.
            value = values.get(status, "" if query.blank_for_gray else "0")
            row[status] = dict(STATUS).get(value, value) if query.label else value

    def _fill_checkbox(self, row: Row, values: Values, one: Field) -> None:
        query = self._query
        if query.combine_checkboxes:
            row[one.name] = ",".join(
                label if query.label else code
                for code, label in [*one.codes(), *self._project.missing_codes]
                if values.get(checkbox_column(one.name, code)) == "1"
            )
            return
        for code, label in [*one.codes(), *self._project.missing_codes]:
            column = checkbox_column(one.name, code)
            checked = values.get(column, "0") == "1"
            if not query.label:
                row[column] = "1" if checked else "0"
            elif query.checkbox_label:
                row[column] = label if checked else ""
            else:
                row[column] = "Checked" if checked else "Unchecked"


def eav(export: Export, project: Project) -> Iterator[Row]:
    """Yield an export as type=eav: one row a value that is not empty.

    `export` must hold the id field, whose values stand in `record`.
    """
    codes = {
        checkbox_column(one.name, code): (one.name, code)
        for one in project.fields
        if one.kind == "checkbox"
        for code, _ in [*one.codes(), *project.missing_codes]
    }
    for row in export.rows():
        keys = {"record": row[project.id_field]}
        for name in ("redcap_event_name", "redcap_repeat_instrument", "redcap_repeat_instance"):
            if name in row:
                keys[name] = row[name]
        for column, value in row.items():
            if column in PSEUDO_FIELDS or value == "" or (column in codes and value in ("0", "Unchecked")):
                continue
            name, code = codes.get(column, (column, value))
            yield {**keys, "field_name": name, "value": code}


def headers(project: Project, columns: list[str]) -> list[str]:
    """Return the labels that rawOrLabelHeaders=label puts over a flat csv."""
    labels = {"redcap_event_name": "Event Name", "redcap_repeat_instrument": "Repeat Instrument"}
    labels |= {"redcap_repeat_instance": "Repeat Instance", "redcap_data_access_group": "Data Access Group"}
    labels |= {"redcap_survey_identifier": "Survey Identifier"}
    labels |= {f"{form}_timestamp": "Survey Timestamp" for form in project.forms}
    labels |= {f"{form}_complete": "Complete?" for form in project.forms}
    for one in project.fields:
        labels[one.name] = one.label
        for code, choice in one.codes() if one.kind == "checkbox" else ():
            labels[checkbox_column(one.name, code)] = f"{one.label} (choice={choice})"
    return [labels.get(column, column) for column in columns]
