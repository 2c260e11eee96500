"""The change feed: appended to only, one line a change, whole lines or the beginning of one."""

import json
import os
import stat
import subprocess
import sys

import pytest

from tests.sync.conftest import TOKEN, Alone
from worker import errors
from worker.job import sync
from worker.sink import open_sink


@pytest.fixture
def feed(world, tmp_path, monkeypatch):
    folder = tmp_path / "feed"
    monkeypatch.setenv("SYNC_SINK", f"jsonl:{folder}")
    return folder


def lines(feed):
    return [json.loads(line) for path in sorted(feed.glob("*.jsonl")) for line in path.read_bytes().split(b"\n")[:-1]]


def replayed(feed):
    """Return what somebody has who takes every line as it comes."""
    rows = {}
    for line in lines(feed):
        key = (line["record_id"], line["event"], line["repeat_instrument"], line["repeat_instance"])
        assert (line["change"] == "deleted") == (line["data"] is None)
        if line["change"] == "deleted":
            del rows[key]
        else:
            rows[key] = line["data"]
    return rows


def test_the_lines_tell_every_change_once(world, feed):
    summary = world.sync()
    assert replayed(feed) == world.truth()
    assert len(lines(feed)) == summary["inserted"]
    assert set(lines(feed)[0]) == {
        "at", "change", "project_id", "record_id", "event", "repeat_instrument", "repeat_instance", "data",
    }  # fmt: skip
    assert world.sync()["unchanged"] >= 0
    assert len(lines(feed)) == summary["inserted"]
    world.api.changes.put([{"record_id": "3", "redcap_event_name": "enrolment_arm_1", "first_name": "Neu\n\u2028"}])
    world.api.changes.delete(["4"])
    world.api.changes.rename("5", "500")
    before = (path := next(feed.glob("*.jsonl"))).read_bytes()
    world.sync()
    assert path.read_bytes().startswith(before)
    assert replayed(feed) == world.truth()


def test_the_files_are_the_owners_alone_and_named_by_month(world, feed):
    world.sync()
    (path,) = feed.glob("*.jsonl")
    assert path.name.startswith("changes-4242-20")
    assert [stat.S_IMODE(os.stat(one).st_mode) for one in (feed, path)] == [0o700, 0o600]


def test_a_file_that_was_taken_away_begins_anew(world, feed):
    world.sync()
    next(feed.glob("*.jsonl")).unlink()
    world.api.changes.put([{"record_id": "3", "redcap_event_name": "enrolment_arm_1", "first_name": "Neu"}])
    world.sync()
    (line,) = lines(feed)
    assert line["data"]["first_name"] == "Neu"


@pytest.mark.parametrize("written", [0, 1, 300, None])
def test_a_kill_while_the_lines_are_written_leaves_a_beginning_that_the_next_cycle_ends(
    world, feed, monkeypatch, written
):
    """The process dies when so many bytes of its second batch are in the file, and None is all of them."""

    class Killed(BaseException):
        pass

    calls = []
    real = os.write

    def write(fd, data):
        calls.append(len(data))
        if len(calls) < 2:
            return real(fd, data)
        real(fd, bytes(data)[: len(data) if written is None else written])
        raise Killed

    monkeypatch.setenv("REDCAP_BATCH_SIZE", "10")
    with monkeypatch.context() as patch:
        patch.setattr("worker.sink.jsonl.os.write", write)
        with pytest.raises(Killed):
            world.sync()
    path = next(feed.glob("*.jsonl"))
    begun = path.read_bytes()
    assert len(begun) == calls[0] + (calls[1] if written is None else written)
    world.sync()
    assert path.read_bytes().startswith(begun)
    assert replayed(feed) == world.truth()
    assert len(lines(feed)) == len(world.truth())


def test_any_name_of_a_folder_will_do(world, tmp_path, monkeypatch):
    folder = tmp_path / "a?b#c %d"
    monkeypatch.setenv("SYNC_SINK", f"jsonl:{folder}")
    world.sync()
    assert {"index.db"} <= {path.name for path in folder.iterdir()}
    assert replayed(folder) == world.truth()
    for path in folder.glob("index.db*"):  # the feed alone holds the data
        assert world.truth()["1", "enrolment_arm_1", "", 0]["born_on"].encode() not in path.read_bytes()


def test_a_folder_that_can_not_be_made(world, monkeypatch):
    monkeypatch.setenv("SYNC_SINK", "jsonl:/proc/nowhere")
    with pytest.raises(errors.SinkFailed, match="can't be made"):
        world.sync()


def test_a_full_disk_is_named_and_made_good(world, feed, monkeypatch):
    """RLIMIT_FSIZE is what a full disk is to a process; the kernel sends a signal with it."""
    code = (
        "import resource, signal, sys; from tests.sync.conftest import Alone; from worker.job import sync; "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (150_000,) * 2); "
        f"sync(Alone({str(world.state_dir)!r}))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "SinkFailed" in ended.stderr
    sync(Alone(str(world.state_dir)))
    assert replayed(feed) == world.truth()
    assert TOKEN not in ended.stderr


def test_the_outbox_is_on_the_disk_before_the_feed_is(tmp_path):
    """Else a power cut could leave half a line in the feed that nothing knows of."""
    sink = open_sink(f"jsonl:{tmp_path}", "")
    try:
        assert sink._connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
    finally:
        sink.close()
