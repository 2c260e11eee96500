"""The sync against the sandbox: exact to the row, whatever happened in between."""

import random
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs

import pytest
from freezegun import freeze_time

from ops.sandbox import synthetic
from ops.sandbox.api import Api
from ops.sandbox.changes import Changes
from ops.sandbox.export import Rights
from ops.sandbox.project import Field
from ops.sandbox.server import running
from tests.sync.conftest import TOKEN, Alone
from worker import errors
from worker.job import sync
from worker.redcap import Client
from worker.settings import load
from worker.sink.sql import Transaction


def test_a_first_sync_reads_everything(world):
    summary = world.sync()
    world.assert_exact()
    rows = len(world.truth())
    assert (summary["mode"], summary["records"], summary["rows"], summary["inserted"]) == ("full", 60, rows, rows)
    assert (summary["updated"], summary["unchanged"], summary["deleted"]) == (0, 0, 0)
    assert summary["project_id"] == 4242
    assert set(summary) == {
        "project_id", "window_begin", "window_end", "records", "rows", "inserted", "updated", "unchanged",
        "deleted", "batches", "bytes_received", "requests", "retries", "fetch_s", "process_s", "write_s",
        "mode", "zone_source", "mended", "fields_hidden", "answers",
    }  # fmt: skip
    (cycle,) = world.query("SELECT cycle_id, mode, records, rows, inserted FROM cycles")
    assert cycle == ("cycle-1", "full", 60, rows, rows)
    (checkpoint,) = world.query("SELECT project_id, backfill_started_at, backfill_cursor FROM checkpoints")
    assert checkpoint == (4242, None, None)
    assert (world.state_dir / "redcap.db").exists()


def test_nothing_changed_nothing_written(world):
    world.sync()
    before = world.query("SELECT * FROM records")
    summary = world.sync()
    assert (summary["mode"], summary["inserted"], summary["updated"], summary["deleted"]) == ("incremental", 0, 0, 0)
    assert world.query("SELECT * FROM records") == before


def test_changes_additions_deletions_and_renames(world):
    world.sync()
    chance = random.Random(5)
    for _ in range(8):
        for _ in range(25):
            world.api.changes.churn(chance)
        world.sync()
        world.assert_exact()
    assert world.query("SELECT COUNT(*) FROM records WHERE deleted_at IS NOT NULL")[0][0] > 0


def test_only_what_changed_is_fetched_and_written(world):
    world.sync()
    changed = {"record_id": "7", "redcap_event_name": "enrolment_arm_1", "first_name": "Changed"}
    world.api.changes.put([changed])
    summary = world.sync()
    assert (summary["records"], summary["updated"]) == (1, 1)
    assert summary["unchanged"] == summary["rows"] - 1
    world.assert_exact()


def test_an_emptied_field_is_emptied_here(world):
    world.sync()
    row = {"record_id": "7", "redcap_event_name": "enrolment_arm_1", "first_name": ""}
    world.api.changes.put([row], overwrite=True)
    world.sync()
    world.assert_exact()


def test_a_deleted_row_of_a_record_is_deleted_here(world):
    world.sync()
    name, key = next(
        (name, key) for name, one in world.api.project.records.items() for key in one.rows if key[1] == "medication"
    )
    world.api.changes.delete_rows(name, event=key[0], instrument=key[1], instance=key[2])
    summary = world.sync()
    assert summary["deleted"] == 1
    world.assert_exact()


@pytest.mark.parametrize(("how", "left"), [("mark", True), ("erase", False)])
def test_a_deleted_record_is_marked_or_erased(world, monkeypatch, how, left):
    monkeypatch.setenv("SYNC_ON_DELETE", how)
    world.sync()
    world.api.changes.delete(["3"])
    summary = world.sync()
    assert summary["deleted"] > 0
    world.assert_exact()
    assert bool(world.query("SELECT 1 FROM records WHERE record_id = '3'")) is left
    assert world.sync()["deleted"] == 0


def test_a_record_that_is_deleted_and_made_again(world):
    world.sync()
    world.api.changes.delete(["3"])
    world.sync()
    world.api.changes.put([{"record_id": "3", "redcap_event_name": "enrolment_arm_1", "sex": "1"}])
    world.sync()
    world.assert_exact()
    world.api.changes.delete(["3"])
    world.api.changes.put([{"record_id": "3", "redcap_event_name": "enrolment_arm_1", "sex": "2"}])
    world.sync()
    world.assert_exact()


def test_without_the_log_a_deletion_is_seen_by_the_reconcile(world, monkeypatch):
    world.api.rights = Rights(logging=False)
    world.sync()
    world.api.changes.delete(["3"])
    world.api.changes.rename("4", "400")
    assert world.sync()["mode"] == "incremental"
    assert "3" in {key[0] for key in world.stored()}
    monkeypatch.setenv("REDCAP_RECONCILE_EVERY", "1ms".replace("ms", "s"))
    with freeze_time(datetime.now(UTC) + timedelta(seconds=0), tick=True):
        world.api.skew_s = 5
        assert world.sync()["mode"] == "reconcile"
    world.assert_exact()


def test_a_token_in_a_group_deletes_nothing_it_cant_see(world):
    world.sync()
    everything = world.stored()
    world.api.rights = Rights(group="north", logging=False)
    world.sync(full=True)
    assert world.stored() == everything


def test_hashed_ids_stop_the_sync(world):
    world.sync()
    everything = world.stored()
    world.api.project.fields[0].identifier = True
    world.api.rights = Rights(deidentified=True)
    with pytest.raises(errors.IdsHashed):
        world.sync(full=True)
    assert world.stored() == everything


def test_a_changed_dictionary_makes_the_cycle_full(world):
    world.sync()
    world.api.project.fields.append(Field(name="new_field", form="visit"))
    assert world.sync()["mode"] == "full"
    world.assert_exact()
    assert world.sync()["mode"] == "incremental"


@pytest.mark.parametrize(
    "setting",
    [
        {"REDCAP_FIELDS": "sex"},
        {"REDCAP_FORMS": "visit"},
        {"REDCAP_EVENTS": "visit_1_arm_1"},
        {"REDCAP_RAW_OR_LABEL": "label"},
        {"REDCAP_FILTER_LOGIC": "[sex] = '1'"},
        {"SYNC_DROP_IDENTIFIERS": "true"},
    ],
)
def test_other_settings_make_the_next_cycle_full(world, monkeypatch, setting):
    world.sync()
    ((name, value),) = setting.items()
    monkeypatch.setenv(name, value)
    assert world.sync()["mode"] == "full"
    changed = world.stored()
    assert changed != world.truth()
    monkeypatch.delenv(name)
    assert world.sync()["mode"] == "full"
    world.assert_exact()


def test_identifiers_are_left_out_when_that_is_asked_for(world, monkeypatch):
    monkeypatch.setenv("SYNC_DROP_IDENTIFIERS", "true")
    world.sync()
    columns = {column for row in world.stored().values() for column in row}
    assert {"record_id", "sex", "languages___en"} <= columns
    assert not columns & {"first_name", "family_name", "born_on"}
    database = (world.state_dir / "redcap.db").read_bytes()
    assert b"family_name" not in database


def test_an_empty_project_and_one_that_becomes_empty(world):
    names = list(world.api.project.records)
    world.sync()
    world.api.changes.delete(names)
    world.sync()
    assert world.stored() == world.truth() == {}
    assert world.sync(full=True)["records"] == 0
    world.api.changes.put([{"record_id": "1", "redcap_event_name": "enrolment_arm_1"}])
    world.sync()
    world.assert_exact()


def test_no_request_carries_an_empty_list_and_the_id_is_always_asked_for(world, monkeypatch):
    bodies = []
    answer = world.api.answer
    monkeypatch.setattr(world.api, "answer", lambda body: bodies.append(body) or answer(body))
    world.sync()
    world.sync()
    monkeypatch.setenv("REDCAP_FIELDS", "sex,pulse")
    world.sync(full=True)
    exports = [body for body in bodies if "content=record" in body]
    assert len(exports) > 4
    for body in exports:
        assert "records=&" not in body
        # A request that names neither records, a range nor fields would export the whole project.
        asked = parse_qs(body)
        assert any(name.startswith("records[") for name in asked) or asked["fields"] == ["record_id"]
    assert set(world.stored()[("1", "enrolment_arm_1", "", 0)]) >= {"record_id", "sex"}


def test_an_empty_list_is_never_sent(world):
    redcap, _ = load()
    client = Client(redcap, lambda: 60.0, str(world.state_dir))
    with pytest.raises(ValueError, match="takes for all"):
        client.read("record", {"records": []}, list)
    client.close()


def test_some_fields_and_forms_only(world, monkeypatch):
    monkeypatch.setenv("REDCAP_FIELDS", "sex")
    monkeypatch.setenv("REDCAP_FORMS", "medication")
    world.sync()
    row = world.stored()[("1", "enrolment_arm_1", "", 0)]
    assert "first_name" not in row
    assert {"record_id", "sex", "drug", "medication_complete"} <= set(row)


def test_records_that_leave_a_filter_leave_the_database(world, monkeypatch):
    monkeypatch.setenv("REDCAP_FILTER_LOGIC", "[sex] = '1'")
    world.sync()
    chosen = {key[0] for key in world.stored()}
    assert chosen == {
        n for n, one in world.api.project.records.items() if one.rows[("enrolment_arm_1", "", 0)]["sex"] == "1"
    }
    leaver = min(chosen)
    world.api.changes.put([{"record_id": leaver, "redcap_event_name": "enrolment_arm_1", "sex": "2"}])
    world.sync()
    assert {key[0] for key in world.stored()} == chosen - {leaver}


@pytest.mark.parametrize(
    "name", ["001", "1 1", "a,b", "it's", 'say "hi"', "Ünïcödé", "😀", "-1", "a%b&c=d", "1-1", "<x>", "x" * 100]
)
def test_any_record_id_goes_through(world, name):
    world.api.changes.put([{"record_id": name, "redcap_event_name": "enrolment_arm_1", "sex": "1"}])
    world.sync()
    world.assert_exact()
    world.api.changes.put([{"record_id": name, "redcap_event_name": "enrolment_arm_1", "sex": "2"}])
    world.sync()
    world.assert_exact()
    world.api.changes.delete([name])
    world.sync()
    world.assert_exact()


def test_a_killed_backfill_goes_on_where_it_was(world, monkeypatch):
    monkeypatch.setenv("REDCAP_BATCH_SIZE", "10")

    class Killed(BaseException):
        pass

    class Dies(Alone):
        def progress(self, done, total=None, unit=""):
            if unit == "records" and done >= 30:
                raise Killed

    with pytest.raises(Killed):
        sync(Dies(str(world.state_dir)))
    assert len({key[0] for key in world.stored()}) == 30
    kept = len(world.stored())
    summary = world.sync()
    assert (summary["mode"], summary["records"], summary["inserted"]) == ("full", 30, len(world.truth()) - kept)
    world.assert_exact()


def test_what_changes_while_a_backfill_lies_dead_is_there_when_it_is_done(world, monkeypatch):
    monkeypatch.setenv("REDCAP_BATCH_SIZE", "10")

    class Drained(Alone):
        def progress(self, done, total=None, unit=""):
            self.stopping = unit == "records" and done >= 30

    sync(Drained(str(world.state_dir)))
    chance = random.Random(1)
    for _ in range(30):
        world.api.changes.churn(chance)
    assert world.sync()["mode"] == "full"
    world.assert_exact()


def test_a_drain_commits_whole_batches_and_the_rest_comes_later(world, monkeypatch):
    monkeypatch.setenv("REDCAP_BATCH_SIZE", "10")
    summary = world.sync(stopping=True)
    assert summary["records"] == 10
    summary = world.sync()
    assert summary["records"] == 50
    assert world.query("SELECT mode, records FROM cycles ORDER BY finished_at") == [("full", 10), ("full", 50)]
    world.assert_exact()


def test_two_syncs_at_once_collide_by_name(world):
    world.sync()

    class Meddles(Alone):
        def progress(self, done, total=None, unit=""):
            if unit == "record ids":
                return
            with closing(sqlite3.connect(f"{self.state_dir}/redcap.db")) as connection:
                connection.execute("UPDATE checkpoints SET revision = revision + 1")
                connection.commit()

    with pytest.raises(errors.SinkBusy, match="one instance"):
        sync(Meddles(str(world.state_dir), full=True))


def test_the_servers_zone_is_found_in_its_log(tmp_path, monkeypatch):
    api = Api(synthetic.make(records=5), TOKEN, timezone="Asia/Kolkata")
    with running(api) as server:
        monkeypatch.setenv("REDCAP_API_URL", server.url)
        monkeypatch.setenv("REDCAP_API_TOKEN", TOKEN)
        first = sync(Alone(str(tmp_path)))
        assert first["zone_source"] == "log"
        local = datetime.strptime(first["window_end"], "%Y-%m-%d %H:%M:%S")  # noqa: DTZ007
        assert abs(local - api.now()) < timedelta(minutes=1)
        second = sync(Alone(str(tmp_path)))
        begin = datetime.strptime(second["window_begin"], "%Y-%m-%d %H:%M:%S")  # noqa: DTZ007
        assert timedelta(minutes=9) < local - begin < timedelta(minutes=11)


NO_LOG = Rights(logging=False)


@pytest.mark.parametrize("zone", ["Asia/Kolkata", "America/Chicago", "Pacific/Auckland", "UTC"])
@pytest.mark.parametrize(("rights", "by"), [(Rights(), "log"), (NO_LOG, "setting"), (NO_LOG, "host")])
def test_changes_are_found_whatever_the_servers_zone(tmp_path, monkeypatch, zone, rights, by):
    project = synthetic.make(records=5)
    api = Api(project, TOKEN, timezone=zone, rights=rights)
    with running(api) as server:
        monkeypatch.setenv("REDCAP_API_URL", server.url)
        monkeypatch.setenv("REDCAP_API_TOKEN", TOKEN)
        if by == "setting":
            monkeypatch.setenv("REDCAP_TIMEZONE", zone)
        sync(Alone(str(tmp_path)))
        api.changes.put([{"record_id": "2", "redcap_event_name": "enrolment_arm_1", "first_name": "Neu"}])
        summary = sync(Alone(str(tmp_path)))
        assert (summary["updated"], summary["zone_source"]) == (1, by)


# The nights in Berlin when the clock goes back (03:00 to 02:00) and forward (02:00 to 03:00).
BACK = datetime(2026, 10, 25, 1, 0, tzinfo=UTC)
FORWARD = datetime(2026, 3, 29, 1, 0, tzinfo=UTC)


@pytest.mark.parametrize("change", [BACK, FORWARD])
@pytest.mark.parametrize("by", ["setting", "log"])
@pytest.mark.parametrize("overlap", ["0", "10m"])
def test_both_changes_of_the_clock(tmp_path, monkeypatch, change, by, overlap):
    """A cycle every 20 minutes through the night, a change of a record before each."""
    clock = {"now": change - timedelta(hours=2)}
    project = synthetic.make(seed=2, records=12)
    api = Api(project, TOKEN, timezone="Europe/Berlin", utc_now=lambda: clock["now"])
    if by == "setting":
        api.rights = Rights(logging=False)
        monkeypatch.setenv("REDCAP_TIMEZONE", "Europe/Berlin")
    monkeypatch.setenv("REDCAP_OVERLAP", overlap)
    with running(api) as server:
        monkeypatch.setenv("REDCAP_API_URL", server.url)
        monkeypatch.setenv("REDCAP_API_TOKEN", TOKEN)
        changes = Changes(project, api.now)
        with freeze_time(clock["now"], ignore=["ops.sandbox"]) as frozen:
            sync(Alone(str(tmp_path)))
            for step in range(12):
                clock["now"] += timedelta(minutes=10)
                changes.put(
                    [{"record_id": str(step + 1), "redcap_event_name": "enrolment_arm_1", "first_name": f"at {step}"}]
                )
                clock["now"] += timedelta(minutes=10)
                frozen.move_to(clock["now"])
                summary = sync(Alone(str(tmp_path)))
                assert summary["zone_source"] == by
                assert summary["updated"] == 1, (step, summary)


def test_the_same_instant_in_the_overlap_is_not_lost(tmp_path, monkeypatch):
    """A record that is saved in the very second in which a cycle starts."""
    now = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
    api = Api(synthetic.make(records=3), TOKEN, utc_now=lambda: now)
    with running(api) as server:
        monkeypatch.setenv("REDCAP_API_URL", server.url)
        monkeypatch.setenv("REDCAP_API_TOKEN", TOKEN)
        sync(Alone(str(tmp_path)))
        api.changes.put([{"record_id": "1", "redcap_event_name": "enrolment_arm_1", "first_name": "now"}])
        assert sync(Alone(str(tmp_path)))["updated"] == 1


def test_requests_keep_below_the_rate(world, monkeypatch):
    monkeypatch.setenv("REDCAP_MAX_RATE", "5")
    slept = []
    redcap, _ = load()
    client = Client(redcap, lambda: 60.0, str(world.state_dir), sleep=slept.append)
    for _ in range(5):
        client.table("instrument")
    assert slept == []
    client.table("instrument")
    assert len(slept) == 1
    assert 50 < slept[0] <= 60
    client.close()


@pytest.mark.parametrize("answer", [1, 2])  # the deletions of the log, its edits
def test_a_log_that_is_refused_by_a_firewall_is_no_missing_right(world, monkeypatch, answer):
    from ops.sandbox.faults import page, wire

    world.sync()
    world.api.changes.delete(["5"])
    world.api.changes.rename("6", "600")
    asked = {"log": 0}
    right = world.api.answer

    def answered(body):
        # The first question to the log is for its newest rows.
        asked["log"] += "content=log" in body
        asked["spoil"] = "content=log" in body and asked["log"] == 1 + answer
        return right(body)

    monkeypatch.setattr(world.api, "answer", answered)
    banned = page(403, "Forbidden")
    monkeypatch.setattr(world.server.faults, "apply", lambda one: banned if asked["spoil"] else wire(one))
    with pytest.raises(errors.TokenRefused):
        world.sync()
    asked["log"] = 10
    world.sync()
    world.assert_exact()


def test_an_id_that_changes_in_case_is_one_record(world):
    world.api.changes.put([{"record_id": "Abc", "redcap_event_name": "enrolment_arm_1", "sex": "1"}])
    world.sync()
    world.api.changes.rename("Abc", "abc")
    world.sync()
    world.assert_exact()


def test_a_record_that_loses_its_last_row_is_gone(world):
    world.sync()
    for event, instrument, instance in list(world.api.project.records["5"].rows):
        world.api.changes.delete_rows("5", event=event, instrument=instrument, instance=instance)
    world.sync()
    assert "5" not in {key[0] for key in world.stored()}
    world.assert_exact()


def test_a_backfill_over_a_change_of_the_clock_loses_no_edit(tmp_path, monkeypatch):
    clock = {"now": datetime(2027, 3, 28, 0, 30, tzinfo=UTC)}  # half an hour before Berlin's clock goes on
    api = Api(synthetic.make(seed=2, records=40), TOKEN, timezone="Europe/Berlin", utc_now=lambda: clock["now"])

    class Killed(BaseException):
        pass

    class Dies(Alone):
        def progress(self, done, total=None, unit=""):
            if unit == "records" and done >= 30:
                raise Killed

    monkeypatch.setenv("REDCAP_OVERLAP", "0")
    monkeypatch.setenv("REDCAP_BATCH_SIZE", "10")
    with running(api) as server:
        monkeypatch.setenv("REDCAP_API_URL", server.url)
        monkeypatch.setenv("REDCAP_API_TOKEN", TOKEN)
        with pytest.raises(Killed):
            sync(Dies(str(tmp_path)))
        clock["now"] += timedelta(minutes=1)
        api.changes.put([{"record_id": "1", "redcap_event_name": "enrolment_arm_1", "first_name": "Neu"}])
        clock["now"] = datetime(2027, 3, 28, 2, 0, tzinfo=UTC)
        resumed = sync(Alone(str(tmp_path)))
        assert (resumed["mode"], resumed["updated"]) == ("full", 1)  # what changed since it began too
        clock["now"] += timedelta(minutes=5)
        assert sync(Alone(str(tmp_path)))["updated"] == 0


def test_a_guess_of_the_zone_does_not_wander(world):
    world.sync()
    world.api.rights = Rights(logging=False)
    begins = {world.sync()["window_begin"][:13] for _ in range(4)}
    assert len(begins) <= 2  # the hour may change under the test, and not with every cycle


def test_ids_of_32_digits_are_ids_where_nothing_hides_them(world):
    world.api.changes.put([{"record_id": "0123456789abcdef" * 2, "redcap_event_name": "enrolment_arm_1"}])
    world.sync()
    world.assert_exact()


def test_a_nul_is_stored_as_a_mark_and_counted(world):
    world.api.project.records["1"].rows[("enrolment_arm_1", "", 0)]["first_name"] = "\0x"
    assert world.sync()["mended"] == 1
    assert world.stored()[("1", "enrolment_arm_1", "", 0)]["first_name"] == "\ufffdx"
    assert world.sync(full=True)["updated"] == 0


def test_half_a_character_is_a_named_error(world):
    """PHP makes no such JSON; what else might, is not believed."""
    world.api.project.records["1"].rows[("enrolment_arm_1", "", 0)]["first_name"] = "\ud800x"
    with pytest.raises(errors.SyncError):
        world.sync()


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/Chicago"])
def test_a_zone_that_is_not_the_server_s_misses_nothing(world, monkeypatch, zone, caplog):
    """The server's own log says better."""
    monkeypatch.setenv("REDCAP_TIMEZONE", zone)
    monkeypatch.setenv("REDCAP_OVERLAP", "1s")
    world.sync()
    for number in range(3):
        world.api.changes.put([{"record_id": f"n{number}", "redcap_event_name": "enrolment_arm_1", "first_name": "x"}])
        summary = world.sync()
        assert summary["zone_source"] == "log"
        world.assert_exact()
    assert "ZoneWrong" in caplog.text


def test_what_was_rolled_back_is_not_counted(world, monkeypatch):
    put = Transaction.put

    def full(*given, **named):
        put(*given, **named)
        raise errors.SinkFailed("the disk is full")

    monkeypatch.setattr(Transaction, "put", full)
    with pytest.raises(errors.SinkFailed) as seen:
        world.sync()
    assert world.query("SELECT COUNT(*) FROM records") == [(0,)]
    assert (seen.value.summary["inserted"], seen.value.summary["rows"]) == (0, 0)
    assert seen.value.summary["requests"] > 5
