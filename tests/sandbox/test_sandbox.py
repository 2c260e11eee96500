"""The sandbox as a program, its folder of exports, its synthetic project, its faults."""

import json
import signal
import subprocess
import sys
import urllib.parse
import urllib.request

import pytest

from ops.sandbox import folder, synthetic
from ops.sandbox.api import Api, Parameters
from ops.sandbox.faults import FAULTS, FaultError, Schedule
from ops.sandbox.logic import LogicError, parse
from tests.conftest import ROOT

TOKEN = "0123456789ABCDEF" * 2


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "ops.sandbox", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def post(url, **form):
    with urllib.request.urlopen(url, urllib.parse.urlencode(form).encode()) as answer:  # noqa: S310
        return json.load(answer)


def test_it_says_where_it_listens_and_ends_on_sigterm():
    process = start("--port", "0", "--records", "5", "--churn", "50")
    with process:
        url = process.stdout.readline().removeprefix("listening on ").strip()
        token = process.stdout.readline().removeprefix("token ").strip()
        rows = post(url, token=token, content="record", format="json")
        assert len({row["record_id"] for row in rows}) >= 4
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["/nowhere.xml"],
        ["--fault", "no-such"],
        ["--rights", "all"],
        ["--timezone", "Mars/Base"],
        ["--rights", "dag:none"],
        ["--port", "99999"],
        ["--records", "-5"],
        ["--churn", "nan"],
        ["--token", "xyz"],
    ],
)
def test_wrong_arguments_are_told(arguments):
    process = start("--port", "0", *arguments)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 2
    assert "error:" in err
    assert "Traceback" not in err


def test_the_same_seed_makes_the_same_project():
    one, two, other = (synthetic.make(seed=seed, records=20) for seed in (1, 1, 2))
    assert one.records == two.records
    assert one.records != other.records
    assert len(synthetic.make(fields=500, records=1).fields) == 500


def test_a_folder_of_api_exports_answers_the_same(tmp_path):
    api = Api(synthetic.make(seed=5, records=30), TOKEN)

    def export(content, **parameters):
        body = urllib.parse.urlencode({"token": TOKEN, "content": content, "format": "json", **parameters})
        return json.loads(api.answer(body).body)

    names = {
        "metadata": "metadata",
        "project": "project",
        "instruments": "instrument",
        "events": "event",
        "arms": "arm",
        "formEventMapping": "formEventMapping",
        "repeatingFormsEvents": "repeatingFormsEvents",
        "dags": "dag",
    }
    for name, content in names.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(export(content)))
    records = export("record", exportDataAccessGroups="true")
    (tmp_path / "records.json").write_text(json.dumps(records))
    again = Api(folder.load(tmp_path), TOKEN)
    for content in ("metadata", "event", "formEventMapping", "repeatingFormsEvents", "instrument"):
        body = urllib.parse.urlencode({"token": TOKEN, "content": content, "format": "json"})
        assert json.loads(again.answer(body).body) == export(content)
    body = urllib.parse.urlencode(
        {"token": TOKEN, "content": "record", "format": "json", "exportDataAccessGroups": "true"}
    )
    assert json.loads(again.answer(body).body) == records


def test_a_folder_without_its_files_is_refused(tmp_path):
    with pytest.raises(folder.FolderError, match=r"metadata\.json"):
        folder.load(tmp_path)
    (tmp_path / "metadata.json").write_text("[")
    with pytest.raises(folder.FolderError, match="not JSON"):
        folder.load(tmp_path)


def test_arrays_come_in_each_form():
    parameters = Parameters("records[0]=a,b&records[1]=c&fields=x, y&forms[]=f")
    assert parameters.many("records") == ["a,b", "c"]
    assert parameters.many("fields") == ["x", "y"]
    assert parameters.many("forms") == ["f"]


def test_variables_above_a_thousand_are_dropped_without_a_word():
    body = "&".join(f"records[{number}]={number}" for number in range(1_500))
    assert len(Parameters(body).many("records")) == 1_000


def test_an_empty_list_is_all():
    api = Api(synthetic.make(records=3), TOKEN)
    body = urllib.parse.urlencode({"token": TOKEN, "content": "record", "format": "json", "records": ""})
    assert {row["record_id"] for row in json.loads(api.answer(body).body)} == {"1", "2", "3"}


@pytest.mark.parametrize(
    ("logic", "holds"),
    [
        ("[age] > 30", True),
        ("[age] > 30 and [sex] = '2'", False),
        ("[age] > 30 or [sex] = '2'", True),
        ("not ([age] > 30)", False),
        ("[pets(c)] = '1'", True),
        ("[other_arm_1][age] = 50", True),
        ("[name] <> 'x'", True),
        ("[none] < 5", False),
    ],
)
def test_filter_logic(logic, holds):
    row = {"age": "40", "sex": "1", "pets___c": "1", "name": "y"}
    assert parse(logic).holds({"": row, "other_arm_1": {"age": "50"}}) is holds


@pytest.mark.parametrize("logic", ["[age] >", "[age", "(", "[age] > 1 1", "drop table", "and", "[a] = 1)"])
def test_a_mistake_in_logic_is_an_error(logic):
    with pytest.raises(LogicError):
        parse(logic)


def test_faults_come_as_often_as_they_are_asked_for():
    api = Api(synthetic.make(records=1), TOKEN)
    answer = api.answer(urllib.parse.urlencode({"token": TOKEN, "content": "version"}))
    schedule = Schedule(["500:3"])
    assert [schedule.apply(answer).status for _ in range(6)] == [200, 200, 500, 200, 200, 500]
    for text in ("no-such", "500:0", "500:x"):
        with pytest.raises(FaultError):
            schedule.add(text)
    assert len(FAULTS) > 20


@pytest.fixture
def ask():
    api = Api(synthetic.make(seed=5, records=10), TOKEN)

    def ask(content="record", form="json", **parameters):
        body = urllib.parse.urlencode({"token": TOKEN, "content": content, "format": form, **parameters})
        return api.answer(body)

    ask.api = api
    return ask


def rows_of(answer):
    assert answer.status == 200, answer.body
    return json.loads(answer.body)


def test_export_parameters(ask):
    first = rows_of(ask(combineCheckboxOptions="true"))[0]
    assert first["languages"] in ("en", "fr", "de", "-9")
    assert "languages___en" not in first
    csv = ask(form="csv", rawOrLabelHeaders="label").body.decode()
    assert "Languages (choice=English)" in csv.splitlines()[0]
    assert ";" in ask(form="csv", csvDelimiter=";").body.decode().splitlines()[0]
    weights = ask(form="csv", decimalCharacter="comma", csvDelimiter=";", fields="weight_kg").body.decode()
    assert "," in weights
    assert "." not in weights.replace("record_id", "")
    eav = rows_of(ask(type="eav", fields="languages"))
    assert {row["value"] for row in eav if row["field_name"] == "languages"} <= {"en", "fr", "de", "-9"}
    assert all(row["record"] for row in eav)
    xml = ask(form="xml", fields="record_id").body.decode()
    assert xml.count("<item>") == len(rows_of(ask()))
    assert len(rows_of(ask(dateRangeBegin="2000-01-01 00:00:00"))) == len(rows_of(ask()))


@pytest.mark.parametrize(
    ("parameters", "status"),
    [
        ({"content": "report"}, 501),
        ({"content": "no-such"}, 400),
        ({"form": "odm"}, 400),
        ({"form": "csv", "csvDelimiter": "xx"}, 400),
        ({"filterLogic": "(" * 5_000}, 400),
        ({"filterLogic": "[no_such] = 1"}, 400),
        ({"data": "[" * 100_000}, 406),
        ({"data": "<records><item>", "form": "xml"}, 406),
        ({"data": '[{"record_id":"1","redcap_event_name":"enrolment_arm_1","sex":"77"}]'}, 400),
        ({"data": '[{"record_id":"1","redcap_event_name":"enrolment_arm_1","born_on":"yesterday"}]'}, 400),
        ({"data": '[{"record_id":"1","redcap_event_name":"enrolment_arm_1","pulse":"60"}]'}, 400),
        ({"data": '[{"record_id":"1","redcap_event_name":"enrolment_arm_1","languages___en":"5"}]'}, 400),
        ({"action": "delete", "records": "nobody"}, 400),
        ({"action": "delete", "records": "1", "event": "visit_1_arm_1", "repeat_instance": "x"}, 400),
        ({"action": "rename", "record": "1", "new_record_name": ""}, 400),
    ],
)
def test_what_is_refused(ask, parameters, status):
    answer = ask(**parameters)
    assert answer.status == status
    assert b"error" in answer.body.lower()
    assert len(ask.api.project.records) == 10


def test_data_comes_in_each_format(ask):
    row = {"record_id": "1", "redcap_event_name": "enrolment_arm_1", "first_name": "Zoë"}
    text = "record_id;redcap_event_name;first_name\n1;enrolment_arm_1;Ana\n"
    assert rows_of(ask(data=json.dumps([row]))) == {"count": 1}
    assert ask(form="csv", data=text, csvDelimiter=";", returnFormat="json").status == 200
    assert rows_of(ask(records="1"))[0]["first_name"] == "Ana"
    xml = "<records><item><record_id>1</record_id><redcap_event_name>enrolment_arm_1</redcap_event_name><sex>3</sex></item></records>"
    assert ask(form="xml", data=xml, returnFormat="json").status == 200
    eav = [{"record": "1", "redcap_event_name": "enrolment_arm_1", "field_name": "languages", "value": "fr"}]
    assert rows_of(ask(type="eav", data=json.dumps(eav))) == {"count": 1}
    first = rows_of(ask(records="1"))[0]
    assert (first["sex"], first["languages___fr"]) == ("3", "1")


def test_a_group_is_a_wall(ask):
    from ops.sandbox.export import Rights

    records = ask.api.project.records
    theirs = next(name for name, one in records.items() if one.group == "south")
    ours = next(name for name, one in records.items() if one.group == "north")
    ask.api.rights = Rights(group="north")
    row = {"redcap_event_name": "enrolment_arm_1", "sex": "1"}
    assert ask(data=json.dumps([{"record_id": theirs, **row}])).status == 400
    assert ask(action="delete", records=theirs).status == 403
    assert ask(action="rename", record=theirs, new_record_name="x").status == 403
    assert ask(data=json.dumps([{"record_id": "new", **row}])).status == 200
    assert records["new"].group == "north"
    assert ask(action="delete", records=ours).status == 200
    assert [entry["record"] for entry in rows_of(ask("log", logtype="record_delete"))] == [ours]


def test_two_projects_have_two_numbers(tmp_path):
    from ops.sandbox import odm
    from tests.sandbox import project_xml as xml

    ids = set()
    for title in ("one", "two"):
        path = tmp_path / f"{title}.xml"
        text = xml.document([xml.item("record_id", "f")], [], title=title)
        path.write_text(text.replace("Project.x", f"Project.{title}"))
        ids.add(odm.load(path).id)
    assert len(ids) == 2
