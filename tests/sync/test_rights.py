"""What the token may see changes, and what the server leaves out: never taken for what is true of the data."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs

import pytest

from ops.sandbox.api import Answer
from ops.sandbox.export import Rights
from ops.sandbox.project import Field
from tests.sync.conftest import Alone
from worker import errors
from worker.job import sync
from worker.redcap import Client
from worker.settings import load

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


MILLION = """
import sys
from supervisor.tree import own_peak_rss_bytes
from worker.ids import IdList
ids = IdList(sys.argv[1])
before = own_peak_rss_bytes()
ids.mark("rows", (f"record-{number:09d}" for number in range(1_000_000)))
ids.mark("known", (f"record-{number:09d}" for number in range(5, 1_000_005)))
ids.want("(rows > 0) <> (known > 0)")
assert list(ids.after("", 20)) == [f"record-{n:09d}" for n in (*range(5), *range(1_000_000, 1_000_005))]
ids.close()
print(own_peak_rss_bytes() - before)
"""


def test_a_million_ids_do_not_make_the_worker_grow(tmp_path):
    done = subprocess.run([sys.executable, "-c", MILLION, tmp_path], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < 30_000_000
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("by", ["log", "setting"])
def test_a_servers_clock_that_is_put_back_loses_no_edit(world, monkeypatch, by):
    """By more than the overlap, and in steps; the edits have times before the last cycle's start."""
    if by == "setting":
        monkeypatch.setenv("REDCAP_TIMEZONE", "UTC")
        world.api.rights = Rights(logging=False)
    world.api.skew_s = 3600.0
    world.sync()
    for number, skew_s in enumerate((0.0, -7200.0, -5400.0, -9000.0)):
        world.api.skew_s = skew_s
        row = {"record_id": str(10 + number), "redcap_event_name": ENROLLED, "first_name": f"At {skew_s}"}
        world.api.changes.put([row])
        world.sync()
        world.assert_exact()


def test_a_clock_that_is_put_back_does_not_end_the_reconciles(world):
    world.api.rights = Rights(logging=False)
    world.sync()
    world.api.skew_s = -3 * 86_400.0
    world.api.changes.delete(["7"])
    assert world.sync()["mode"] == "reconcile"
    world.assert_exact()


def test_a_token_in_a_group_with_the_log_deletes_what_was_deleted_and_nothing_else(world):
    """A record that the log names may have moved to another group."""
    group = world.api.project.records
    mine = [name for name, record in group.items() if record.group == "north"]
    world.api.rights = Rights(group="north")
    world.sync()
    assert {key[0] for key in world.stored()} == set(mine)
    world.api.changes.put([{"record_id": mine[0], "redcap_event_name": ENROLLED, "first_name": "Neu"}])
    group[mine[0]].group = "south"
    world.api.changes.delete([mine[1]])
    world.api.changes.rename(mine[2], "renamed")
    summary = world.sync()
    kept = {key[0] for key in world.stored()}
    assert mine[0] in kept  # as it was when the token last saw it
    assert kept == (set(mine) - {mine[1], mine[2]}) | {"renamed"}
    assert summary["inserted"] == 0


def test_an_answer_without_any_record_is_not_all_deleted(world, spoiled):
    """Every question brings an empty list, and the log tells of no deletion."""
    world.sync()
    everything = world.stored()
    spoiled(lambda parameters, rows: [])
    world.api.project.groups.clear()
    world.api.project.fields[-1].label += "!"  # so that the cycle is a full one
    with pytest.raises(errors.RecordsUnconfirmed, match="once --full"):
        world.sync()
    assert world.stored() == everything
    assert world.sync(full=True)["deleted"] == len(everything)  # a person vouches for it


def test_identifiers_leave_what_was_marked_as_deleted_too(either, monkeypatch):
    either.api.project.fields.insert(1, Field(name="ssn___x", form="enrolment", identifier=True))
    either.api.changes.put([{"record_id": "8", "redcap_event_name": ENROLLED, "ssn___x": "123"}])
    either.sync()
    either.api.changes.delete(["7"])
    either.sync()
    monkeypatch.setenv("SYNC_DROP_IDENTIFIERS", "1")
    either.sync()
    for data, deleted in either.query("SELECT CAST(data AS TEXT), deleted_at IS NOT NULL FROM records"):
        assert not {"first_name", "family_name", "born_on", "ssn___x"} & set(json.loads(data)), deleted
    assert either.query("SELECT COUNT(*) FROM records WHERE deleted_at IS NOT NULL") != [(0,)]


def test_a_name_that_is_given_anew_during_the_cycle_is_not_renamed_away(world, monkeypatch):
    monkeypatch.setenv("REDCAP_BATCH_SIZE", "1")
    world.api.changes.put([{"record_id": "1a", "redcap_event_name": ENROLLED, "sex": "1"}])
    world.sync()
    world.api.changes.rename("1a", "9z")
    right, listed = world.api.answer, []

    def answered(body):
        if listed and len(listed) < 9 and "records%5B0%5D" in body:
            listed.extend("x" * 9)
            world.api.changes.put([{"record_id": "1a", "redcap_event_name": ENROLLED, "sex": "2"}])
        if "exportDataAccessGroups" in body and "records%5B0%5D" not in body:
            listed.append(body)
        return right(body)

    monkeypatch.setattr(world.api, "answer", answered)
    world.sync()
    assert len(listed) >= 9
    world.assert_exact()


def test_a_right_that_changes_where_no_known_record_shows_it_is_seen_in_the_end(world):
    world.sync()
    first = [name for (name,) in world.query("SELECT DISTINCT record_id FROM records ORDER BY 1 LIMIT 3")]
    world.api.changes.delete(first)
    world.api.rights = Rights(deidentified=True)
    world.api.changes.put([{"record_id": "33", "redcap_event_name": ENROLLED, "first_name": "Neu"}])
    summary = world.sync()
    assert (summary["mode"], summary["fields_hidden"]) == ("full", 6)
    world.assert_exact()


def test_whoever_asks_for_a_full_cycle_gets_all_of_it(world, monkeypatch):
    monkeypatch.setenv("REDCAP_BATCH_SIZE", "10")

    class Drained(Alone):
        def progress(self, done, total=None, unit=""):
            self.stopping = unit == "records" and done >= 20

    sync(Drained(str(world.state_dir)))
    assert world.sync(full=True)["records"] == 60


def test_much_to_read_after_a_long_gap_can_be_taken_up_again(world, monkeypatch):
    monkeypatch.setattr("worker.sync.RESUMABLE_RECORDS", 30)
    monkeypatch.setenv("REDCAP_BATCH_SIZE", "10")
    world.sync()
    for number in range(1, 51):
        world.api.changes.put([{"record_id": str(number), "redcap_event_name": ENROLLED, "first_name": "Neu"}])

    class Killed(BaseException):
        pass

    class Dies(Alone):
        def progress(self, done, total=None, unit=""):
            if unit == "records" and done >= 40:
                raise Killed

    with pytest.raises(Killed):
        sync(Dies(str(world.state_dir)))
    assert world.query("SELECT backfill_cursor IS NOT NULL FROM checkpoints") == [(1,)]
    assert world.sync()["mode"] == "full"
    world.assert_exact()


def test_a_batch_is_bounded_by_its_cells_not_by_its_records_alone(world, monkeypatch):
    monkeypatch.setattr("worker.records.CELLS_PER_BATCH", 2_000)
    for instance in range(60):
        where = {"redcap_event_name": "visit_1_arm_1", "redcap_repeat_instrument": "medication"}
        world.api.changes.put([{"record_id": "5", **where, "redcap_repeat_instance": str(instance + 1), "drug": "1"}])
    summary = world.sync()
    assert summary["rows"] / summary["batches"] < 2_000 / 24 + 1
    world.assert_exact()


@pytest.mark.parametrize("what", ["requests", "redcap.db.4242.lock"])
def test_a_state_directory_that_can_not_be_used_is_named(world, what):
    (world.state_dir / what).mkdir()
    with pytest.raises(errors.StateFailed, match=what):
        world.sync()


def test_an_endless_table_is_bounded(world, monkeypatch):
    monkeypatch.setattr("worker.redcap.TABLE_MAX_ROWS", 100)
    world.server.faults.add("endless")
    redcap, _ = load()
    client = Client(redcap, lambda: 60.0, str(world.state_dir))
    with pytest.raises(errors.AnswerMalformed, match="more than 100 rows"):
        client.table("event")
    monkeypatch.setattr("worker.redcap.ANSWER_MAX_BYTES", 1_000_000)
    with pytest.raises(errors.AnswerMalformed, match="longer than 1,000,000 bytes"):
        client.read("record", {}, lambda rows: sum(1 for _ in rows))
    client.close()
