"""`check`, `config` and `explain`: what is wrong, where it comes from, and what to do."""

import json
import os
import re
import subprocess
import sys

import pytest

import supervisor
from ops.sandbox.export import Rights
from supervisor import errors, verdict
from worker import errors as of_the_sync
from worker.errors import SyncError

TOKEN = "0123456789ABCDEF" * 2


@pytest.fixture
def ready(world, cli):
    cli.env |= {"REDCAP_API_URL": world.server.url, "REDCAP_API_TOKEN": TOKEN, "REDCAP_MAX_RATE": "600"}
    return cli


def checks(cli, code, **variables):
    done = cli.run("check", "--json", **variables)
    assert done.code == code, done.out + done.err
    assert TOKEN not in done.out + done.err
    return {one["name"]: one for one in json.loads(done.out)["checks"]}


def test_all_is_well_and_nothing_was_changed(world, ready):
    ready.state_dir.rmdir()
    seen = checks(ready, 0)
    assert {one["mark"] for one in seen.values()} == {"ok"}
    assert "60 records, 24 fields" in seen["project"]["found"]
    assert not ready.state_dir.exists()
    text = ready.run("check")
    marked = [line for line in text.out.splitlines() if line.startswith("✓")]
    assert len(marked) == len(seen)
    assert text.out.startswith("✓ settings")


@pytest.mark.parametrize(
    ("variables", "name", "code"),
    [
        ({"REDCAP_API_TOKEN": "F" * 32}, "token", "TokenRefused"),
        ({"REDCAP_API_URL": "https://nowhere.invalid/api/"}, "name", "ServerUnreachable"),
        ({"REDCAP_API_URL": "https://127.0.0.1:1/api/"}, "TLS", "ServerUnreachable"),
        ({"REDCAP_TIMEZONE": "Asia/Kolkata"}, "zone", "ZoneWrong"),
        ({"SYNC_SINK": "sqlite:////nowhere/dir/x.db"}, "sink", "SinkFailed"),
        ({"SYNC_SINK": "jsonl:/proc/x"}, "sink", "SinkFailed"),
        ({"SYNC_SINK": "sqlite:////dev/null/redcap.db"}, "sink", "SinkFailed"),
        ({"SYNC_SINK": "jsonl:/dev/null/x"}, "sink", "SinkFailed"),
        ({"SYNC_SINK": "postgresql+psycopg://u:secretword@/none?host=/nowhere"}, "sink", "SinkFailed"),
        ({"SUPERVISOR_STATE_DIR": "/dev/null/x"}, "state directory", "StateDirUnusable"),
        ({"SUPERVISOR_RSS_CEILING": "900TB"}, "memory", "CeilingAboveLimit"),
    ],
)
def test_a_fault_is_named_with_what_to_do(ready, variables, name, code):
    seen = checks(ready, 1, **variables)
    assert seen[name]["mark"] == "fault"
    assert seen[name]["remedy"]
    assert seen[name]["code"] == code
    assert "secretword" not in str(seen)


def test_a_server_that_does_not_speak_tls(world, ready):
    seen = checks(ready, 1, REDCAP_API_URL=world.server.url.replace("http:", "https:"))
    assert seen["TLS"]["code"] == "TlsFailed"
    assert seen["token"]["mark"] == "skipped"


def test_rights_that_are_missing_are_noted(world, ready):
    world.api.rights = Rights(logging=False)
    assert checks(ready, 0)["logging right"]["mark"] == "note"


def test_settings_that_are_wrong_are_lines_too(ready):
    done = ready.run("check", REDCAP_API_URL="nonsense", SUPERVISOR_GRACE="long")
    assert done.code == 78
    assert "REDCAP_API_URL: is no URL" in done.out
    assert "SUPERVISOR_GRACE" in done.out


def test_a_database_is_left_as_it_is(ready, tmp_path, postgres_url):
    path = tmp_path / "other.db"
    path.touch()
    assert checks(ready, 0, SYNC_SINK=f"sqlite:///{path}")["sink"]["mark"] == "ok"
    import sqlite3
    from contextlib import closing

    import psycopg

    with closing(sqlite3.connect(path)) as there:
        assert there.execute("SELECT name FROM sqlite_master").fetchall() == []
    assert "PostgreSQL" in checks(ready, 0, SYNC_SINK=postgres_url)["sink"]["found"]
    with psycopg.connect(postgres_url.replace("+psycopg", "")) as there:
        assert there.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)


@pytest.mark.parametrize(
    ("properties", "says"),
    [
        ("OOMPolicy=stop\nKillMode=mixed\nTimeoutStopUSec=1min 30s", "OOMPolicy=stop"),
        ("OOMPolicy=continue\nKillMode=control-group\nTimeoutStopUSec=1min 30s", "KillMode=control-group"),
        ("OOMPolicy=continue\nKillMode=mixed\nTimeoutStopUSec=4s", "TimeoutStopSec=4s"),  # the grace is 2 s here
        ("OOMPolicy=continue\nKillMode=mixed\nTimeoutStopUSec=1min 30s", ""),
    ],
)
def test_a_unit_that_would_defeat_us(ready, tmp_path, properties, says):
    (tmp_path / "systemctl").write_text(
        f'#!/bin/sh\n[ "$1" = show ] && printf "%s" "{properties}" || echo redcap-sync.service loaded active running x\n'
    )
    (tmp_path / "systemctl").chmod(0o755)
    seen = checks(ready, 1 if says else 0, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert says in seen["init system"]["found"]
    assert seen["init system"]["mark"] == ("fault" if says else "ok")
    assert "redcap-sync.service" in seen["init system"]["found"]


def test_config_says_where_each_value_comes_from(ready, tmp_path):
    (tmp_path / "env").write_text("SUPERVISOR_INTERVAL=1h30m\nREDCAP_RETRIES=2\n")
    del ready.env["REDCAP_API_TOKEN"]
    (tmp_path / "redcap_api_token").write_text(TOKEN)
    done = ready.run(
        "config",
        "--json",
        "--env-file",
        str(tmp_path / "env"),
        CREDENTIALS_DIRECTORY=str(tmp_path),
        REDCAP_RETRIES="3",
        SYNC_SINK="postgresql+psycopg://u:secretword@h/db?sslpassword=otherword",
        REDCAP_RETRYS="1",
        SUPERVISOR_GROUP_NAME="of supervisord",
    )
    assert done.code == 0
    assert not {TOKEN, "secretword", "otherword"} & set(done.out.replace('"', " ").replace(":", " ").split())
    assert "secretword" not in done.out
    assert "otherword" not in done.out
    answer = json.loads(done.out)
    seen = {one["variable"]: (one["value"], one["source"]) for one in answer["settings"]}
    assert seen["SUPERVISOR_INTERVAL"] == ("1h30m", "env file")
    assert seen["REDCAP_RETRIES"] == ("3", "environment")
    assert seen["REDCAP_API_TOKEN"] == ("***", "credential")
    assert seen["SUPERVISOR_RSS_CEILING"] == ("512MB", "default")
    assert {one["variable"]: one["nearest"] for one in answer["unknown"]} == {
        "REDCAP_RETRYS": "REDCAP_RETRIES",
        "SUPERVISOR_GROUP_NAME": None,
    }
    done = ready.run("config", REDCAP_API_TOKEN=TOKEN, REDCAP_RETRYS="1")
    assert "did you mean REDCAP_RETRIES?" in done.out


def test_a_misspelt_variable_is_in_the_services_log(cli):
    done = cli.run("once", SUPERVISOR_JOB="jobs:ok", SUPERVISOR_INTERVALL="1m", SUPERVISOR_GROUP_NAME="x")
    (remark,) = [one for one in done.lines if one["event"] == "remark"]
    assert "did you mean SUPERVISOR_INTERVAL?" in remark["remark"]


def test_a_misspelt_variable_that_leaves_one_unset_is_named_beside_the_fault(ready):
    del ready.env["REDCAP_API_TOKEN"]
    for command in ("once", "config"):
        done = ready.run(command, REDCAP_APITOKEN=TOKEN)
        assert done.code == 78
        assert "REDCAP_API_TOKEN: is not set" in done.err
        assert "did you mean REDCAP_API_TOKEN?" in done.err
        assert TOKEN not in done.err


def test_the_example_is_an_env_file_that_works(ready, tmp_path):
    text = ready.run("config", "--example").out
    (tmp_path / "env").write_text(text.replace("#SUPERVISOR_GRACE=15s", "SUPERVISOR_GRACE=7s"))
    plain = [line for line in text.splitlines() if line and not line.startswith("# ")]
    assert all(line.startswith(("#SUPERVISOR_", "#REDCAP_", "#SYNC_")) for line in plain)
    done = ready.run("config", "--json", "--env-file", str(tmp_path / "env"), SUPERVISOR_GRACE="")
    seen = {one["variable"]: one["value"] for one in json.loads(done.out)["settings"]}
    assert len(seen) == len(plain)


def test_settings_of_a_jobs_file(cli, tmp_path):
    (tmp_path / "jobs.toml").write_text(
        '[jobs.a]\njob="worker.job:sync"\ngrace="3s"\n[jobs.a.env]\nREDCAP_API_URL="https://a/api/"\n'
        f'REDCAP_API_TOKEN="{TOKEN}"\n'
    )
    done = cli.run("config", "--json", SUPERVISOR_JOBS_FILE=str(tmp_path / "jobs.toml"))
    rows = {(one["job"], one["variable"]): one for one in json.loads(done.out)["settings"]}
    assert rows["a", "SUPERVISOR_GRACE"]["value"] == "3s"
    assert rows["a", "REDCAP_API_URL"]["source"] == "jobs file"
    assert TOKEN not in done.out


def kinds(base):
    for one in base.__subclasses__():
        yield one
        yield from kinds(one)


def test_every_error_is_in_the_catalogue():
    for one in kinds(SyncError):
        if one.__module__ == of_the_sync.__name__:
            assert one.__name__ in of_the_sync.CATALOGUE
    known = errors.catalogue(["worker.job:sync"])
    assert set(verdict._TYPES.values()) <= set(known)
    assert all(meaning.endswith((".", ").")) and remedy for meaning, remedy in known.values())
    assert supervisor.CeilingExceeded.__name__ in known


@pytest.mark.parametrize(
    ("asked", "code", "says"),
    [
        ("TokenRefused", 0, "What to do: Copy the token"),
        ("tokenrefused", 0, "TokenRefused:"),
        ("75", 0, "StateDirHeld"),
        ("TokenRefusd", 2, "did you mean TokenRefused?"),
        ("", 2, "explain"),
    ],
)
def test_explain(cli, asked, code, says):
    done = cli.run("explain", asked)
    assert (done.code, says in done.out) == (code, True), done.out


def test_explain_lists_all(cli):
    done = cli.run("explain", SUPERVISOR_GRACE="nonsense")
    assert done.code == 0
    assert len(done.out.splitlines()) == len(errors.catalogue(["worker.job:sync"]))


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("REDCAP_TOKEN", "REDCAP_API_TOKEN"),
        ("REDCAP_URL", "REDCAP_API_URL"),
        ("SUPERVISOR_TIMEOUT", "SUPERVISOR_CYCLE_TIMEOUT"),
        ("SUPERVISOR_CEILING", "SUPERVISOR_RSS_CEILING"),
        ("SYNC_DELETE", "SYNC_ON_DELETE"),
        ("REDCAP_SERVER_TIMEZONE", "REDCAP_TIMEZONE"),
    ],
)
def test_a_word_that_was_left_out_or_added_is_found(ready, given, meant):
    done = ready.run("config", **{given: "x"})
    assert f"{given} is set and is no setting: did you mean {meant}?" in done.out


def test_a_fault_says_where_it_is_set(ready, tmp_path):
    (tmp_path / "settings").write_text("SUPERVISOR_MAX_WORKERS=many\n")
    done = ready.run("config", "--env-file", str(tmp_path / "settings"), SUPERVISOR_INTERVAL="often")
    assert done.code == 78
    assert re.search(r"SUPERVISOR_MAX_WORKERS: .*\(set by the env file\)", done.err)
    assert re.search(r"SUPERVISOR_INTERVAL: .*\(set by the environment\)", done.err)
    lines = json.loads(ready.run("check", "--json", SUPERVISOR_INTERVAL="often").out)["checks"]
    assert lines[0]["remedy"] == "it is set by the environment: correct it there"


def test_the_limit_of_the_check_s_own_child_is_no_alarm(ready):
    seen = checks(ready, 0, SUPERVISOR_RSS_CEILING="4GB")
    assert "limits" not in seen


@pytest.mark.parametrize("command", ["check", "config", "explain"])
def test_who_stops_reading_gets_no_traceback(ready, command):
    script = f"{sys.executable} -m supervisor {command} | head -n 1"
    done = subprocess.run(["sh", "-c", script], env=ready.env, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""
    script = f"{sys.executable} -m supervisor {command} > /dev/full"
    done = subprocess.run(["sh", "-c", script], env=ready.env, capture_output=True, text=True, check=False)
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_unit_s_limit_below_the_ceilings_is_found(ready, tmp_path):
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(
        '#!/bin/sh\n[ "$1" = list-units ] && echo redcap-sync.service loaded && exit\n'
        "printf 'OOMPolicy=continue\\nKillMode=mixed\\nTimeoutStopUSec=45s\\nMemoryMax=268435456\\n'\n"
    )
    systemctl.chmod(0o755)
    seen = checks(ready, 1, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert "MemoryMax=268 MB" in seen["init system"]["found"]
    assert "MemoryMax" not in str(
        checks(ready, 0, PATH=f"{tmp_path}:{os.environ['PATH']}", SUPERVISOR_RSS_CEILING="200MB")
    )


def test_a_token_in_a_group_is_noted(world, ready):
    world.api.rights = Rights(group="north")
    assert checks(ready, 0)["export right"]["mark"] == "note"
