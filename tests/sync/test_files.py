"""SQLite where its file or folder can't be used, and a server whose certificate or name is not good."""

import os
import pathlib
import sqlite3
import ssl
import stat
import subprocess
import sys

import pytest
import trustme

from tests.sync.conftest import TOKEN, Alone
from worker import errors
from worker.job import sync


def test_a_database_that_somebody_else_holds_is_waited_for_and_named(world, monkeypatch):
    world.sync()
    monkeypatch.setattr("worker.sink.sql.BUSY_TIMEOUT_S", 0.2)
    with sqlite3.connect(world.state_dir / "redcap.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(errors.SinkFailed, match="database is locked"):
            world.sync()
        other.execute("ROLLBACK")
    other.close()
    world.sync()


def test_readers_do_not_disturb_a_sync(world):
    world.sync()
    with sqlite3.connect(world.state_dir / "redcap.db", isolation_level=None) as reader:
        reader.execute("BEGIN")
        before = reader.execute("SELECT COUNT(*) FROM records").fetchone()
        world.api.changes.delete(["7"])
        assert world.sync()["deleted"] > 0
        assert reader.execute("SELECT COUNT(*) FROM records WHERE deleted_at IS NULL").fetchone() == before
    reader.close()
    world.assert_exact()


@pytest.mark.parametrize("at_byte", [100, 5_000, 40_000])
def test_a_corrupt_file_is_named_and_not_written(world, at_byte):
    world.sync()
    path = world.state_dir / "redcap.db"
    sqlite3.connect(path).execute("PRAGMA wal_checkpoint(TRUNCATE)").connection.close()
    with path.open("r+b") as file:
        file.seek(at_byte)
        file.write(b"\xff" * 30_000)
    with pytest.raises(errors.SinkFailed, match=r"malformed|not a database|corrupt"):
        world.sync(full=True)


CODE = """
import os, resource, signal, sys
from tests.sync.conftest import Alone
from worker.job import sync
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
{before}
sync(Alone({state_dir!r}))
"""


def run(world, before):
    code = CODE.format(before=before, state_dir=str(world.state_dir))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_a_full_disk_is_named_and_made_good(world):
    """RLIMIT_FSIZE is what a full disk is to a process."""
    ended = run(world, "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))")
    assert ended.returncode == 1
    assert "SinkFailed" in ended.stderr
    assert "disk" in ended.stderr
    assert TOKEN not in ended.stderr
    world.sync()
    world.assert_exact()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else, whom a folder's mode stops")
def test_a_read_only_folder_is_named(world, tmp_path):
    if not os.stat(pathlib.Path(__file__)).st_mode & stat.S_IROTH or not _reachable():
        pytest.skip("the clone is not readable for others")
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o755)
    for parent in (tmp_path, *tmp_path.parents):
        if not parent.stat().st_mode & stat.S_IXOTH:
            parent.chmod(parent.stat().st_mode | stat.S_IXOTH)
    world.state_dir.chmod(0o777)
    ended = run(world, f"os.environ['SYNC_SINK'] = 'sqlite:///{folder}/redcap.db'; os.setuid(65534)")
    assert "SinkFailed" in ended.stderr
    assert "unable to open database file" in ended.stderr


def _reachable():
    return all(parent.stat().st_mode & stat.S_IXOTH for parent in pathlib.Path(sys.executable).resolve().parents)


@pytest.fixture
def authority():
    return trustme.CA()


def over_tls(world, monkeypatch, certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    world.server.socket = context.wrap_socket(world.server.socket, server_side=True)
    monkeypatch.setenv("REDCAP_API_URL", world.server.url.replace("http://127.0.0.1", "https://localhost"))


def test_tls_by_an_authority_of_ones_own(world, monkeypatch, authority, tmp_path):
    over_tls(world, monkeypatch, authority.issue_cert("localhost"))
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("REDCAP_CA_BUNDLE", str(tmp_path / "ca.pem"))
    world.sync()
    world.assert_exact()


@pytest.mark.parametrize("fault", ["unknown authority", "another name", "expired"])
def test_a_certificate_that_is_not_good(world, monkeypatch, authority, tmp_path, fault):
    from datetime import UTC, datetime

    names = {"another name": "other.example.org"}
    bounds = {"not_after": datetime(2020, 1, 1, tzinfo=UTC)} if fault == "expired" else {}
    over_tls(world, monkeypatch, authority.issue_cert(names.get(fault, "localhost"), **bounds))
    if fault != "unknown authority":
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("REDCAP_CA_BUNDLE", str(tmp_path / "ca.pem"))
    with pytest.raises(errors.TlsFailed, match="certificate") as caught:
        world.sync()
    assert "REDCAP_CA_BUNDLE" in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_a_name_that_is_lost(world, monkeypatch):
    monkeypatch.setenv("REDCAP_API_URL", "https://redcap.invalid/api/")
    with pytest.raises(errors.ServerUnreachable, match="name service"):
        world.sync()


def test_two_instances_on_one_project(world, monkeypatch):
    """One runs, the other says so, whatever state directory each of them has."""
    monkeypatch.setenv("SYNC_SINK", f"sqlite:///{world.state_dir}/shared.db")
    other_dir = world.state_dir.parent / "other"
    other_dir.mkdir()

    class Second(Alone):
        def progress(self, done, total=None, unit=""):
            if unit == "record ids":
                return
            with pytest.raises(errors.SinkBusy, match="at work on project 4242"):
                sync(Alone(str(other_dir)))
            asked.append(done)

    asked = []
    sync(Second(str(world.state_dir)))
    assert asked
    assert sync(Alone(str(other_dir)))["mode"] == "incremental"
