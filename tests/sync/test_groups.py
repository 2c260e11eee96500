"""Data access groups and filters: what a token can't see is not deleted, and what has left a filter is gone."""

from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs

import pytest

from ops.sandbox.api import Answer
from ops.sandbox.export import Rights

ENROLLED = "enrolment_arm_1"


@pytest.fixture
def grouped(world):
    """Put every other record into each of two groups."""
    for number, record in enumerate(world.api.project.records.values()):
        record.group = "north" if number % 2 else "south"
    return world


@pytest.fixture
def meanwhile(monkeypatch):
    """Do something before the server answers a request that a function picks by its parameters."""

    def install(world, picks, action):
        answer = world.api.answer

        def answered(body):
            asked = {name: values[0] for name, values in parse_qs(body).items()}
            if picks(asked) and (changed := action(asked)):
                return changed
            return answer(body)

        monkeypatch.setattr(world.api, "answer", answered)

    return install


def is_batch(asked):
    return "records[0]" in asked and "exportDataAccessGroups" not in asked


def days_on(world, days):
    world.api.utc_now = lambda: datetime.now(UTC) + timedelta(days=days)


def live_ids(world):
    return {key[0] for key in world.stored()}


@pytest.mark.parametrize("full", [True, False])
def test_who_is_put_into_a_group_in_mid_cycle_deletes_nothing(grouped, meanwhile, monkeypatch, full):
    monkeypatch.setenv("SYNC_ON_DELETE", "erase")
    monkeypatch.setenv("REDCAP_BATCH_SIZE", "10")
    grouped.sync()
    before = live_ids(grouped)
    for name in ("1", "2", "3"):
        grouped.api.changes.put([{"record_id": name, "redcap_event_name": ENROLLED, "first_name": "Neu"}])
    batches = iter(range(99))

    def lose_the_right(asked):
        if not full or next(batches) == 1:
            grouped.api.rights = Rights(group="north")

    meanwhile(grouped, is_batch, lose_the_right)
    assert grouped.sync(full=full)["deleted"] == 0
    assert live_ids(grouped) == before


@pytest.mark.parametrize("group", ["", "north"])
def test_what_leaves_a_filter_leaves_the_database(world, monkeypatch, group):
    """Also where those that are looked at leave it, so that nothing shows whether the token is in a group."""
    for record in world.api.project.records.values():
        record.group = "north"
        record.rows[ENROLLED, "", 0]["sex"] = "1"
    world.api.rights = Rights(group=group)
    monkeypatch.setenv("REDCAP_FILTER_LOGIC", "[sex] = '1'")
    world.sync()
    first = sorted(live_ids(world))[:3]
    for name in first:
        world.api.changes.put([{"record_id": name, "redcap_event_name": ENROLLED, "sex": "2"}])
    assert world.sync()["mode"] == "incremental"
    assert live_ids(world) == set(world.api.project.records) - set(first)


@pytest.mark.parametrize("group", ["", "north"])
def test_a_filter_that_nothing_passes_and_other_events(world, monkeypatch, group):
    for record in world.api.project.records.values():
        record.group = "north"
    world.api.rights = Rights(group=group)
    world.sync()
    monkeypatch.setenv("REDCAP_EVENTS", "visit_1_arm_1")
    world.sync()
    assert {key[1] for key in world.stored()} == {"visit_1_arm_1"}
    monkeypatch.setenv("REDCAP_FILTER_LOGIC", "[sex] = '9'")
    world.sync(full=True)
    assert world.stored() == {}


def test_a_deleted_record_is_no_rename_of_one_that_is_like_it(world):
    world.api.changes.put([{"record_id": "old", "redcap_event_name": ENROLLED, "sex": "1"}])
    world.sync()
    days_on(world, 2)
    world.api.changes.delete(["old"])
    world.api.changes.put([{"record_id": "new", "redcap_event_name": ENROLLED, "sex": "1"}])
    summary = world.sync()
    assert (summary["mode"], summary["inserted"], summary["deleted"]) == ("reconcile", 1, 1)
    deleted = "SELECT COUNT(*) FROM records WHERE record_id = 'old' AND deleted_at IS NOT NULL"
    assert world.query(deleted) == [(1,)]
    world.assert_exact()


def test_of_two_lost_records_that_are_alike_neither_is_taken_for_the_new_one(world):
    for name in ("one", "two"):
        world.api.changes.put([{"record_id": name, "redcap_event_name": ENROLLED, "sex": "1"}])
    world.sync()
    world.api.rights = Rights(logging=False)
    days_on(world, 2)
    world.api.changes.delete(["one"])
    world.api.changes.rename("two", "three")
    summary = world.sync()
    assert (summary["inserted"], summary["deleted"]) == (1, 2)
    world.assert_exact()


def test_a_rename_leaves_rows_that_were_deleted_before_alone(world):
    world.sync()
    key = next(key for key in world.stored() if key[1] != ENROLLED)
    world.api.changes.delete_rows(key[0], event=key[1], instrument=key[2], instance=key[3])
    world.sync()
    world.api.changes.rename(key[0], "renamed")
    world.sync()
    world.assert_exact()
    (kept,) = world.query("SELECT record_id FROM records WHERE deleted_at IS NOT NULL")
    assert kept == (key[0],)


def test_a_log_that_is_too_long_for_the_server_is_read_in_parts(world, meanwhile):
    world.sync()
    days_on(world, 14)
    world.api.changes.delete(["1"])
    world.api.changes.put([{"record_id": "2", "redcap_event_name": ENROLLED, "first_name": "Neu"}])
    asked_for = []

    def refuse_more_than_two_days(asked):
        begin = datetime.strptime(asked["beginTime"], "%Y-%m-%d %H:%M").replace(tzinfo=UTC)
        end = world.api.utc_now()
        if "endTime" in asked:
            end = min(end, datetime.strptime(asked["endTime"], "%Y-%m-%d %H:%M").replace(tzinfo=UTC))
        asked_for.append(end - begin)
        return Answer(504, "text/html", b"<html>") if end - begin > timedelta(days=2) else None

    meanwhile(world, lambda asked: "logtype" in asked, refuse_more_than_two_days)
    summary = world.sync()
    assert (summary["deleted"] > 0, summary["updated"]) == (True, 1)
    assert max(asked_for) > timedelta(days=13)
    world.assert_exact()


@pytest.mark.parametrize("logging", [True, False])
def test_an_empty_list_of_changes_is_not_believed_at_once(world, meanwhile, monkeypatch, logging):
    monkeypatch.setenv("REDCAP_TIMEZONE", "UTC")
    world.api.rights = Rights(logging=logging)
    world.sync()
    for name in ("1", "new"):
        world.api.changes.put([{"record_id": name, "redcap_event_name": ENROLLED, "first_name": "Neu"}])
    lists = iter([Answer(200, "application/json", b"[]")])
    meanwhile(world, lambda asked: "dateRangeBegin" in asked, lambda asked: next(lists, None))
    summary = world.sync()
    assert (summary["inserted"], summary["updated"]) == (1, 1)
    world.assert_exact()
