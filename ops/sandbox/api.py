"""The API: one request's parameters in, one answer out. Knows nothing of HTTP."""

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl
from zoneinfo import ZoneInfo

from ops.sandbox import formats
from ops.sandbox.changes import ChangeError, Changes, begin_log
from ops.sandbox.export import Export, ExportError, Query, Rights, Row, eav, headers
from ops.sandbox.logic import Condition, LogicError, parse
from ops.sandbox.project import METADATA_COLUMNS, Project, checkbox_column

# PHP's max_input_vars: what is more than that is dropped without a word.
INPUT_VARIABLES_MAX = 1_000
VERSION = "14.7.3"
CHANGE_KINDS = ("record_add", "record_edit")


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back: the status, the type of the body, the body."""

    status: int
    content_type: str
    body: bytes


class ApiError(Exception):
    """A refused request: the status and the server's words."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class Parameters:
    """A form's variables; an array comes as `a[0]=x&a[1]=y`, as `a[]=x`, or as `a=x,y`."""

    def __init__(self, body: str) -> None:
        pairs = parse_qsl(body, keep_blank_values=True)[:INPUT_VARIABLES_MAX]
        self._plain: dict[str, str] = {}
        self._arrays: dict[str, list[str]] = {}
        for name, value in pairs:
            if match := re.fullmatch(r"(\w+)\[\w*\]", name):
                self._arrays.setdefault(match[1], []).append(value)
            else:
                self._plain[name] = value

    def text(self, name: str, default: str = "") -> str:
        """Return a plain variable."""
        return self._plain.get(name, default)

    def flag(self, name: str) -> bool:
        """Return a boolean, which is the text `true` (some clients send 1)."""
        return self.text(name).lower() in ("true", "1")

    def many(self, name: str) -> list[str]:
        """Return an array; an empty one can't be told from one that was not sent."""
        if name in self._arrays:
            return [value for value in self._arrays[name] if value != ""]
        return [part.strip() for part in self.text(name).split(",") if part.strip()]


class Api:
    """One project behind one token."""

    def __init__(
        self,
        project: Project,
        token: str,
        *,
        rights: Rights | None = None,
        timezone: str = "UTC",
        skew_s: float = 0.0,
        utc_now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.project = project
        self.token = token
        self.rights = rights or Rights()
        self.skew_s = skew_s
        self.timezone = ZoneInfo(timezone)
        self.utc_now = utc_now
        self.changes = Changes(project, self.now)
        if not project.log:
            begin_log(project)
        self.lock = threading.RLock()
        self.requests: list[str] = []  # the content of each request that had the right token

    def server_utc(self) -> datetime:
        """Return what the server's clock shows, in UTC: its Date header."""
        return self.utc_now() + timedelta(seconds=self.skew_s)

    def now(self) -> datetime:
        """Return the server's local wall time, without a zone: all it ever tells."""
        return self.server_utc().astimezone(self.timezone).replace(tzinfo=None)

    def answer(self, body: str) -> Answer:
        """Answer one POST."""
        parameters = Parameters(body)
        form = parameters.text("format", "xml")
        error_form = parameters.text("returnFormat", form)
        if error_form not in formats.CONTENT_TYPES:
            error_form = "xml"
        try:
            with self.lock:
                return self._dispatch(parameters, form)
        except ApiError as error:
            status, text = error.status, error.text
        except (ExportError, ChangeError) as error:
            status, text = 400, str(error)
        except LogicError:
            status, text = (400, 'The value of the parameter "filterLogic" contains errors. Please check its syntax.')
        return Answer(status, formats.CONTENT_TYPES[error_form], formats.error(text, error_form))

    def _dispatch(self, parameters: Parameters, form: str) -> Answer:
        content = parameters.text("content")
        if form not in formats.CONTENT_TYPES:
            raise ApiError(400, 'The value of the parameter "format" is not valid')
        if not content and not parameters.text("token"):
            raise ApiError(501, "The requested method is not implemented.")
        if parameters.text("token") != self.token:
            raise ApiError(403, "You do not have permissions to use the API")
        handler = _HANDLERS.get(content)
        if content in _NOT_HERE:
            raise ApiError(501, "The requested method is not implemented.")
        if handler is None:
            raise ApiError(400, 'The value of the parameter "content" is not valid')
        self.requests.append(content)
        return handler(self, parameters, form)


Handler = Callable[[Api, Parameters, str], Answer]


def _rows(rows: Iterable[Row], columns: Sequence[str], form: str, delimiter: str = ",") -> Answer:
    body = b"".join(formats.write(rows, columns, form, delimiter))
    return Answer(200, formats.CONTENT_TYPES[form], body)


def _table(rows: list[Row], columns: Sequence[str], form: str) -> Answer:
    return _rows(rows, columns, form)


def _text(text: str) -> Answer:
    return Answer(200, "text/html; charset=utf-8", text.encode())


def _record(api: Api, parameters: Parameters, form: str) -> Answer:
    if parameters.text("action") == "delete":
        return _delete(api, parameters)
    if parameters.text("action") == "rename":
        if not api.changes.may_touch(parameters.text("record"), api.rights.group):
            raise ApiError(403, "The record is in another data access group")
        api.changes.rename(parameters.text("record"), parameters.text("new_record_name"))
        return _text("1")
    if parameters.text("data"):
        return _import(api, parameters, form)
    query = Query(
        records=parameters.many("records"),
        fields=parameters.many("fields"),
        forms=parameters.many("forms"),
        events=parameters.many("events"),
        label=parameters.text("rawOrLabel", "raw") == "label",
        checkbox_label=parameters.flag("exportCheckboxLabel"),
        survey_fields=parameters.flag("exportSurveyFields"),
        groups=parameters.flag("exportDataAccessGroups"),
        blank_for_gray=parameters.flag("exportBlankForGrayFormStatus"),
        combine_checkboxes=parameters.flag("combineCheckboxOptions"),
        condition=_condition(api.project, parameters.text("filterLogic").strip()),
        only=_changed_between(api, parameters.text("dateRangeBegin"), parameters.text("dateRangeEnd")),
    )
    export = Export(api.project, query, api.rights)
    api.changes.note("export", "Data export (API)", details=_fields_exported(query, api.project))
    if parameters.text("type") == "eav":
        query.fields = [*query.fields, api.project.id_field] if query.fields or query.forms else []
        export = Export(api.project, query, api.rights)
        columns = [
            "record", "redcap_event_name", "redcap_repeat_instrument", "redcap_repeat_instance", "field_name", "value",
        ]  # fmt: skip
        shown = set(export.columns()) | {"record", "field_name", "value"}
        return _rows(eav(export, api.project), [c for c in columns if c in shown], form, _delimiter(parameters))
    rows, columns = export.rows(), export.columns()
    if form == "csv" and parameters.text("decimalCharacter") in ("comma", ","):
        rows = _with_decimal_comma(rows, api.project)
    labelled = form == "csv" and parameters.text("rawOrLabelHeaders") == "label"
    over = headers(api.project, columns) if labelled else None
    body = b"".join(formats.write(rows, columns, form, _delimiter(parameters), over))
    return Answer(200, formats.CONTENT_TYPES[form], body)


def _condition(project: Project, logic: str) -> Condition | None:
    if not logic:
        return None
    known = {one.name for one in project.fields} | {f"{form}_complete" for form in project.forms}
    known |= set(project.event_names())
    if unknown := [name for name in re.findall(r"\[([a-z0-9_]+)", logic) if name not in known]:
        raise LogicError(f"there is no {unknown[0]}")
    return parse(logic)


def _delimiter(parameters: Parameters) -> str:
    text = parameters.text("csvDelimiter") or ","
    if text not in (",", ";", "|", "^", "\t", "tab"):
        raise ApiError(400, 'The value of the parameter "csvDelimiter" is not valid')
    return "\t" if text == "tab" else text


def _with_decimal_comma(rows: Iterator[Row], project: Project) -> Iterator[Row]:
    numbers = {one.name for one in project.fields if one.kind == "calc" or one.validation.startswith("number")}
    for row in rows:
        yield {name: str(v).replace(".", ",") if name in numbers else v for name, v in row.items()}


def _fields_exported(query: Query, project: Project) -> str:
    return f"project_id = {project.id}, fields = '{', '.join(query.fields) or 'all'}'"


def _changed_between(api: Api, begin: str, end: str) -> set[str] | None:
    """Return the records that the log says were added or edited strictly between, server time."""
    if not begin and not end:
        return None
    after, before = _moment(begin, "dateRangeBegin"), _moment(end, "dateRangeEnd")
    return {
        entry.record
        for entry in api.project.log
        if entry.kind in CHANGE_KINDS
        and (after is None or entry.at.replace(microsecond=0) > after)
        and (before is None or entry.at.replace(microsecond=0) < before)
    }


def _moment(text: str, parameter: str) -> datetime | None:
    if not text:
        return None
    for pattern in ("%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M"):
        try:
            return datetime.strptime(text, pattern)  # noqa: DTZ007 - the server's local time has no zone
        except ValueError:
            pass
    if text.endswith("24:00"):  # REDCapR sends this as the end of a day
        return datetime.strptime(text[:10], "%Y-%m-%d") + timedelta(days=1)  # noqa: DTZ007
    raise ApiError(400, f"Invalid {parameter} format. The date/time must be in YYYY-MM-DD HH:MM:SS format.")


def _import(api: Api, parameters: Parameters, form: str) -> Answer:
    try:
        rows = formats.read_rows(parameters.text("data"), form, _delimiter(parameters))
    except ValueError:
        raise ApiError(406, "The data being imported is not formatted correctly.") from None
    if parameters.text("type") == "eav":
        rows = _from_eav(rows, api.project)
    if parameters.flag("forceAutoNumber"):
        pairs = []
        for row in rows:
            new = api.changes.next_name()
            pairs.append(f"{new},{row.get(api.project.id_field, '')}")
            api.changes.put([row | {api.project.id_field: new}], group=api.rights.group)
        names = [pair.partition(",")[0] for pair in pairs]
    else:
        overwrite = parameters.text("overwriteBehavior") == "overwrite"
        names = api.changes.put(rows, overwrite=overwrite, group=api.rights.group)
        pairs = [f"{name},{name}" for name in names]
    content = parameters.text("returnContent", "count")
    if content == "nothing":
        return Answer(200, formats.CONTENT_TYPES["json"], b"[{}]")
    if content in ("ids", "auto_ids"):
        listed = pairs if content == "auto_ids" else names
        if parameters.text("returnFormat", form) == "csv":
            return _text("\n".join(["id", *listed]))
        return Answer(200, formats.CONTENT_TYPES["json"], formats.php_json(listed).encode())
    if parameters.text("returnFormat", form) == "csv":
        return _text(str(len(names)))
    return Answer(200, formats.CONTENT_TYPES["json"], formats.php_json({"count": len(names)}).encode())


def _from_eav(rows: list[dict[str, str]], project: Project) -> list[dict[str, str]]:
    id_field = project.id_field
    boxes = {one.name for one in project.fields if one.kind == "checkbox"}
    flat: dict[tuple[str, ...], dict[str, str]] = {}
    keys = ("redcap_event_name", "redcap_repeat_instrument", "redcap_repeat_instance")
    for row in rows:
        place = (row.get("record", ""), *(row.get(key, "") for key in keys))
        into = flat.setdefault(place, {id_field: place[0], **{key: row[key] for key in keys if key in row}})
        name, value = row.get("field_name", ""), row.get("value", "")
        into |= {checkbox_column(name, value): "1"} if name in boxes else {name: value}
    return list(flat.values())


def _delete(api: Api, parameters: Parameters) -> Answer:
    names = parameters.many("records")
    if not names:
        raise ApiError(400, "The parameter 'records' is missing")
    if foreign := [n for n in names if not api.changes.may_touch(n, api.rights.group)]:
        raise ApiError(403, f"The records are in another data access group: {', '.join(foreign)}")
    part = {name: parameters.text(name) for name in ("instrument", "event", "repeat_instance")}
    if part["repeat_instance"] and not part["repeat_instance"].isdecimal():
        raise ApiError(400, 'The value of the parameter "repeat_instance" is not valid')
    if part["instrument"] or part["event"]:
        for name in names:
            api.changes.delete_rows(
                name,
                event=part["event"] if api.project.longitudinal else "",
                instrument=part["instrument"],
                instance=int(part["repeat_instance"] or 0),
            )
        return _text(str(len(names)))
    return _text(str(api.changes.delete(names)))


def _metadata(api: Api, parameters: Parameters, form: str) -> Answer:
    api.changes.note("manage", "Export data dictionary (API)")
    fields, forms = parameters.many("fields"), parameters.many("forms")
    known = {one.name for one in api.project.fields}
    if wrong := [name for name in fields if name not in known]:
        raise ApiError(
            400, f'The following values in the parameter "fields" are not valid: {", ".join(repr(n) for n in wrong)}'
        )
    rows: list[Row] = [
        dict(one.metadata())
        for one in api.project.fields
        if (not fields and not forms) or one.name in fields or one.form in forms
    ]
    return _table(rows, METADATA_COLUMNS, form)


def _field_names(api: Api, parameters: Parameters, form: str) -> Answer:
    rows: list[Row] = []
    for name in api.project.forms:
        for one in api.project.fields_of(name):
            if one.kind in ("descriptive", "file", "calc"):
                continue
            codes = [code for code, _ in one.codes()] if one.kind == "checkbox" else [""]
            rows += [
                {
                    "original_field_name": one.name,
                    "choice_value": code,
                    "export_field_name": checkbox_column(one.name, code) if code else one.name,
                }
                for code in codes
            ]
        status = f"{name}_complete"
        rows.append({"original_field_name": status, "choice_value": "", "export_field_name": status})
    if asked := parameters.text("field"):
        rows = [row for row in rows if row["original_field_name"] == asked]
        if not rows:
            raise ApiError(400, 'The value of the parameter "field" is not valid')
    return _table(rows, ("original_field_name", "choice_value", "export_field_name"), form)


def _project(api: Api, _: Parameters, form: str) -> Answer:
    api.changes.note("manage", "Export project information (API)")
    project = api.project
    row: Row = {
        "project_id": project.id,
        "project_title": project.title,
        "creation_time": "2024-01-08 09:00:00",
        "production_time": "",
        "in_production": 0,
        "project_language": "English",
        "purpose": 0,
        "purpose_other": "",
        "project_notes": "",
        "custom_record_label": "",
        "secondary_unique_field": "",
        "is_longitudinal": int(project.longitudinal),
        "has_repeating_instruments_or_events": int(project.repeats),
        "surveys_enabled": int(bool(project.surveys)),
        "scheduling_enabled": 0,
        "record_autonumbering_enabled": 1,
        "randomization_enabled": 0,
        "ddp_enabled": 0,
        "project_irb_number": "",
        "project_grant_number": "",
        "project_pi_firstname": "",
        "project_pi_lastname": "",
        "project_pi_email": "",
        "display_today_now_button": 1,
        "missing_data_codes": " | ".join(f"{code}, {label}" for code, label in project.missing_codes),
        "external_modules": "",
        "bypass_branching_erase_field_prompt": 0,
    }
    row |= {name: value for name, value in project.info.items() if name in row}
    if form == "json":
        return Answer(200, formats.CONTENT_TYPES["json"], formats.php_json(row).encode())
    return _table([row], list(row), form)


def _instrument(api: Api, _: Parameters, form: str) -> Answer:
    rows: list[Row] = [{"instrument_name": n, "instrument_label": label} for n, label in api.project.forms.items()]
    return _table(rows, ("instrument_name", "instrument_label"), form)


def _longitudinal_only(api: Api, what: str) -> None:
    if not api.project.longitudinal:
        raise ApiError(400, f"You cannot export {what} for classic projects")


def _arm(api: Api, parameters: Parameters, form: str) -> Answer:
    _longitudinal_only(api, "arms")
    asked = parameters.many("arms")
    rows: list[Row] = [
        {"arm_num": number, "name": name}
        for number, name in sorted(api.project.arms.items())
        if not asked or str(number) in asked
    ]
    return _table(rows, ("arm_num", "name"), form)


def _event(api: Api, parameters: Parameters, form: str) -> Answer:
    _longitudinal_only(api, "events")
    asked = parameters.many("arms")
    rows: list[Row] = [
        {
            "event_name": one.name,
            "arm_num": one.arm,
            "unique_event_name": one.unique_name,
            "custom_event_label": one.custom_label,
            "event_id": one.id,
        }
        for one in api.project.events
        if not asked or str(one.arm) in asked
    ]
    return _table(rows, ("event_name", "arm_num", "unique_event_name", "custom_event_label", "event_id"), form)


def _mapping(api: Api, parameters: Parameters, form: str) -> Answer:
    _longitudinal_only(api, "form/event mappings")
    asked = parameters.many("arms")
    rows: list[Row] = [
        {"arm_num": one.arm, "unique_event_name": one.unique_name, "form": name}
        for one in api.project.events
        if not asked or str(one.arm) in asked
        for name in one.forms
    ]
    return _table(rows, ("arm_num", "unique_event_name", "form"), form)


def _repeating(api: Api, _: Parameters, form: str) -> Answer:
    project = api.project
    if not project.repeats:
        raise ApiError(
            400, "You cannot export repeating instruments and events because the project does not contain any"
        )
    places = [(event, "", "") for event in sorted(project.repeating_events)]
    places += [(event, name, label) for (event, name), label in project.repeating_forms.items()]
    rows: list[Row] = []
    for event, name, label in places:
        row: Row = {"event_name": event} if project.longitudinal else {}
        rows.append({**row, "form_name": name, "custom_form_label": label})
    return _table(rows, list(rows[0]), form)


def _user(api: Api, _: Parameters, form: str) -> Answer:
    level = 2 if api.rights.deidentified else 1
    row: Row = {
        "username": "sandbox",
        "email": "sandbox@example.org",
        "firstname": "Sand",
        "lastname": "Box",
        "expiration": "",
        "data_access_group": api.rights.group,
        "data_access_group_id": "",
        "design": 0,
        "user_rights": 1,
        "data_access_groups": 1,
        "reports": 1,
        "logging": int(api.rights.logging),
        "api_export": 1,
        "api_import": 1,
        "record_create": 1,
        "record_rename": 1,
        "record_delete": 1,
        "forms": dict.fromkeys(api.project.forms, 1),
        "forms_export": dict.fromkeys(api.project.forms, level),
    }
    if form != "json":
        row |= {
            name: ",".join(f"{one}:{value}" for one, value in dict.fromkeys(api.project.forms, shown).items())
            for name, shown in (("forms", 1), ("forms_export", level))
        }
    return _table([row], list(row), form)


def _dag(api: Api, _: Parameters, form: str) -> Answer:
    rows: list[Row] = [
        {"data_access_group_name": name, "unique_group_name": unique, "data_access_group_id": number}
        for number, (unique, name) in enumerate(api.project.groups.items(), start=1)
    ]
    return _table(rows, ("data_access_group_name", "unique_group_name", "data_access_group_id"), form)


def _log(api: Api, parameters: Parameters, form: str) -> Answer:
    if not api.rights.logging:
        raise ApiError(403, "You do not have API Logging privileges")
    begin, end = (_moment(parameters.text("beginTime"), "beginTime"), _moment(parameters.text("endTime"), "endTime"))
    kind, user, record = (parameters.text(name) for name in ("logtype", "user", "record"))
    group = api.rights.group
    if parameters.text("dag"):  # by its number, as content=dag gives it
        numbers = dict(enumerate(api.project.groups, start=1))
        group = numbers.get(int(parameters.text("dag")), "?") if parameters.text("dag").isdecimal() else "?"
    rows: list[Row] = [
        {
            "timestamp": entry.at.strftime("%Y-%m-%d %H:%M"),
            "username": entry.user,
            "action": entry.action,
            "details": entry.details.replace("\n", " "),
            "record": entry.record,
        }
        for entry in reversed(api.project.log)
        if (begin is None or entry.at > begin)
        and (end is None or entry.at < end)
        and kind in ("", entry.kind, entry.kind.partition("_")[0])
        and user in ("", entry.user)
        and record in ("", entry.record)
        and (not group or entry.group == group)
    ]
    api.changes.note("manage", "Export Logging (API)")
    return _table(rows, ("timestamp", "username", "action", "details", "record"), form)


def _version(api: Api, _: Parameters, __: str) -> Answer:
    return _text(str(api.project.info.get("version") or VERSION))


def _next_name(api: Api, _: Parameters, __: str) -> Answer:
    return _text(api.changes.next_name())


def _nothing(_: Api, __: Parameters, form: str) -> Answer:
    return _table([], (), form)


# What REDCap has and the sandbox has not.
_NOT_HERE = frozenset(
    [
        "file",
        "fileRepository",
        "participantList",
        "pdf",
        "project_xml",
        "report",
        "surveyLink",
        "surveyQueueLink",
        "surveyReturnCode",
    ]
)

_HANDLERS: dict[str, Handler] = {
    "record": _record,
    "metadata": _metadata,
    "exportFieldNames": _field_names,
    "project": _project,
    "instrument": _instrument,
    "arm": _arm,
    "event": _event,
    "formEventMapping": _mapping,
    "repeatingFormsEvents": _repeating,
    "user": _user,
    "dag": _dag,
    "log": _log,
    "version": _version,
    "generateNextRecordName": _next_name,
    "userRole": _nothing,
    "userRoleMapping": _nothing,
    "userDagMapping": _nothing,
}
