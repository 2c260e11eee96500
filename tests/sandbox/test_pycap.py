"""PyCap, a client nobody here wrote, works against the sandbox unchanged."""

from datetime import UTC, datetime, timedelta

import pytest
import redcap

from ops.sandbox import synthetic
from ops.sandbox.api import Api
from ops.sandbox.export import Rights
from ops.sandbox.server import running

TOKEN = "0123456789ABCDEF" * 2


@pytest.fixture
def api():
    return Api(synthetic.make(seed=3, records=40, fields=24), TOKEN)


@pytest.fixture
def server(api):
    with running(api) as server:
        yield server
        from redcap.request import _session

        _session.close()  # PyCap keeps one connection for all of its life


@pytest.fixture
def project(server):
    return redcap.Project(server.url, TOKEN)


def test_metadata_and_shape(project, api):
    assert [row["field_name"] for row in project.metadata] == [one.name for one in api.project.fields]
    assert set(project.forms) == {"enrolment", "visit", "medication", "adverse_event"}
    assert project.def_field == "record_id"
    assert project.is_longitudinal
    assert project.export_version() is not None
    assert project.export_project_info()["is_longitudinal"] == 1
    assert {row["unique_event_name"] for row in project.export_events()} == {
        one.unique_name for one in api.project.events
    }
    assert project.export_arms() == [{"arm_num": 1, "name": "Arm 1"}]
    assert len(project.export_instrument_event_mappings()) == 6
    assert {row["form_name"] for row in project.export_repeating_instruments_events()} == {"", "medication"}
    assert {row["export_field_name"] for row in project.export_field_names()} >= {"languages____9", "visit_complete"}
    assert len(project.export_instruments()) == 4
    assert project.export_metadata(format_type="df").shape[0] == 24
    assert project.export_users()[0]["forms"]["visit"] == 1
    assert len(project.export_dags()) == 2


def test_records_as_json_and_as_a_data_frame_agree(project, api):
    rows = project.export_records()
    frame = project.export_records(
        format_type="df", df_kwargs={"dtype": str, "keep_default_na": False, "index_col": False}
    )
    assert len(rows) == sum(len(record.rows) for record in api.project.records.values())
    assert [{k: str(v) for k, v in row.items()} for row in rows] == frame.to_dict("records")
    usual = project.export_records(format_type="df")
    assert usual.index.names == ["record_id", "redcap_event_name"]


def test_some_of_it(project):
    rows = project.export_records(records=["1", "2"], fields=["sex"], events=["enrolment_arm_1"])
    assert [row["record_id"] for row in rows] == ["1", "2"]
    assert {"sex"} <= set(rows[0])
    assert "first_name" not in rows[0]
    rows = project.export_records(forms=["medication"], records=["1"])
    assert {"drug", "dose_mg", "medication_complete"} <= set(rows[0])
    assert "pulse" not in rows[0]
    heavy = project.export_records(filter_logic="[weight_kg] > 90")
    assert heavy
    assert all(float(row["weight_kg"]) > 90 for row in heavy)
    eav = project.export_records(records=["1"], record_type="eav")
    assert {"record", "field_name", "value"} <= set(eav[0])
    labels = project.export_records(records=["1"], raw_or_label="label")
    assert labels[0]["redcap_event_name"] == "Enrolment"


def test_a_filter_by_date_picks_whole_records(project, api):
    before = datetime.now(UTC).replace(tzinfo=None) - timedelta(minutes=1)
    assert project.export_records(date_begin=before) == []
    project.import_records([{"record_id": "7", "redcap_event_name": "enrolment_arm_1", "first_name": "Neu"}])
    rows = project.export_records(date_begin=before)
    assert {row["record_id"] for row in rows} == {"7"}
    assert len(rows) == len(api.project.records["7"].rows)
    assert project.export_records(date_begin=before, date_end=before) == []


def test_import_delete_and_the_log_of_it(project, api):
    new = {"record_id": "900", "redcap_event_name": "enrolment_arm_1", "first_name": "Änne", "languages___fr": "1"}
    assert project.import_records([new]) == {"count": 1}
    assert project.import_records([new | {"sex": "2"}], return_content="ids") == ["900"]
    (row,) = project.export_records(records=["900"])
    assert (row["first_name"], row["languages___fr"], row["sex"]) == ("Änne", "1", "2")
    drug = {
        "record_id": "900",
        "redcap_event_name": "visit_1_arm_1",
        "redcap_repeat_instrument": "medication",
        "redcap_repeat_instance": 2,
        "dose_mg": "5",
    }
    assert project.import_records([drug]) == {"count": 1}
    assert project.export_records(records=["900"])[1]["redcap_repeat_instance"] == 2
    whole = {"dtype": str, "keep_default_na": False}
    frame = project.export_records(format_type="df", records=["900"], fields=["sex"], df_kwargs=whole)
    assert project.import_records(frame.reset_index(), import_format="df") == {"count": 1}
    assert project.generate_next_record_name() == "901"
    log = project.export_logging(log_type="record_add")
    assert log[0]["record"] == "900"
    assert project.delete_records(["900"]) == 1
    assert project.export_records(records=["900"]) == []
    assert [entry["record"] for entry in project.export_logging(log_type="record_delete")] == ["900"]
    assert datetime.strptime(log[0]["timestamp"], "%Y-%m-%d %H:%M")  # noqa: DTZ007


def test_rename(project, server, api):
    # PyCap has no method for it, but its call is open.
    payload = {"token": TOKEN, "content": "record", "action": "rename", "record": "5", "new_record_name": "500"}
    assert project._call_api(payload, return_type="str") == "1"
    assert project.export_records(records=["5"]) == []
    assert {row["record_id"] for row in project.export_records(records=["500"])} == {"500"}


def test_errors(server, project):
    with pytest.raises(redcap.RedcapError, match="permissions to use the API"):
        redcap.Project(server.url, "F" * 32).export_records()
    with pytest.raises(redcap.RedcapError, match=r"not valid: .*no_such"):
        project.export_records(fields=["no_such"])
    with pytest.raises(redcap.RedcapError, match="not found in the project"):
        project.import_records([{"record_id": "1", "redcap_event_name": "enrolment_arm_1", "no_such": "1"}])
    with pytest.raises(redcap.RedcapError, match="do not exist"):
        project.delete_records(["no such record"])


def test_a_classic_project_has_no_events(tmp_path):
    project = synthetic.make(records=2)
    project.events.clear()
    project.repeating_forms.clear()
    project.repeating_events.clear()
    for record in project.records.values():
        record.rows = {("", "", 0): next(iter(record.rows.values()))}
    with running(Api(project, TOKEN)) as server:
        client = redcap.Project(server.url, TOKEN)
        assert not client.is_longitudinal
        with pytest.raises(redcap.RedcapError, match="cannot export arms for classic projects"):
            client.export_arms()
        assert "redcap_event_name" not in client.export_records()[0]
        from redcap.request import _session

        _session.close()


def test_what_a_token_may_see(server, api, project):
    names = set(project.export_records()[0])
    api.rights = Rights(deidentified=True)
    fewer = set(project.export_records()[0])
    assert {"first_name", "family_name", "born_on", "visit_note"} <= names - fewer
    assert "sex" in fewer
    api.rights = Rights(group="north")
    seen = {row["record_id"] for row in project.export_records(export_data_access_groups=True)}
    assert seen == {name for name, record in api.project.records.items() if record.group == "north"}
    api.rights = Rights(logging=False)
    with pytest.raises(redcap.RedcapError, match="Logging"):
        project.export_logging()
