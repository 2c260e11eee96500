"""Load a folder of API exports as JSON."""

import json
import zlib
from pathlib import Path
from typing import Any

from ops.sandbox.project import Event, Project, Record, field_from_metadata


class FolderError(Exception):
    """The folder has not what it needs."""


def load(path: Path) -> Project:
    """Return the project of `metadata.json`, `records.json` and what else is there.

    Raises FolderError or OSError.
    """
    metadata = _read(path, "metadata", None)
    rows = _read(path, "records", None)
    if not metadata:
        raise FolderError(f"{path / 'metadata.json'} has no field")
    fields = [field_from_metadata(row) for row in metadata]
    names = list(dict.fromkeys(one.form for one in fields))
    labels = {row["instrument_name"]: row["instrument_label"] for row in _read(path, "instruments", [])}
    loaded = _read(path, "project", {})  # one object; some clients save it as a list of one
    info: dict[str, Any] = loaded[0] if isinstance(loaded, list) and loaded else dict(loaded)
    project = Project(
        title=str(info.get("project_title", path.name)),
        id=int(info.get("project_id") or zlib.crc32(str(path.resolve()).encode()) % 1_000_000 + 1),
        fields=fields,
        forms={name: labels.get(name, name) for name in names},
        info=info,
    )
    _structure(project, path)
    for row in rows:
        _row(project, {column: "" if value is None else str(value) for column, value in row.items()})
    return project


def _read(path: Path, name: str, default: Any) -> Any:
    file = path / f"{name}.json"
    if not file.exists() and default is not None:
        return default
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise FolderError(f"{file} is missing; metadata.json and records.json are needed") from None
    except ValueError as error:
        raise FolderError(f"{file} is not JSON: {error}") from None


def _structure(project: Project, path: Path) -> None:
    forms_of: dict[str, list[str]] = {}
    for row in _read(path, "formEventMapping", []):
        forms_of.setdefault(row["unique_event_name"], []).append(row["form"])
    project.arms = {int(row["arm_num"]): row["name"] for row in _read(path, "arms", [])}
    for number, row in enumerate(_read(path, "events", []), start=1):
        name = row["unique_event_name"]
        project.arms.setdefault(int(row["arm_num"]), f"Arm {row['arm_num']}")
        project.events.append(
            Event(
                unique_name=name,
                name=row["event_name"],
                arm=int(row["arm_num"]),
                forms=forms_of.get(name, list(project.forms)),
                custom_label=row.get("custom_event_label") or "",
                id=int(row.get("event_id") or number),
            )
        )
    for row in _read(path, "repeatingFormsEvents", []):
        event = row.get("event_name", "") if project.longitudinal else ""
        if row["form_name"]:
            project.repeating_forms[(event, row["form_name"])] = row.get("custom_form_label") or ""
        else:
            project.repeating_events.add(event)
    project.groups = {row["unique_group_name"]: row["data_access_group_name"] for row in _read(path, "dags", [])}
    codes = str(project.info.get("missing_data_codes") or "")
    project.missing_codes = [
        (code.strip(), label.strip())
        for code, _, label in (one.partition(",") for one in codes.split("|"))
        if code.strip()
    ]


def _row(project: Project, row: dict[str, str]) -> None:
    record = project.records.setdefault(row[project.id_field], Record())
    record.group = row.get("redcap_data_access_group", record.group)
    record.survey_identifier = row.get("redcap_survey_identifier", record.survey_identifier)
    instance = row.get("redcap_repeat_instance", "")
    key = (row.get("redcap_event_name", ""), row.get("redcap_repeat_instrument", ""), int(instance) if instance else 0)
    pseudo = {
        project.id_field,
        "redcap_event_name",
        "redcap_repeat_instrument",
        "redcap_repeat_instance",
        "redcap_data_access_group",
        "redcap_survey_identifier",
    }
    record.rows[key] = {column: value for column, value in row.items() if column not in pseudo and value != ""}
    for form in project.forms:
        if f"{form}_timestamp" in row and form not in project.surveys:
            project.surveys.append(form)
