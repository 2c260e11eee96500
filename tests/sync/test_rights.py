"""What the token may see changes, and what the server leaves out: never taken for what is true of the data."""

import json
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs

import pytest

from ops.sandbox.api import Answer
from ops.sandbox.export import Rights
from worker import errors

ENROLLED = "enrolment_arm_1"


@pytest.fixture
def spoiled(world, monkeypatch):
    """Change answers: `spoil(wanted)` calls a function with the parameters and the rows of each record export."""

    def install(change):
        right = world.api.answer

        def answered(body):
            answer = right(body)
            parameters = {name: values[0] for name, values in parse_qs(body).items()}
            if parameters.get("content") != "record" or answer.status != 200:
                return answer
            rows = change(parameters, json.loads(answer.body))
            return Answer(200, answer.content_type, json.dumps(rows).encode())

        monkeypatch.setattr(world.api, "answer", answered)

    return install


def test_a_right_that_is_taken_away_makes_the_next_cycle_full_and_is_said(world, caplog):
    assert world.sync()["fields_hidden"] == 0
    world.api.rights = Rights(deidentified=True)
    summary = world.sync()
    hidden = ["first_name", "family_name", "born_on", "visit_note", "visit_on", "event_note"]
    assert (summary["mode"], summary["fields_hidden"]) == ("full", 6)
    assert sorted(caplog.messages[-1].partition("(")[2].strip(")").split(", ")) == sorted(hidden)
    world.assert_exact()  # what the token can't see is not kept as if it were current
    assert not any(name in row for row in world.stored().values() for name in hidden)
    assert world.query("SELECT COUNT(*) FROM fields WHERE field_name = 'first_name'") == [(0,)]
    summary = world.sync()
    assert (summary["mode"], summary["fields_hidden"]) == ("incremental", 6)  # every cycle's summary says it
    world.api.rights = Rights()
    assert world.sync()["mode"] == "full"
    world.assert_exact()
    assert world.query("SELECT SUM(fields_hidden) FROM cycles") == [(12,)]


def test_a_right_that_is_taken_away_in_mid_cycle_stops_it(world, monkeypatch):
    world.sync()
    monkeypatch.setenv("REDCAP_BATCH_SIZE", "10")
    right, calls = world.api.answer, []

    def answered(body):
        calls.append("records%5B0%5D" in body)
        if sum(calls) == 3:
            world.api.rights = Rights(deidentified=True)
        return right(body)

    with monkeypatch.context() as patch:
        patch.setattr(world.api, "answer", answered)
        with pytest.raises(errors.StructureChanged, match="the next one reads all anew"):
            world.sync(full=True)
    assert world.sync()["mode"] == "full"
    world.assert_exact()


def test_fields_that_were_not_asked_for_are_not_hidden(world, monkeypatch):
    monkeypatch.setenv("REDCAP_FIELDS", "sex,first_name")
    assert world.sync()["fields_hidden"] == 0
    monkeypatch.setenv("SYNC_DROP_IDENTIFIERS", "1")
    assert world.sync()["fields_hidden"] == 0
    monkeypatch.delenv("SYNC_DROP_IDENTIFIERS")
    monkeypatch.setenv("REDCAP_FORMS", "visit")
    world.api.rights = Rights(deidentified=True)
    assert world.sync()["fields_hidden"] == 3  # first_name, visit_on, visit_note


@pytest.mark.parametrize("always", [False, True])
def test_rows_that_are_lost_inside_a_record_are_asked_for_again(world, spoiled, always):
    """A server that loses rows without an error (REDCapR #400); the listing of ids had them."""
    calls = []

    def lose(parameters, rows):
        if parameters.get("fields") == "record_id" or (calls and not always):
            return rows
        calls.append(parameters)
        return [row for row in rows if not row["redcap_repeat_instrument"]]

    spoiled(lose)
    if always:
        with pytest.raises(errors.RecordsUnconfirmed, match="it lost rows"):
            world.sync()
        assert world.stored() == {}
    else:
        world.sync()
        assert calls
        world.assert_exact()


def test_a_row_that_is_deleted_between_the_listing_and_the_answer_is_no_loss(world, monkeypatch):
    right, done = world.api.answer, []

    def answered(body):
        if "records%5B0%5D" in body and not done:
            done.append(True)
            event, instrument, instance = next(key for key in world.api.project.records["1"].rows if key[1])
            world.api.changes.delete_rows("1", event=event, instrument=instrument, instance=instance)
        return right(body)

    monkeypatch.setattr(world.api, "answer", answered)
    world.api.project.records["1"].rows["visit_1_arm_1", "medication", 9] = {"drug": "1"}
    world.sync()
    assert done
    world.assert_exact()


def test_ids_that_only_some_collations_tell_apart_are_records_of_their_own(world):
    for name, rows in (("Ab", 1), ("ab", 2), ("\u00c4b", 3)):
        for instance in range(rows):
            where = {"redcap_event_name": "visit_1_arm_1", "redcap_repeat_instrument": "medication"}
            world.api.changes.put(
                [{"record_id": name, **where, "redcap_repeat_instance": str(instance + 1), "drug": "1"}]
            )
    world.sync()
    world.assert_exact()
    world.api.changes.delete(["ab"])
    world.sync()
    world.assert_exact()


def test_ids_that_are_lost_in_a_listing_are_not_gone(world, spoiled):
    world.sync()

    def lose(parameters, rows):
        return rows if any(name.startswith("records") for name in parameters) else rows[: len(rows) // 2]

    spoiled(lose)
    assert world.sync(full=True)["deleted"] == 0
    assert {key[0] for key in world.stored()} == set(world.api.project.records)


def two_days_on(world):
    world.api.utc_now = lambda: datetime.now(UTC) + timedelta(days=2)


def test_a_token_in_a_group_sees_new_records_and_deletes_none(world):
    world.sync()
    everything = world.stored()
    world.api.rights = Rights(group="north", logging=False)
    assert world.sync(full=True)["deleted"] == 0
    assert world.sync()["mode"] == "incremental"  # its reconcile counts, though it sees a part only
    world.api.changes.put([{"record_id": "new", "redcap_event_name": ENROLLED, "sex": "1"}])
    world.api.project.records["new"].group = "north"
    world.api.project.log.clear()  # moved into the group, which leaves no edit of the record
    two_days_on(world)
    summary = world.sync()
    assert (summary["mode"], summary["inserted"], summary["deleted"]) == ("reconcile", 1, 0)
    assert everything.items() <= world.stored().items()


def test_a_rename_is_one_change(either):
    either.sync()
    rows = len(either.api.project.records["7"].rows)
    seen = either.query("SELECT MIN(first_seen_at) FROM records WHERE record_id = '7'")
    either.api.changes.rename("7", "seven")
    summary = either.sync()
    assert (summary["updated"], summary["inserted"], summary["deleted"]) == (rows, 0, 0)
    either.assert_exact()
    assert either.query("SELECT MIN(first_seen_at) FROM records WHERE record_id = 'seven'") == seen
    assert either.query("SELECT COUNT(*) FROM records WHERE record_id = '7'") == [(0,)]


def test_a_rename_with_an_edit_and_one_onto_an_old_name_are_exact(either):
    either.sync()
    either.api.changes.rename("7", "seven")
    either.api.changes.put([{"record_id": "seven", "redcap_event_name": ENROLLED, "first_name": "Neu"}])
    either.api.changes.delete(["8"])
    either.api.changes.rename("9", "8")
    either.sync()
    either.assert_exact()
    either.api.changes.rename("8", "9")
    either.sync()
    either.assert_exact()


def test_without_the_log_a_rename_is_found_by_the_reconcile(world):
    world.sync()
    world.api.rights = Rights(logging=False)
    two_days_on(world)
    world.api.changes.rename("7", "seven")
    summary = world.sync()
    assert (summary["mode"], summary["inserted"], summary["deleted"]) == ("reconcile", 0, 0)
    world.assert_exact()


def test_what_was_marked_is_erased_once_that_is_asked_for(either, monkeypatch):
    either.sync()
    either.api.changes.delete(["7"])
    either.sync()
    assert either.query("SELECT COUNT(*) FROM records WHERE deleted_at IS NOT NULL") != [(0,)]
    monkeypatch.setenv("SYNC_ON_DELETE", "erase")
    assert either.sync()["mode"] == "full"
    assert either.query("SELECT COUNT(*) FROM records WHERE deleted_at IS NOT NULL") == [(0,)]
    either.assert_exact()


def test_another_servers_project_of_the_same_number_is_refused(either, monkeypatch):
    either.sync()
    everything = either.stored()
    monkeypatch.setitem(either.api.project.info, "creation_time", "2019-09-09 09:09:09")
    with pytest.raises(errors.ProjectMismatch, match="2019-09-09 09:09:09"):
        either.sync()
    assert either.stored() == everything


def test_labels_that_do_not_tell_instruments_apart_are_refused(world, monkeypatch):
    project = world.api.project
    project.forms["adverse_event"] = project.forms["medication"]
    project.repeating_forms["visit_1_arm_1", "adverse_event"] = ""
    project.events[1].forms.append("adverse_event")
    world.sync()
    monkeypatch.setenv("REDCAP_RAW_OR_LABEL", "label")
    with pytest.raises(errors.LabelsAmbiguous, match="REDCAP_RAW_OR_LABEL=raw"):
        world.sync()


def test_all_deleted_where_nothing_but_the_log_can_tell(world):
    world.sync()
    world.api.changes.delete(list(world.api.project.records))
    world.sync()
    assert world.stored() == {}


def test_the_rate_is_kept_across_cycles(world, monkeypatch):
    from worker.redcap import Client
    from worker.settings import load

    monkeypatch.setenv("REDCAP_MAX_RATE", "5")
    redcap, _ = load()
    slept = []
    for _ in range(5):
        client = Client(redcap, lambda: 60.0, str(world.state_dir), sleep=slept.append)
        client.table("instrument")
        client.close()
    assert slept == []
    client = Client(redcap, lambda: 60.0, str(world.state_dir), sleep=slept.append)
    client.table("instrument")
    client.close()
    assert 50 < slept[0] <= 60


def test_a_note_of_a_megabyte_and_a_project_of_one_record(either):
    for name in list(either.api.project.records)[1:]:
        del either.api.project.records[name]
    text = "".join(chr(0x1F300 + n % 700) for n in range(250_000))
    either.api.changes.put([{"record_id": "1", "redcap_event_name": "visit_1_arm_1", "visit_note": text}])
    assert either.sync()["records"] == 1
    either.assert_exact()
    ((note,),) = either.query("SELECT visit_note FROM visit WHERE event = 'visit_1_arm_1'")
    assert note == text


def test_a_million_ids_do_not_make_the_worker_grow(tmp_path):
    import resource

    from worker.ids import IdList

    ids = IdList(str(tmp_path))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ids.mark("rows", (f"record-{number:09d}" for number in range(1_000_000)))
    ids.mark("known", (f"record-{number:09d}" for number in range(5, 1_000_005)))
    ids.want("(rows > 0) <> (known > 0)")
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert list(ids.after("", 20)) == [f"record-{n:09d}" for n in (*range(5), *range(1_000_000, 1_000_005))]
    ids.close()
    assert grown_kib < 40_000
    assert list(tmp_path.iterdir()) == []
