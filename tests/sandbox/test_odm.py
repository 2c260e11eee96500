"""The sandbox loads what REDCap downloads, and answers as REDCap does."""

import csv
import io
import json

import pytest

from ops.sandbox import odm
from ops.sandbox.api import Api
from tests.sandbox import project_xml as xml

TOKEN = "0123456789ABCDEF" * 2


def api_of(tmp_path, text):
    path = tmp_path / "project.xml"
    path.write_text(text, encoding="utf-8")
    return Api(odm.load(path), TOKEN)


def ask(api, content="record", form="json", **parameters):
    from urllib.parse import urlencode

    answer = api.answer(urlencode({"token": TOKEN, "content": content, "format": form, **parameters}))
    text = answer.body.decode()
    return json.loads(text) if form == "json" else list(csv.DictReader(io.StringIO(text, newline="")))


CLASSIC = xml.document(
    [
        xml.item("record_id", "person", label="Record ID"),
        xml.item("name", "person", label="Name", Identifier="y", FieldNote="as in the passport"),
        xml.item("born", "person", TextValidationType="date_ymd"),
        xml.item("sex", "person", "radio", choices=(("0", "Female"), ("1", "Male, or so"))),
        xml.checkbox("pets", "person", "c, Cat|d, Dog | -1, None"),
        xml.status("person"),
        xml.item("weight", "clinic", TextValidationType="float"),
        xml.item("pulse", "clinic", TextValidationType="int"),
        xml.item("note", "clinic", "textarea"),
        xml.item("bmi", "clinic", "calc", Calculation="[weight]\n\t*2"),
        xml.item("scan", "clinic", "file"),
        xml.item("mood", "clinic", "slider", SliderLabels="bad | good"),
        xml.item("headline", "clinic", "descriptive"),
        xml.status("clinic"),
    ],
    [
        xml.subject("10", xml.form_data("person", {"record_id": "10", "name": "Ten"})),
        xml.subject(
            "2",
            xml.form_data(
                "person",
                {
                    "record_id": "2",
                    "redcap_data_access_group": "north",
                    "name": "Zwei & <Zwo>",
                    "born": "2001-02-03",
                    "sex": "1",
                    "pets___d": "1",
                    "person_complete": "2",
                },
            ),
            xml.form_data(
                "clinic",
                {"weight": "70.5", "note": "line\r\n\tline", "clinic_complete": "1"},
                files={"scan": "scan.png"},
            ),
        ),
    ],
    globals_='<redcap:DataAccessGroupsGroup><redcap:DataAccessGroups group_name="North"/></redcap:DataAccessGroupsGroup>',
)


def test_a_classic_project(tmp_path):
    api = api_of(tmp_path, CLASSIC)
    columns = [
        "record_id",
        "name",
        "born",
        "sex",
        "pets___c",
        "pets___d",
        "pets____1",
        "person_complete",
        "weight",
        "pulse",
        "note",
        "bmi",
        "scan",
        "mood",
        "clinic_complete",
    ]
    blank = dict.fromkeys(columns, "") | {
        "pets___c": "0",
        "pets___d": "0",
        "pets____1": "0",
        "person_complete": "0",
        "clinic_complete": "0",
    }
    rows = ask(api)
    assert [list(row) for row in rows] == [columns, columns]
    assert rows == [
        blank
        | {
            "record_id": "2",
            "name": "Zwei & <Zwo>",
            "born": "2001-02-03",
            "sex": "1",
            "pets___d": "1",
            "person_complete": "2",
            "weight": "70.5",
            "note": "line\r\n\tline",
            "scan": "scan.png",
            "clinic_complete": "1",
        },
        blank | {"record_id": "10", "name": "Ten"},
    ]
    assert ask(api, form="csv") == rows


def test_groups_labels_and_gray_forms_are_shown_when_asked_for(tmp_path):
    api = api_of(tmp_path, CLASSIC)
    first, second = ask(api, exportDataAccessGroups="true")
    assert (first["redcap_data_access_group"], second["redcap_data_access_group"]) == ("north", "")
    first, second = ask(api, rawOrLabel="label", exportBlankForGrayFormStatus="true")
    assert first["sex"] == "Male, or so"
    assert first["pets___d"] == "Checked"
    assert first["person_complete"] == "Complete"
    assert second["person_complete"] == ""


def test_the_dictionary(tmp_path):
    api = api_of(tmp_path, CLASSIC)
    rows = {row["field_name"]: row for row in ask(api, "metadata")}
    assert list(rows) == [
        "record_id",
        "name",
        "born",
        "sex",
        "pets",
        "weight",
        "pulse",
        "note",
        "bmi",
        "scan",
        "mood",
        "headline",
    ]
    assert {len(row) for row in rows.values()} == {18}
    assert rows["name"]["identifier"] == "y"
    assert rows["name"]["field_note"] == "as in the passport"
    assert rows["sex"]["select_choices_or_calculations"] == "0, Female | 1, Male, or so"
    assert rows["pets"]["select_choices_or_calculations"] == "c, Cat | d, Dog | -1, None"
    assert rows["pets"]["field_type"] == "checkbox"
    assert rows["note"]["field_type"] == "notes"
    assert rows["weight"]["text_validation_type_or_show_slider_number"] == "number"
    assert rows["pulse"]["text_validation_type_or_show_slider_number"] == "integer"
    assert rows["bmi"]["select_choices_or_calculations"] == "[weight]\n\t*2"
    assert rows["mood"]["select_choices_or_calculations"] == "bad | good"


LONGITUDINAL = xml.document(
    [
        xml.item("record_id", "start"),
        xml.item("first", "start"),
        xml.status("start"),
        xml.item("pulse", "visit"),
        xml.status("visit"),
        xml.item("drug", "drugs"),
        xml.checkbox("effects", "drugs", "1, Pain | 2, None"),
        xml.status("drugs"),
    ],
    [
        xml.subject(
            "1",
            xml.event_data("begin_arm_1", xml.form_data("start", {"record_id": "1", "first": "one"})),
            xml.event_data(
                "middle_arm_1",
                xml.form_data("visit", {"pulse": "60", "visit_complete": "2"}),
                xml.form_data("drugs", {"drug": "aspirin", "effects___1": "1"}, repeat=1),
                xml.form_data("drugs", {"drug": "placebo"}, repeat=2),
            ),
            xml.event_data("extra_arm_1", xml.form_data("visit", {"pulse": "70"}), repeat=1),
            xml.event_data("extra_arm_1", xml.form_data("visit", {"pulse": "80"}), repeat=3),
        )
    ],
    events=xml.event_definition("begin_arm_1", "Begin", ["start"])
    + xml.event_definition("middle_arm_1", "Middle", ["visit", "drugs"])
    + xml.event_definition("extra_arm_1", "Extra", ["visit"]),
    globals_=(
        "<redcap:MissingDataCodes>UNK, Unknown</redcap:MissingDataCodes><redcap:RepeatingInstrumentsAndEvents>"
        '<redcap:RepeatingInstruments><redcap:RepeatingInstrument redcap:UniqueEventName="middle_arm_1" '
        'redcap:RepeatInstrument="drugs" redcap:CustomLabel="[drug]"/></redcap:RepeatingInstruments><redcap:RepeatingEvents>'
        '<redcap:RepeatingEvent redcap:UniqueEventName="extra_arm_1"/></redcap:RepeatingEvents></redcap:RepeatingInstrumentsAndEvents>'
    ),
)


def test_events_and_repeats(tmp_path):
    api = api_of(tmp_path, LONGITUDINAL)
    rows = ask(api)
    keys = ("redcap_event_name", "redcap_repeat_instrument", "redcap_repeat_instance")
    assert [tuple(row[key] for key in keys) for row in rows] == [
        ("begin_arm_1", "", ""),
        ("middle_arm_1", "", ""),
        ("middle_arm_1", "drugs", 1),
        ("middle_arm_1", "drugs", 2),
        ("extra_arm_1", "", 1),
        ("extra_arm_1", "", 3),
    ]
    begin, middle, first_drug = rows[:3]
    # A cell that belongs to another event's or another row's form is empty, a check box too.
    assert (begin["start_complete"], begin["visit_complete"], begin["effects___1"]) == ("0", "", "")
    assert (middle["pulse"], middle["drugs_complete"], middle["effects___1"]) == ("60", "", "")
    assert (first_drug["drug"], first_drug["effects___1"], first_drug["effects___2"]) == ("aspirin", "1", "0")
    assert (first_drug["pulse"], first_drug["visit_complete"]) == ("", "")
    assert list(first_drug).count("effects___unk") == 1
    assert ask(api, "repeatingFormsEvents") == [
        {"event_name": "extra_arm_1", "form_name": "", "custom_form_label": ""},
        {"event_name": "middle_arm_1", "form_name": "drugs", "custom_form_label": "[drug]"},
    ]
    assert [row["form"] for row in ask(api, "formEventMapping")] == ["start", "visit", "drugs", "visit"]
    assert ask(api, "project")["missing_data_codes"] == "UNK, Unknown"


def test_an_http_namespace_loads_as_well(tmp_path):
    text = CLASSIC.replace("http://www.cdisc.org", "https://www.cdisc.org")
    assert len(ask(api_of(tmp_path, text))) == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<ODM", "well-formed"),
        ("<html/>", "root"),
        (f"<ODM {xml.NAMESPACES}/>", "MetaDataVersion"),
        (xml.document([], []), "no field"),
    ],
)
def test_what_is_no_project_xml_is_refused(tmp_path, text, reason):
    with pytest.raises(odm.OdmError, match=reason):
        api_of(tmp_path, text)
