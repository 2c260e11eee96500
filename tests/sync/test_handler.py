"""SYNC_HANDLER: somebody's own callable on each record's rows."""

import re
import sys

import pytest

from worker import errors, settings

MODULE = """
from sqlalchemy import text

def same(record_id, rows, connection):
    return rows

def change(record_id, rows, connection):
    for row in rows:
        row["first_name"] = row["first_name"][:1]
    return rows

def veto(record_id, rows, connection):
    return [] if record_id == "7" else rows

def add(record_id, rows, connection):
    return [*rows, {**rows[0], "redcap_repeat_instrument": "derived", "redcap_repeat_instance": 1}] if rows else []

def own_table(record_id, rows, connection):
    connection.execute(text("CREATE TABLE IF NOT EXISTS seen (record_id TEXT, rows INTEGER)"))
    connection.execute(text("INSERT INTO seen VALUES (:id, :rows)"), {"id": record_id, "rows": len(rows)})
    return rows

def fails(record_id, rows, connection):
    own_table(record_id, rows, connection)
    if record_id == "7":
        raise ValueError(f"Canary {rows[0]['first_name']}")
    return rows

def nothing(record_id, rows, connection):
    rows.sort(key=str)

def other(record_id, rows, connection):
    return [{**row, "record_id": "Canary"} for row in rows]

def twice(record_id, rows, connection):
    return rows + rows[:1]

def no_json(record_id, rows, connection):
    return [{**rows[0], "first_name": object()}]

def other_case(record_id, rows, connection):
    return [{**row, "record_id": record_id + " "} for row in rows]

def deep(record_id, rows, connection):
    value = []
    for _ in range(100_000):
        value = [value]
    return [{**rows[0], "first_name": value}]
"""


@pytest.fixture
def handler(tmp_path, monkeypatch):
    name = f"handlers_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield lambda which: monkeypatch.setenv("SYNC_HANDLER", f"{name}:{which}")
    sys.modules.pop(name, None)


def test_the_rows_as_they_are(either, handler):
    handler("same")
    assert either.sync()["records"] == 60
    either.assert_exact()
    assert either.sync(full=True)["updated"] == 0


def test_it_may_change_veto_and_add(either, handler):
    handler("change")
    either.sync()
    names = {row["first_name"] for row in either.stored().values()}
    assert max(map(len, names)) == 1
    handler("veto")  # another handler makes other rows: the next cycle is full
    summary = either.sync()
    assert (summary["mode"], summary["deleted"]) == ("full", len(either.api.project.records["7"].rows))
    assert "7" not in {key[0] for key in either.stored()}
    handler("add")
    either.sync()
    assert {key[0] for key in either.stored() if key[2] == "derived"} == set(either.api.project.records)


def test_it_writes_in_the_same_transaction(either, handler, monkeypatch):
    monkeypatch.setenv("REDCAP_BATCH_SIZE", "10")
    handler("own_table")
    either.sync()
    assert either.query("SELECT COUNT(*), COUNT(DISTINCT record_id) FROM seen") == [(60, 60)]
    either.api.changes.delete(["7"])
    either.sync()
    assert ("7", 0) in either.query("SELECT record_id, rows FROM seen")
    handler("fails")
    either.query("DELETE FROM seen")
    either.api.changes.put([{"record_id": "7", "redcap_event_name": "enrolment_arm_1", "first_name": "Name"}])
    with pytest.raises(errors.HandlerFailed) as caught:
        either.sync()
    # In the order of text, 7 is in the last batch of ten, which is not there; those before it are.
    assert "raised ValueError at handlers_" in str(caught.value)
    assert re.search(r"for record 5\d of this cycle", str(caught.value))
    assert "Canary" not in str(caught.value)
    assert "Name" not in str(caught.value)
    assert either.query("SELECT COUNT(*) FROM seen") == [(50,)]


@pytest.mark.parametrize("which", ["nothing", "other", "twice", "no_json", "other_case", "deep"])
def test_what_can_be_no_rows_is_refused(world, handler, which):
    handler(which)
    with pytest.raises(errors.HandlerFailed, match="record 1 of this cycle") as caught:
        world.sync()
    assert "Canary" not in str(caught.value)
    assert world.query("SELECT COUNT(*) FROM records") == [(0,)]


@pytest.mark.parametrize(
    ("target", "says"),
    [("nowhere:x", "nowhere"), ("json", "can't be imported"), ("json:no", "'no'"), ("json:__doc__", "no callable")],
)
def test_a_handler_that_is_none_is_a_fault_of_the_settings(world, monkeypatch, target, says):
    monkeypatch.setenv("SYNC_HANDLER", target)
    (fault,) = settings.faults()
    assert fault["variable"] == "SYNC_HANDLER"
    assert says in fault["message"]
