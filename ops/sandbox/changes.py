"""What changes a project: imports, deletions, renames, and the project's own life (--churn)."""

import random
import re
from collections.abc import Callable
from datetime import datetime

from ops.sandbox.project import Field, LogEntry, Project, Record, RowKey, Values

KEY_COLUMNS = (
    "redcap_event_name",
    "redcap_repeat_instrument",
    "redcap_repeat_instance",
    "redcap_data_access_group",
    "redcap_survey_identifier",
)

LOADED_AT = datetime(2024, 1, 8, 9, 0)  # noqa: DTZ001 - the server's local time has no zone
_PATTERNS = (
    ("date_", r"\d{4}-\d\d-\d\d"),
    ("datetime_seconds", r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"),
    ("datetime_", r"\d{4}-\d\d-\d\d \d\d:\d\d"),
    ("integer", r"-?\d+"),
    ("number", r"-?\d*[.,]?\d+"),
)


class ChangeError(Exception):
    """The change is refused; the text is the server's."""


class Changes:
    """The one way to change a project, so that its log tells of each change."""

    def __init__(self, project: Project, now: Callable[[], datetime], user: str = "sandbox") -> None:
        self._project = project
        self._now = now
        self._user = user
        self.suffix = " (API)"

    def note(self, kind: str, action: str, record: str = "", details: str = "") -> None:
        """Write a line of the log."""
        known = self._project.records.get(record)
        group = known.group if known else ""
        self._project.log.append(LogEntry(self._now(), self._user, action, details, record, kind, group))

    def may_touch(self, name: str, group: str) -> bool:
        """Whether a user of a data access group may change a record; a new one it may make."""
        return not group or name not in self._project.records or self._project.records[name].group == group

    def put(self, rows: list[Values], *, overwrite: bool = False, group: str = "") -> list[str]:
        """Import rows; return the ids of the records they belong to, each once.

        `group` is the data access group of the user. Raises ChangeError, with nothing changed,
        for a row that the server would refuse.
        """
        parsed = [(name, key, row, values) for row in rows for name, key, values in [self._parse(row)]]
        if foreign := [name for name, *_ in parsed if not self.may_touch(name, group)]:
            raise ChangeError(f"The records are in another data access group: {', '.join(foreign)}")
        touched: dict[str, Values] = {}
        added: set[str] = set()
        for name, key, row, values in parsed:
            record = self._project.records.get(name)
            if record is None:
                record = self._project.records[name] = Record(group=group)
                added.add(name)
            stored = record.rows.setdefault(key, {})
            changed = {
                column: value
                for column, value in values.items()
                if stored.get(column, "") != value and (value != "" or overwrite)
            }
            stored.update(changed)
            if "redcap_data_access_group" in row:
                record.group = row["redcap_data_access_group"]
            touched.setdefault(name, {}).update(changed)
        for name, changed in touched.items():
            if not changed and name not in added:
                continue  # the server logs no update that changed nothing
            kind, verb = ("record_add", "Create record") if name in added else ("record_edit", "Update record")
            details = ", ".join(f"{column} = '{value}'" for column, value in changed.items())
            if name in added:
                details = f"{self._project.id_field} = '{name}'" + (f", {details}" if details else "")
            self.note(kind, f"{verb}{self.suffix} {name}", name, details)
        return list(touched)

    def _parse(self, row: Values) -> tuple[str, RowKey, Values]:
        project = self._project
        name = row.get(project.id_field, "").strip()
        if not name:
            raise ChangeError(f"The record identifier field ({project.id_field}) is missing")
        event = row.get("redcap_event_name", "")
        if project.longitudinal and event not in project.event_names():
            raise ChangeError(f"The following values of the event names are not valid: {event}")
        instrument = row.get("redcap_repeat_instrument", "")
        instance = row.get("redcap_repeat_instance", "")
        number = int(instance) if instance.isdigit() else 0
        event = event if project.longitudinal else ""
        if instrument and (event, instrument) not in project.repeating_forms:
            raise ChangeError(f"The instrument {instrument} is not repeating on this event")
        if not instrument and event in project.repeating_events:
            number = number or 1
        elif not instrument:
            number = 0
        else:
            number = number or 1
        values = {
            column: value for column, value in row.items() if column not in KEY_COLUMNS and column != project.id_field
        }
        known = {column for one in project.fields for column in one.columns(c for c, _ in project.missing_codes)}
        known |= {f"{form}_complete" for form in project.forms}
        if unknown := [column for column in values if column not in known]:
            raise ChangeError(
                "The following fields were not found in the project as real data fields: " + ", ".join(unknown)
            )
        key = (event, instrument, number)
        for one in project.fields:
            for column in one.columns(code for code, _ in project.missing_codes):
                if values.get(column, "") != "":
                    self._check(one, column, values[column], key)
        return name, key, values

    def _check(self, one: Field, column: str, value: str, key: RowKey) -> None:
        """Raise ChangeError for a value that the field can't hold in that row."""
        if one.form not in self._project.forms_of_row(key):
            raise ChangeError(f"The field {column} does not belong to this event or instrument")
        if one.kind == "file":
            raise ChangeError(f"The field {column} is a file field: files can't be imported as data")
        if value in dict(self._project.missing_codes):
            return
        codes = {"0", "1"} if one.kind == "checkbox" else {code for code, _ in one.codes()}
        wrong = value not in codes if codes else not _valid(one.validation, value)
        if wrong:
            raise ChangeError(f"The value is not valid for the field {column}")

    def delete(self, names: list[str]) -> int:
        """Delete whole records; return how many. Raises ChangeError when one is not there."""
        missing = [name for name in names if name not in self._project.records]
        if missing:
            raise ChangeError(
                "One or more of the records provided cannot be deleted because they do not exist in the "
                f"project: {', '.join(missing)}"
            )
        for name in names:
            details = f"{self._project.id_field} = '{name}'"
            self.note("record_delete", f"Delete record{self.suffix} {name}", name, details)
            del self._project.records[name]
        return len(names)

    def delete_rows(self, name: str, *, event: str = "", instrument: str = "", instance: int = 0) -> None:
        """Delete one event's or instrument's data of a record, as a partial delete does."""
        if name not in self._project.records:
            raise ChangeError(f"The record {name} does not exist")
        record = self._project.records[name]
        for key in list(record.rows):
            if key[0] != event or (instance and key[2] != instance):
                continue
            if instrument in ("", key[1]):
                del record.rows[key]
            elif not key[1]:
                fields = {c for one in self._project.fields_of(instrument) for c in one.columns()}
                for column in [*fields, f"{instrument}_complete"]:
                    record.rows[key].pop(column, None)
        self.note("record_edit", f"Update record{self.suffix} {name}", name, "(rows deleted)")

    def rename(self, old: str, new: str) -> None:
        """Give a record another id. Raises ChangeError."""
        if old not in self._project.records:
            raise ChangeError(f"The record {old} does not exist")
        if not new.strip():
            raise ChangeError("The parameter 'new_record_name' is missing")
        if new in self._project.records:
            raise ChangeError(f"The record {new} already exists")
        self._project.records[new] = self._project.records.pop(old)
        self.note("record_edit", f"Update record{self.suffix} {new}", new, f"{self._project.id_field} = '{new}'")

    def next_name(self) -> str:
        """Return the id that auto-numbering gives next."""
        numbers = [int(name) for name in self._project.records if name.isdigit()]
        return str(max(numbers, default=0) + 1)

    def churn(self, chance: random.Random) -> None:
        """Change, add, delete or rename one record, as people at work do."""
        names = list(self._project.records)
        what = chance.choices(("edit", "add", "delete", "rename"), (80, 12, 5, 3))[0]
        if what == "add" or not names:
            base = {self._project.id_field: self.next_name()}
            if self._project.longitudinal:
                base["redcap_event_name"] = self._project.event_names()[0]
            self.put([base])
            names = [base[self._project.id_field]]
            what = "edit"
        name = chance.choice(names)
        if what == "delete":
            self.delete([name])
        elif what == "rename":
            self.rename(name, self.next_name())
        else:
            self._edit(name, chance)

    def _edit(self, name: str, chance: random.Random) -> None:
        project = self._project
        key = chance.choice(sorted(project.records[name].rows))
        forms = project.forms_of_row(key)
        fields = [
            one
            for one in project.fields
            if one.form in forms
            and one.kind in ("text", "notes")
            and one.name != project.id_field
            and not one.validation
        ]
        row = {project.id_field: name, "redcap_event_name": key[0], "redcap_repeat_instrument": key[1]}
        row["redcap_repeat_instance"] = str(key[2] or "")
        if fields:
            row[chance.choice(fields).name] = f"changed {chance.randrange(10**9):09d}"
        else:
            form = chance.choice(sorted(forms))
            row[f"{form}_complete"] = str((int(project.records[name].rows[key].get(f"{form}_complete", "0")) + 1) % 3)
        self.put([row])


def begin_log(project: Project) -> None:
    """Write down that the records which a project was loaded with were made, long ago."""
    for name, record in project.records.items():
        project.log.append(
            LogEntry(LOADED_AT, "sandbox", f"Create record {name}", "", name, "record_add", record.group)
        )


def _valid(validation: str, value: str) -> bool:
    pattern = next((p for start, p in _PATTERNS if validation.startswith(start)), "")
    return not pattern or re.fullmatch(pattern, value) is not None
