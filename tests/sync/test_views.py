"""The views: what a person with a database tool or pandas finds."""

import sqlite3
from contextlib import closing

import pytest

from ops.sandbox.project import Field, Record

ENROLLED = "enrolment_arm_1"


def put(world, **values):
    world.api.changes.put([{"record_id": "1", "redcap_event_name": ENROLLED, **values}])


def test_one_view_an_instrument_with_the_rows_that_belong_to_it(either):
    either.sync()
    truth = either.truth()
    expected = {
        "enrolment": {key for key in truth if key[1] == ENROLLED},
        "visit": {key for key in truth if key[1].startswith("visit_") and not key[2]},
        "medication": {key for key in truth if key[2] == "medication"},
        "adverse_event": {key for key in truth if key[1] == "unscheduled_arm_1"},
    }
    for view, keys in expected.items():
        assert keys
        rows = either.query(f"SELECT record_id, event, repeat_instrument, repeat_instance FROM {view}")
        assert set(rows) == keys
    assert either.query("SELECT DISTINCT project_id FROM visit") == [(4242,)]


def test_values_are_typed_by_the_dictionary(either):
    put(either, born_on="1961-02-03", sex="2", consented="0", languages___en="1", languages____9="0")
    either.sync()
    (row,) = either.query(
        "SELECT born_on, sex, consented, languages___en, languages____9, enrolment_complete, first_name "
        "FROM enrolment WHERE record_id = '1'"
    )
    shown = [str(value) for value in row[:2]] + [int(value) for value in row[2:6]]
    assert shown == ["1961-02-03", "2", 0, 1, 0, 2]
    for weight, pulse in either.query("SELECT weight_kg, pulse FROM visit"):
        assert weight is None or float(weight) > 40
        assert isinstance(pulse, int)
    (missing,) = either.query("SELECT COUNT(*) FROM visit WHERE weight_kg IS NULL")
    assert missing[0] > 0  # the code UNK of missing data


ODD = ["", " ", "UNK", "1-2", "--5", "+", "-", ".", "1.2.3", "1e5", "0x10", "9" * 40, "today", "now", "infinity", "NaN"]
ODD += ["2023-02-30", "2023-13-01", "2023-1-1", "24:61", "12", "-7", "+7", "007", ".5", "5.", "1,5", "a'b\"c", "'; --"]


@pytest.mark.parametrize("rule", ["integer", "number", "number_2dp_comma_decimal", "date_dmy", "datetime_ymd", "time"])
def test_no_value_breaks_a_view(either, rule):
    """Values that came before the field had its rule, or by an import that does not check."""
    one = next(field for field in either.api.project.fields if field.name == "visit_note")
    one.kind, one.validation = "text", rule
    for number, text in enumerate(ODD, 1):
        record = Record(rows={("visit_1_arm_1", "", 0): {"visit_note": text}})
        either.api.project.records[f"odd {number}"] = record
    either.sync()
    found = dict(either.query("SELECT record_id, visit_note FROM visit WHERE record_id LIKE 'odd %'"))
    assert len(found) == len(ODD)
    seen = {text: found[f"odd {number}"] for number, text in enumerate(ODD, 1)}
    assert all(seen[text] is None for text in ("", "UNK", "1-2", "--5", "+", "-", ".", "1.2.3", "today", "NaN", "now"))
    if rule == "integer":
        assert (seen["-7"], seen["+7"], seen["007"], seen["12"], seen["9" * 40]) == (-7, 7, 7, 12, None)
    elif rule == "number":
        assert [float(seen[text]) for text in ("-7", ".5", "5.", "007")] == [-7, 0.5, 5, 7]
        assert seen["1,5"] is None
    elif rule == "number_2dp_comma_decimal":
        assert float(seen["1,5"]) == 1.5
    elif either.dialect == "postgresql":
        assert seen["2023-02-30"] is None
        assert seen["24:61"] is None


def test_deleted_rows_are_left_out(either):
    either.sync()
    either.api.changes.delete(["1"])
    either.sync()
    assert either.query("SELECT COUNT(*) FROM enrolment WHERE record_id = '1'") == [(0,)]
    assert either.query("SELECT COUNT(*) FROM records WHERE record_id = '1'") != [(0,)]


def test_choices_stand_in_codes(either):
    either.sync()
    coded = either.query("SELECT code, label FROM codes WHERE field_name = 'drug' ORDER BY position")
    assert coded == [("1", "Placebo"), ("2", "Verum (10 mg)"), ("3", "Verum (20 mg)")]
    assert ("UNK", "Unknown") in either.query("SELECT code, label FROM codes WHERE field_name = ''")
    assert ("1", "Yes") in either.query("SELECT code, label FROM codes WHERE field_name = 'consented'")
    named = either.query(
        "SELECT COUNT(*) FROM enrolment JOIN codes ON codes.project_id = enrolment.project_id "
        "AND codes.field_name = 'sex' AND codes.code = enrolment.sex"
    )
    assert named == either.query("SELECT COUNT(*) FROM enrolment WHERE sex IS NOT NULL")


def test_names_that_would_clash_or_break_are_changed_and_listed(either):
    project = either.api.project
    long = "a" * 70
    for name in ("event", "repeat_instance", "select", f"{long}_1", f"{long}_2"):
        project.fields.insert(1, Field(name=name, form="enrolment", label=f"The {name}"))
    # An instrument that is called as one of our tables, and one as a table of somebody else.
    project.forms |= {"records": "Records", "order": "Order", "mine": "Mine"}
    project.fields += [Field(name=f"in_{form}", form=form) for form in ("records", "order", "mine")]
    project.events[0].forms += ["records", "order", "mine"]
    either.sync()  # makes the database
    either.query("DROP VIEW mine")
    either.query("CREATE TABLE mine (id INTEGER)")
    put(either, event="E", repeat_instance="R", select="S", in_records="T")
    assert either.sync(full=True)["mode"] == "full"
    listed = {
        (view, field): column
        for view, field, column in either.query("SELECT view_name, field_name, column_name FROM fields")
    }
    assert listed["enrolment", "event"] == "event_2"
    assert listed["enrolment", "repeat_instance"] == "repeat_instance_2"
    assert listed["records_2", "in_records"] == "in_records"
    assert listed["mine_2", "in_mine"] == "in_mine"
    columns = {listed["enrolment", f"{long}_{number}"] for number in (1, 2)}
    assert len(columns) == 2
    assert max(map(len, columns)) <= 63
    row = either.query("SELECT event_2, repeat_instance_2, \"select\" FROM enrolment WHERE record_id = '1'")
    assert row == [("E", "R", "S")]
    assert either.query("SELECT in_records FROM records_2 WHERE record_id = '1'") == [("T",)]
    assert either.query('SELECT COUNT(*) FROM "order"') == either.query("SELECT COUNT(*) FROM enrolment")
    assert either.query("SELECT COUNT(*) FROM mine") == [(0,)]


def test_three_thousand_fields_are_views_of_a_size_that_databases_take(either):
    form = "visit"
    either.api.project.fields[-4:-4] = [
        Field(name=f"wide_{n:04d}", form=form, validation="integer") for n in range(3000)
    ]
    either.api.changes.put([{"record_id": "1", "redcap_event_name": "visit_1_arm_1", "wide_2999": "77"}])
    either.sync()
    either.assert_exact()
    ((view,),) = either.query("SELECT view_name FROM fields WHERE field_name = 'wide_2999'")
    assert view == "visit_part3"
    assert either.query(f"SELECT wide_2999 FROM {view} WHERE wide_2999 IS NOT NULL") == [(77,)]


def test_a_removed_field_leaves_the_view_and_a_new_one_comes(either):
    either.sync()
    fields = either.api.project.fields
    fields.remove(next(one for one in fields if one.name == "sex"))
    fields.insert(3, Field(name="height_cm", form="enrolment", validation="integer"))
    put(either, height_cm="171")
    either.sync()
    assert either.query("SELECT height_cm FROM enrolment WHERE record_id = '1'") == [(171,)]
    assert either.query("SELECT COUNT(*) FROM fields WHERE field_name = 'sex'") == [(0,)]


def test_labels_instead_of_codes(either, monkeypatch):
    monkeypatch.setenv("REDCAP_RAW_OR_LABEL", "label")
    either.sync()
    assert {sex for (sex,) in either.query("SELECT DISTINCT sex FROM enrolment WHERE sex IS NOT NULL")} <= {
        "Female",
        "Male",
        "Other",
    }
    medication = [key for key in either.api.project.records["1"].rows if key[1] == "medication"]
    found = either.query("SELECT COUNT(*) FROM medication WHERE record_id = '1'")
    assert found == [(len(medication),)]


def test_an_empty_project_has_views(either):
    either.api.project.records.clear()
    either.sync()
    assert either.query("SELECT record_id, sex FROM enrolment") == []
    either.api.changes.put([{"record_id": "1", "redcap_event_name": ENROLLED, "sex": "1"}])
    either.sync()
    either.assert_exact()
    either.sync()  # what the first row showed of the columns counts from the next cycle on
    assert either.query("SELECT record_id, sex FROM enrolment") == [("1", "1")]


def test_two_projects_in_one_database(either, tmp_path):
    either.sync()
    either.api.project.id = 4243
    either.sync()
    assert either.query("SELECT DISTINCT project_id FROM visit") == [(4242,)]
    assert either.query("SELECT DISTINCT project_id FROM visit_2") == [(4243,)]


def test_pandas_reads_a_view(world):
    import pandas as pd

    world.sync()
    with closing(sqlite3.connect(world.state_dir / "redcap.db")) as connection:
        frame = pd.read_sql("SELECT * FROM visit", connection)
    assert frame["pulse"].dtype == "int64"
    assert frame["weight_kg"].dtype == "float64"


def test_valid_dates_and_times_are_what_they_are(either):
    values = {"visit_on": "2024-02-29 23:59"}
    either.api.changes.put([{"record_id": "1", "redcap_event_name": "visit_1_arm_1", **values}])
    one = next(field for field in either.api.project.fields if field.name == "visit_note")
    for rule, text, shown in (
        ("time", "07:30", "07:30"),
        ("time_hh_mm_ss", "07:30:59", "07:30:59"),
        ("datetime_seconds_mdy", "2024-02-29 07:30:59", "2024-02-29 07:30:59"),
        ("date_mdy", "2024-02-29", "2024-02-29"),
        ("time", "24:00", None if either.dialect == "postgresql" else "24:00"),
    ):
        one.kind, one.validation = "text", rule
        either.api.project.records["1"].rows["visit_1_arm_1", "", 0]["visit_note"] = text
        either.sync(full=True)
        ((visit_on, note),) = either.query(
            "SELECT visit_on, visit_note FROM visit WHERE record_id = '1' AND event = 'visit_1_arm_1'"
        )
        assert str(visit_on)[:16] == values["visit_on"]
        assert (note if note is None else str(note)[: len(shown)]) == shown


def test_names_that_something_else_has_are_changed(either):
    """An index, a reserved prefix, two long names that are one after 63 bytes, a materialized view."""
    project = either.api.project
    long = "ü" * 40
    names = ["records_changed_at", "sqlite_form", f"{long}a", f"{long}b", "taken"]
    if either.dialect == "postgresql":
        either.query("CREATE MATERIALIZED VIEW taken AS SELECT 1")
    for number, name in enumerate(names):
        project.forms[name] = name
        project.fields.append(Field(name=f"in_{number}", form=name, label="with a \0"))
        project.events[0].forms.append(name)
    put(either, in_4="here")
    either.sync()
    views = dict(either.query("SELECT instrument, view_name FROM fields WHERE field_name LIKE 'in%'"))
    assert len(set(views.values())) == len(names)
    assert either.query(f"SELECT in_4 FROM \"{views['taken']}\" WHERE record_id = '1'") == [("here",)]
    assert (views["taken"] == "taken") is (either.dialect == "sqlite")


def test_many_full_cycles_of_some_fields_make_no_more_views(either, monkeypatch):
    """Instruments of which no column comes; their views must not be left behind by each cycle."""
    monkeypatch.setenv("REDCAP_FIELDS", "sex")
    for _ in range(8):
        either.sync(full=True)
    tables = "sqlite_master WHERE type = 'view'"
    if either.dialect == "postgresql":
        tables = "pg_views WHERE schemaname = 'public'"
    assert either.query(f"SELECT COUNT(*) FROM {tables}") == [(1,)]
    assert either.query("SELECT DISTINCT view_name FROM fields") == [("enrolment",)]


def test_ten_projects_with_the_same_instruments_in_one_database(either):
    for number in range(10):
        either.api.project.id = 5000 + number
        either.sync()
    assert len(either.query("SELECT DISTINCT view_name FROM fields WHERE instrument = 'visit'")) == 10
    assert either.query("SELECT DISTINCT project_id FROM visit_10") == [(5009,)]
