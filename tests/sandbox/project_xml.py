"""Project XML as REDCap downloads it, written by the tests for people who do not exist."""

from xml.sax.saxutils import escape

NAMESPACES = (
    'xmlns="http://www.cdisc.org/ns/odm/v1.3" xmlns:redcap="https://projectredcap.org" '
    'ODMVersion="1.3.1" FileType="Snapshot" SourceSystem="REDCap" SourceSystemVersion="14.7.3"'
)


def quoteattr(value):
    """Quote as REDCap does: line breaks stay what they are."""
    return '"' + escape(value, {'"': "&quot;"}) + '"'


def item(name, form, kind="text", *, oid=None, label="", choices=(), checkbox="", **redcap):
    """Return the definition of one item: its reference, its definition, its code list."""
    oid = oid or name
    extra = "".join(f" redcap:{key}={quoteattr(value)}" for key, value in redcap.items())
    reference = f'<ItemRef ItemOID="{oid}" Mandatory="No" redcap:Variable="{name}"/>'
    has_list = choices or checkbox
    listed = f'<CodeListRef CodeListOID="{oid}.choices"/>' if has_list else ""
    definition = (
        f'<ItemDef OID="{oid}" Name="{oid}" DataType="text" Length="999" redcap:Variable="{name}" '
        f'redcap:FieldType="{kind}"{extra}><Question><TranslatedText>{label}</TranslatedText></Question>{listed}</ItemDef>'
    )
    codes = "".join(
        f"<CodeListItem CodedValue={quoteattr(code)}><Decode><TranslatedText>{text}</TranslatedText></Decode></CodeListItem>"
        for code, text in choices
    )
    boxes = f" redcap:CheckboxChoices={quoteattr(checkbox)}" if checkbox else ""
    code_list = (
        f'<CodeList OID="{oid}.choices" Name="{oid}" DataType="text" redcap:Variable="{name}"{boxes}>{codes}</CodeList>'
    )
    return form, reference, definition, code_list if has_list else ""


def checkbox(name, form, choices, **redcap):
    """Return the items of a check box: one a choice."""
    codes = [choice.split(",")[0].strip() for choice in choices.split("|")]
    return [
        item(
            name,
            form,
            "checkbox",
            oid=f"{name}___{code}",
            checkbox=choices,
            choices=(("1", "Checked"), ("0", "Unchecked")),
            **redcap,
        )
        for code in codes
    ]


def status(form):
    """Return a form's status field, which the XML has and the dictionary has not."""
    return item(f"{form}_complete", form, "select", choices=(("0", "Incomplete"), ("2", "Complete")))


def form_data(form, values, *, repeat=1, files=None):
    """Return one form's data; `files` are name: file name."""
    cells = "".join(f"<ItemData ItemOID={quoteattr(k)} Value={quoteattr(v)}/>" for k, v in values.items())
    cells += "".join(
        f'<ItemDataBase64Binary ItemOID="{k}" redcap:DocName="{v}" redcap:MimeType="image/png"><![CDATA[aGk=]]></ItemDataBase64Binary>'
        for k, v in (files or {}).items()
    )
    return (
        f'<FormData FormOID="Form.{form}" FormRepeatKey="{repeat}"><ItemGroupData ItemGroupOID="{form}.x" '
        f'ItemGroupRepeatKey="1">{cells}</ItemGroupData></FormData>'
    )


def event_data(event, *forms, repeat=1):
    """Return one event's data."""
    return (
        f'<StudyEventData StudyEventOID="Event.{event}" StudyEventRepeatKey="{repeat}" '
        f'redcap:UniqueEventName="{event}">{"".join(forms)}</StudyEventData>'
    )


def subject(name, *parts):
    """Return one record."""
    return f'<SubjectData SubjectKey={quoteattr(name)} redcap:RecordIdField="record_id">{"".join(parts)}</SubjectData>'


def event_definition(name, title, forms, arm=1):
    """Return one event and the forms that are designated for it."""
    refs = "".join(f'<FormRef FormOID="Form.{form}" Mandatory="No" redcap:FormName="{form}"/>' for form in forms)
    return (
        f'<StudyEventDef OID="Event.{name}" Name="{title}" redcap:EventName="{title}" redcap:UniqueEventName="{name}" '
        f'redcap:ArmNum="{arm}" redcap:ArmName="Arm {arm}">{refs}</StudyEventDef>'
    )


def document(items, subjects, *, globals_="", events="", title="A project"):
    """Return the whole file."""
    flat = [one for group in items for one in (group if isinstance(group, list) else [group])]
    forms: dict[str, list[str]] = {}
    for form, reference, _, _ in flat:
        forms.setdefault(form, []).append(reference)
    form_definitions = "".join(
        f'<FormDef OID="Form.{form}" Name="{form.title()}" Repeating="No" redcap:FormName="{form}">'
        f'<ItemGroupRef ItemGroupOID="{form}.x" Mandatory="No"/></FormDef>'
        for form in forms
    )
    groups = "".join(
        f'<ItemGroupDef OID="{form}.x" Name="{form}" Repeating="No">{"".join(references)}</ItemGroupDef>'
        for form, references in forms.items()
    )
    return (
        f'<?xml version="1.0" encoding="UTF-8" ?>\n<ODM {NAMESPACES}><Study OID="Project.x"><GlobalVariables>'
        f"<StudyName>{title}</StudyName>{globals_}</GlobalVariables>"
        f'<MetaDataVersion OID="Metadata.x" Name="{title}" redcap:RecordIdField="record_id">{events}{form_definitions}'
        f"{groups}{''.join(one[2] for one in flat)}{''.join(one[3] for one in flat)}</MetaDataVersion></Study>"
        f'<ClinicalData StudyOID="Project.x" MetaDataVersionOID="Metadata.x">{"".join(subjects)}</ClinicalData></ODM>'
    )
