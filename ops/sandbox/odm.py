"""Load what REDCap's "Download metadata & data (XML)" gives: CDISC ODM with its extensions."""

import re
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Iterator
from pathlib import Path

from ops.sandbox.project import Event, Field, Project, Record, RowKey, unique_group_name

_ODM = "{http://www.cdisc.org/ns/odm/v1.3}"
_REDCAP = "{https://projectredcap.org}"

# The XML has REDCap's internal names; the dictionary has the ones that people see.
_KINDS = {"textarea": "notes", "select": "dropdown"}
_VALIDATIONS = {"float": "number", "int": "integer"}
_ATTRIBUTES = {
    "SectionHeader": "section_header",
    "FieldNote": "field_note",
    "BranchingLogic": "branching_logic",
    "RequiredField": "required_field",
    "CustomAlignment": "custom_alignment",
    "QuestionNumber": "question_number",
    "QuestionNum": "question_number",
    "MatrixGroupName": "matrix_group_name",
    "MatrixRanking": "matrix_ranking",
    "FieldAnnotation": "field_annotation",
}


class OdmError(Exception):
    """The file is not what REDCap downloads as project XML."""


def load(path: Path) -> Project:
    """Return the project of an XML file. Raises OdmError or OSError."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
        root = ET.fromstring(_with_line_breaks(text).encode())  # noqa: S314 - expat >= 2.4 refuses entity bombs
    except (ET.ParseError, UnicodeDecodeError) as error:
        raise OdmError(f"{path} is not well-formed XML in UTF-8: {error}") from None
    namespace = root.tag.rpartition("ODM")[0]
    if not root.tag.endswith("}ODM"):
        raise OdmError(f"{path} has the root {root.tag!r}; a REDCap project XML has ODM")
    if namespace != _ODM:  # versions differ in http and https
        _rename(root, namespace, _ODM)
    study = root.find(f"{_ODM}Study")
    version = study.find(f"{_ODM}MetaDataVersion") if study is not None else None
    if study is None or version is None:
        raise OdmError(f"{path} has no Study with a MetaDataVersion: download it with its metadata")
    project = _structure(study, version)
    _info(project, study, root.get("SourceSystemVersion", ""))
    for subject in root.iterfind(f"{_ODM}ClinicalData/{_ODM}SubjectData"):
        _record(project, subject)
    return project


# A tag with its attributes, or what must not be taken for one.
_MARKUP = re.compile(r"""<!\[CDATA\[.*?\]\]>|<!--.*?-->|<[A-Za-z](?:[^>"']|"[^"]*"|'[^']*')*>""", re.DOTALL)
_VALUE = re.compile(r""""[^"]*"|'[^']*'""", re.DOTALL)
_BREAKS = {"\n": "&#10;", "\r": "&#13;", "\t": "&#9;"}


def _with_line_breaks(text: str) -> str:
    """Return the XML with the line breaks of attribute values as references.

    REDCap writes them as they are, and a parser must make blanks of them (XML 1.0, 3.3.3).
    """

    def tag(match: re.Match[str]) -> str:
        if match[0].startswith("<!"):
            return match[0]
        return _VALUE.sub(lambda value: re.sub("[\n\r\t]", lambda one: _BREAKS[one[0]], value[0]), match[0])

    return _MARKUP.sub(tag, text)


def _rename(root: ET.Element, old: str, new: str) -> None:
    for element in root.iter():
        if element.tag.startswith(old):
            element.tag = new + element.tag[len(old) :]


def _structure(study: ET.Element, version: ET.Element) -> Project:
    forms: dict[str, str] = {}
    owner: dict[str, str] = {}  # variable: form
    groups_of = {
        group.get("OID", ""): [
            ref.get(f"{_REDCAP}Variable", ref.get("ItemOID", "")) for ref in group.iterfind(f"{_ODM}ItemRef")
        ]
        for group in version.iterfind(f"{_ODM}ItemGroupDef")
    }
    for form in version.iterfind(f"{_ODM}FormDef"):
        name = form.get(f"{_REDCAP}FormName") or form.get("OID", "").removeprefix("Form.")
        forms[name] = form.get("Name", name)
        for ref in form.iterfind(f"{_ODM}ItemGroupRef"):
            for variable in groups_of.get(ref.get("ItemGroupOID", ""), ()):
                owner.setdefault(variable, name)
    choices = {one.get("OID", ""): one for one in version.iterfind(f"{_ODM}CodeList")}
    fields: dict[str, Field] = {}
    for item in version.iterfind(f"{_ODM}ItemDef"):
        variable = item.get(f"{_REDCAP}Variable", item.get("OID", ""))
        # What has no field type is a pseudo-field (group, survey identifier and timestamp); a
        # form's status is a field in the XML and none in the dictionary.
        if variable in fields or not item.get(f"{_REDCAP}FieldType") or variable not in owner:
            continue
        if variable == f"{owner[variable]}_complete":
            continue
        fields[variable] = _field(item, variable, owner[variable], choices)
    if not fields:
        raise OdmError("the XML defines no field")
    id_field = version.get(f"{_REDCAP}RecordIdField")
    order = {form: position for position, form in enumerate(forms)}
    ordered = sorted(fields.values(), key=lambda one: (one.name != id_field, order[one.form]))
    project = Project(title="", fields=ordered, forms=forms)
    _events(project, version)
    _repeats(project, study)
    return project


def _field(item: ET.Element, variable: str, form: str, choices: dict[str, ET.Element]) -> Field:
    kind = item.get(f"{_REDCAP}FieldType", "text")
    kind = _KINDS.get(kind, kind)
    validation = item.get(f"{_REDCAP}TextValidationType", "")
    question = item.find(f"{_ODM}Question")
    rest = {
        column: item.get(_REDCAP + attribute, "")
        for attribute, column in _ATTRIBUTES.items()
        if item.get(_REDCAP + attribute)
    }
    for check in item.iterfind(f"{_ODM}RangeCheck"):
        column = {"GE": "text_validation_min", "LE": "text_validation_max"}.get(check.get("Comparator", ""))
        if column:
            rest[column] = check.findtext(f"{_ODM}CheckValue", "")
    return Field(
        name=variable,
        form=form,
        kind=kind,
        label=_label(question),
        choices=_choices(item, kind, choices),
        validation=_VALIDATIONS.get(validation, validation),
        identifier=item.get(f"{_REDCAP}Identifier", "") == "y",
        rest=rest,
    )


def _label(question: ET.Element | None) -> str:
    if question is None:
        return ""
    formatted = question.findtext(f"{_REDCAP}FormattedTranslatedText")
    return formatted if formatted is not None else question.findtext(f"{_ODM}TranslatedText", "")


def _choices(item: ET.Element, kind: str, lists: dict[str, ET.Element]) -> str:
    if kind == "calc":
        return item.get(f"{_REDCAP}Calculation", "")
    if kind == "slider":
        return item.get(f"{_REDCAP}SliderLabels", "")
    if kind == "sql":
        return item.get(f"{_REDCAP}Sql", item.get(f"{_REDCAP}SqlCode", ""))
    reference = item.find(f"{_ODM}CodeListRef")
    found = lists.get(reference.get("CodeListOID", "")) if reference is not None else None
    if found is None or kind in ("yesno", "truefalse"):
        return ""
    if kind == "checkbox":
        return " | ".join(choice.strip() for choice in found.get(f"{_REDCAP}CheckboxChoices", "").split("|"))
    return " | ".join(
        f"{one.get('CodedValue', '')}, {one.findtext(f'{_ODM}Decode/{_ODM}TranslatedText', '')}"
        for one in found.iterfind(f"{_ODM}CodeListItem")
    )


def _events(project: Project, version: ET.Element) -> None:
    for number, one in enumerate(version.iterfind(f"{_ODM}StudyEventDef"), start=1):
        arm = int(one.get(f"{_REDCAP}ArmNum", "1"))
        project.arms[arm] = one.get(f"{_REDCAP}ArmName", f"Arm {arm}")
        refs = one.iterfind(f"{_ODM}FormRef")
        forms = [ref.get(f"{_REDCAP}FormName") or ref.get("FormOID", "").removeprefix("Form.") for ref in refs]
        project.events.append(
            Event(
                unique_name=one.get(f"{_REDCAP}UniqueEventName") or one.get("OID", "").removeprefix("Event."),
                name=one.get(f"{_REDCAP}EventName", one.get("Name", "")),
                arm=arm,
                forms=forms,
                custom_label=one.get(f"{_REDCAP}CustomEventLabel", ""),
                id=number,
            )
        )


def _repeats(project: Project, study: ET.Element) -> None:
    events = set(project.event_names())
    for one in study.iter(f"{_REDCAP}RepeatingInstrument"):
        event = one.get(f"{_REDCAP}UniqueEventName", "")
        # A classic project names an event here that its answers never show.
        key = (event if event in events else "", one.get(f"{_REDCAP}RepeatInstrument", ""))
        project.repeating_forms[key] = one.get(f"{_REDCAP}CustomLabel", "")
    for one in study.iter(f"{_REDCAP}RepeatingEvent"):
        event = one.get(f"{_REDCAP}UniqueEventName", "")
        project.repeating_events.add(event if event in events else "")


def _info(project: Project, study: ET.Element, version: str) -> None:
    known = {
        one.tag.removeprefix(_REDCAP): (one.text or "")
        for one in study.iterfind(f"{_ODM}GlobalVariables/*")
        if one.tag.startswith(_REDCAP)
    }
    # The file does not tell the project's number; two projects must not have one.
    project.id = zlib.crc32(study.get("OID", "").encode()) % 1_000_000 + 1
    project.title = study.findtext(f"{_ODM}GlobalVariables/{_ODM}StudyName", "")
    project.surveys = [one.get("form_name", "") for one in study.iter(f"{_REDCAP}Surveys") if one.get("form_name")]
    for one in study.iter(f"{_REDCAP}DataAccessGroups"):
        name = one.get("group_name", "")
        project.groups[unique_group_name(name)] = name
    project.missing_codes = [
        (code.strip(), label.strip())
        for code, _, label in (
            line.partition(",") for line in known.get("MissingDataCodes", "").replace("|", "\n").splitlines()
        )
        if code.strip()
    ]
    project.info = {
        "version": version,
        "record_autonumbering_enabled": int(known.get("RecordAutonumberingEnabled") or 0),
        "custom_record_label": known.get("CustomRecordLabel", ""),
        "secondary_unique_field": known.get("SecondaryUniqueField", ""),
        "scheduling_enabled": int(known.get("SchedulingEnabled") or 0),
        "surveys_enabled": int(known.get("SurveysEnabled") or 0),
        "randomization_enabled": int(known.get("RandomizationEnabled") or 0),
        "display_today_now_button": int(known.get("DisplayTodayNowButton") or 0),
        "purpose": int(known.get("Purpose") or 0),
        "purpose_other": known.get("PurposeOther", ""),
        "project_notes": known.get("ProjectNotes", ""),
    }


def _record(project: Project, subject: ET.Element) -> None:
    record = Record()
    project.records[subject.get("SubjectKey", "")] = record
    events = subject.findall(f"{_ODM}StudyEventData")
    for part in events or [subject]:
        event = part.get(f"{_REDCAP}UniqueEventName", "") if events else ""
        event_instance = int(part.get("StudyEventRepeatKey", "1")) if events else 1
        for form in part.iterfind(f"{_ODM}FormData"):
            name = form.get("FormOID", "").removeprefix("Form.")
            key: RowKey = (event, "", 0)
            if event in project.repeating_events:
                key = (event, "", event_instance)
            elif (event, name) in project.repeating_forms:
                key = (event, name, int(form.get("FormRepeatKey", "1")))
            values = record.rows.setdefault(key, {})
            for column, value in _items(form):
                if column == "redcap_data_access_group":
                    record.group = value
                elif column == "redcap_survey_identifier":
                    record.survey_identifier = value
                elif column != project.id_field:
                    values[column] = value


def _items(form: ET.Element) -> Iterator[tuple[str, str]]:
    for item in form.iter():
        if item.tag == f"{_ODM}ItemData":
            yield item.get("ItemOID", ""), item.get("Value", "")
        elif item.tag == f"{_ODM}ItemDataBase64Binary":  # a file: the API shows its name
            yield item.get("ItemOID", ""), item.get(f"{_REDCAP}DocName", "")
