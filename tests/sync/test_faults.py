"""A hostile or broken server: a named error each, bounded, and nothing half-read is kept."""

import email.utils
import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from ops.sandbox.faults import FAULTS, page, wire
from tests.sync.conftest import TOKEN
from worker import errors
from worker.redcap import Client
from worker.settings import load

EXPECTED = {
    "truncated": errors.AnswerCutOff,
    "cut": errors.AnswerCutOff,
    "reset": errors.AnswerCutOff,
    "empty": errors.AnswerCutOff,
    "html": errors.NotRedcap,
    "maintenance": errors.ServerFailed,
    "database-down": errors.NotRedcap,
    "error-object": errors.TokenRefused,
    "out-of-memory": errors.OutOfServerMemory,
    "rubbish": errors.AnswerMalformed,
    "lost-rows": None,  # not an error of the answer: see below
    "duplicate-keys": errors.AnswerMalformed,
    "wrong-charset": errors.AnswerMalformed,
    "bom": None,  # read as it is meant
    "control-characters": errors.AnswerMalformed,
    "deep": errors.AnswerMalformed,
    "huge-number": errors.AnswerMalformed,
    "drip": errors.ServerTooSlow,
    "endless": errors.AnswerMalformed,
    "bomb": None,  # blanks, and then no project
    "damaged": errors.AnswerCutOff,
    "redirect": errors.RedirectRefused,
    "ban": errors.TokenRefused,
    "429": errors.TooManyRequests,
    "429-retry-after": errors.TooManyRequests,
    "500": errors.ServerFailed,
    "502": errors.ServerFailed,
    "503": errors.ServerFailed,
    "504": errors.ServerTooSlow,
}


def test_every_fault_of_the_sandbox_is_expected():
    assert set(EXPECTED) == set(FAULTS)


@pytest.fixture
def spoil(world, monkeypatch):
    """Spoil the answers to requests for rows that ask for more than some records, and no other."""
    state = {"asked": 0, "fault": "", "above": 0}
    answer = world.api.answer

    def answered(body):
        state["asked"] = body.count("records%5B")
        return answer(body)

    def apply(answer):
        spoiled = state["fault"] and state["asked"] > state["above"]
        return FAULTS[state["fault"]][1](answer) if spoiled else wire(answer)

    monkeypatch.setattr(world.api, "answer", answered)
    monkeypatch.setattr(world.server.faults, "apply", apply)

    def start(fault, above=0):
        state.update(fault=fault, above=above)

    return start


@pytest.mark.parametrize("fault", [name for name, error in EXPECTED.items() if error])
def test_a_fault_in_mid_sync_is_a_named_error_and_nothing_is_kept(world, spoil, monkeypatch, fault):
    monkeypatch.setenv("REDCAP_TIMEOUT", "2s,2s")
    monkeypatch.setenv("REDCAP_BATCH_SIZE", "1" if fault == "drip" else "60")
    spoil(fault)
    with pytest.raises(EXPECTED[fault]) as caught:
        world.sync()
    text = str(caught.value)
    assert len(text) > 30
    assert TOKEN not in text
    assert "127.0.0.1" not in text
    assert world.stored() == {}
    spoil("")
    world.sync()
    world.assert_exact()


def test_a_byte_order_mark_can_be_lived_with(world):
    world.server.faults.add("bom")
    world.sync()
    world.assert_exact()


def test_a_server_that_always_loses_rows_is_never_believed(world, spoil):
    """What is there, says one answer, and is not there, says the other, is an error and no deletion."""
    world.sync()
    everything = world.stored()
    spoil("lost-rows")
    with pytest.raises(errors.RecordsUnconfirmed, match="lost rows"):
        world.sync(full=True)
    assert world.stored() == everything


def test_lost_rows_are_asked_for_again(world, spoil):
    """A batch comes back with records missing and no error, as real servers were seen to do."""
    spoil("lost-rows", above=40)
    summary = world.sync()
    assert summary["requests"] > 8
    assert {key[0] for key in world.stored()} == set(world.api.project.records)


BOMB = """
import sys
from supervisor.tree import own_peak_rss_bytes
from worker.redcap import Client
from worker.settings import load
client = Client(load()[0], lambda: 60.0, sys.argv[1])
before = own_peak_rss_bytes()
assert client.table("metadata") == []
assert client.counters.bytes_received == 200_000_002
print(own_peak_rss_bytes() - before)
"""


def test_a_bomb_takes_time_but_no_memory(world):
    world.server.faults.add("bomb")
    done = subprocess.run([sys.executable, "-c", BOMB, world.state_dir], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20_000_000


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(("header", "wanted_s"), [("7", 7), ("0", 0), ("a date", 9), ("900", None)])
def test_retry_after_is_kept_where_the_cycle_has_so_long(world, monkeypatch, header, wanted_s, status):
    if header == "a date":
        header = email.utils.format_datetime(datetime.now(UTC) + timedelta(seconds=9))
    monkeypatch.setenv("REDCAP_RETRIES", "1")
    monkeypatch.setattr(world.server.faults, "apply", lambda answer: page(status, "Not Now", Retry_After=header))
    redcap, _ = load()
    slept = []
    client = Client(redcap, lambda: 60.0, str(world.state_dir), sleep=slept.append)
    with pytest.raises(errors.TooManyRequests if status == 429 else errors.ServerFailed):
        client.table("metadata")
    client.close()
    assert [wanted_s - 2 < one <= wanted_s for one in slept] == [True] * (wanted_s is not None)


@pytest.mark.parametrize("fault", ["out-of-memory", "504", "empty", "truncated"])
def test_a_batch_that_is_too_large_is_halved(world, spoil, monkeypatch, fault):
    monkeypatch.setenv("REDCAP_BATCH_SIZE", "40")
    spoil(fault, above=12)
    summary = world.sync()
    assert summary["retries"] == 2  # from 40 to 20 to 10
    assert summary["batches"] == 6
    world.assert_exact()


@pytest.mark.parametrize("fault", ["500:3", "502:3", "html:3", "reset:3", "429-retry-after:4"])
def test_what_passes_is_tried_again(world, monkeypatch, fault):
    monkeypatch.setenv("REDCAP_RETRIES", "3")
    monkeypatch.setattr("worker.redcap.BACK_OFF_FIRST_S", 0.01)
    world.server.faults.add(fault)
    summary = world.sync()
    assert summary["retries"] > 0
    world.server.faults.clear()
    world.assert_exact()


def test_the_retry_budget_is_kept(world, monkeypatch):
    monkeypatch.setenv("REDCAP_RETRIES", "2")
    monkeypatch.setattr("worker.redcap.BACK_OFF_FIRST_S", 0.01)
    world.server.faults.add("500")
    with pytest.raises(errors.ServerFailed):
        world.sync()
    assert world.server.faults._count == 3


def test_what_is_final_is_not_tried_again(world, monkeypatch):
    monkeypatch.setenv("REDCAP_RETRIES", "5")
    monkeypatch.setenv("REDCAP_API_TOKEN", "F" * 32)
    with pytest.raises(errors.TokenRefused, match="REDCAP_API_TOKEN"):
        world.sync()
    assert world.server.faults._count == 1


def test_a_server_that_is_not_there(world, monkeypatch):
    monkeypatch.setenv("REDCAP_API_URL", "http://127.0.0.1:9/api/")
    with pytest.raises(errors.ServerUnreachable, match="REDCAP_API_URL") as caught:
        world.sync()
    assert "Connection refused" in str(caught.value)


def test_a_wrong_path(world, monkeypatch):
    monkeypatch.setenv("REDCAP_API_URL", world.server.url.replace("/api/", "/redcap/api/"))
    with pytest.raises(errors.RequestRefused, match="404"):
        world.sync()


def test_no_record_value_in_an_unexpected_error(world, monkeypatch):
    def defect(row):
        raise KeyError(json.loads(row)["first_name"])

    monkeypatch.setattr("worker.records.stored", defect)
    with pytest.raises(errors.UnexpectedError) as caught:
        world.sync()
    names = {one.rows[("enrolment_arm_1", "", 0)]["first_name"] for one in world.api.project.records.values()}
    assert not any(name in str(caught.value) for name in names)
    assert "KeyError" in str(caught.value)


def test_a_sink_that_refuses_names_itself_and_no_value(world, monkeypatch):
    monkeypatch.setenv("SYNC_SINK", "sqlite:////proc/nowhere/redcap.db")
    with pytest.raises(errors.SinkFailed, match="can't be opened"):
        world.sync()
    world.state_dir.joinpath("redcap.db").write_text("this is no database, by far not" * 100)
    monkeypatch.delenv("SYNC_SINK")
    with pytest.raises(errors.SinkFailed, match="not a database"):
        world.sync()


def test_values_are_in_no_message_of_the_sink(world):
    world.sync()
    import sqlite3

    connection = sqlite3.connect(world.state_dir / "redcap.db")
    connection.execute("CREATE TRIGGER t BEFORE UPDATE ON records BEGIN SELECT RAISE(ABORT, 'refused'); END")
    connection.close()
    world.api.changes.put([{"record_id": "7", "redcap_event_name": "enrolment_arm_1", "first_name": "Canary"}])
    with pytest.raises(errors.SinkFailed) as caught:
        world.sync()
    assert "Canary" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_password_in_a_sinks_url_is_never_shown(world, monkeypatch):
    monkeypatch.setenv("SYNC_SINK", "postgresql+psycopg://me@127.0.0.1:1/db?password=hunter2")
    with pytest.raises(errors.SinkFailed) as caught:
        world.sync()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        b'{"error":"The record Smith-John-1950 is HIV positive"}',
        b"ERROR: record Smith born 1950",
        b'{"error":"\xe2\x80\x98Smith\xe2\x80\x99"}',
    ],
)
@pytest.mark.parametrize("status", [200, 400, 403])
def test_a_servers_own_words_are_shown_only_when_they_are_known(world, monkeypatch, body, status):
    from ops.sandbox.api import Answer

    monkeypatch.setattr(world.api, "answer", lambda _: Answer(status, "application/json", body))
    with pytest.raises(errors.SyncError) as caught:
        world.sync()
    assert "Smith" not in str(caught.value)
    assert "HIV" not in str(caught.value)


def test_an_answer_that_is_cut_at_any_byte_is_never_believed(world, monkeypatch):
    """Each answer of a small project's first sync, cut in forty places (test_pure has every byte of one)."""
    for name in list(world.api.project.records)[2:]:
        del world.api.project.records[name]
    world.api.project.fields[:] = world.api.project.fields[:3]
    bodies = []
    right = world.api.answer
    cut = {"at": -1, "number": -1}

    def answered(body):
        answer = right(body)
        bodies.append(answer.body)
        if len(bodies) - 1 == cut["number"]:
            return replace(answer, body=answer.body[: cut["at"]])
        return answer

    monkeypatch.setattr(world.api, "answer", answered)
    monkeypatch.setenv("REDCAP_RAW_OR_LABEL", "raw")
    world.sync()
    whole = list(bodies)
    truth = world.stored()
    assert len(whole) > 7
    tried = 0
    named = {}
    for number, body in enumerate(whole):
        for at in range(0, len(body), max(1, len(body) // 40)):
            world.state_dir.joinpath("redcap.db").unlink()
            bodies.clear()
            cut |= {"number": number, "at": at}
            world.state_dir.joinpath("requests").unlink()  # else REDCAP_MAX_RATE would make it long
            try:
                world.sync()
                expected = truth  # a log that breaks off behind the row that was looked for is not read to its end
            except errors.SyncError as error:
                named[type(error)] = named.get(type(error), 0) + 1
                expected = {}
            assert world.stored() == expected, (number, at)
            tried += 1
    assert tried > 200
    assert set(named) == {errors.AnswerCutOff}
