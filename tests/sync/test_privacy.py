"""Canaries in everything that is a patient's or a secret, and a look everywhere for them."""

import signal

import psutil
import pytest

from tests.conftest import wait_until

TOKEN = "CA9A51" + "0123456789ABCDEF0123456789"
CANARY = "Canary-Müller-Zq4711Wx"  # its parts are in no number and in no UUID by chance
SECRETS = [part.encode() for part in (*CANARY.split("-"), TOKEN, TOKEN.lower(), "M\\u00fcller")]
KEPT = ("redcap.db", "redcap.db-wal", "redcap.db-shm")  # the data's own place

HANDLER = """
def handle(record_id, rows, connection):
    if record_id == "Canary-Müller-Zq4711Wx":
        raise RuntimeError(f"{record_id} {rows}")
    return rows

def dies(record_id, rows, connection):
    import ctypes
    ctypes.string_at(0)

def tells(record_id, rows, connection):
    import ctypes, os, resource
    dumpable = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)  # PR_GET_DUMPABLE
    with open(os.environ["TOLD"], "w") as file:
        file.write(f"{dumpable} {resource.getrlimit(resource.RLIMIT_CORE)}")
    return rows

def wants_memory(record_id, rows, connection):
    held = [str(rows) * 50_000]
    while True:
        held.append(held[0] * 2)
"""


@pytest.fixture
def env(world, cli, tmp_path):
    """A service's environment whose token is in a file, and a project full of canaries."""
    world.api.token = TOKEN
    changes = world.api.changes
    for number in range(1, 61):
        changes.put([{"record_id": str(number), "redcap_event_name": "enrolment_arm_1", "first_name": CANARY}])
    changes.rename("7", CANARY)
    changes.put([{"record_id": "8", "redcap_event_name": "visit_1_arm_1", "visit_note": '},{"' + CANARY}])
    world.api.project.title = CANARY
    (tmp_path / "token").write_text(TOKEN + "\n")
    (tmp_path / "handlers.py").write_text(HANDLER)
    cli.env |= {"REDCAP_API_URL": world.server.url, "REDCAP_API_TOKEN_FILE": str(tmp_path / "token")}
    cli.env |= {"REDCAP_MAX_RATE": "600", "REDCAP_RETRIES": "0", "SUPERVISOR_LOG_LEVEL": "DEBUG"}
    cli.env["PYTHONPATH"] += f":{tmp_path}"
    cli.env |= {"SUPERVISOR_METRICS_FILE": str(tmp_path / "redcap.prom")}
    world.state_dir.rmdir()
    world.state_dir = cli.state_dir
    return cli


def assert_clean(text, where):
    found = [secret for secret in SECRETS if secret in text]
    assert not found, (where, found)


def assert_nothing_leaked(done):
    assert_clean(done.out.encode() + done.err.encode(), "output")
    assert_clean((done.state_dir.parent / "redcap.prom").read_bytes(), "metrics")
    for path in done.state_dir.rglob("*"):
        if path.is_file() and path.name not in KEPT:
            assert_clean(path.read_bytes(), path.name)


FAULTS = ["", "truncated:3", "duplicate-keys:4", "control-characters:4", "lost-rows:2", "rubbish:3", "wrong-charset:5"]


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_in_logs_reports_and_state_whatever_the_server_does(world, env, fault):
    if fault:
        world.server.faults.add(fault)
    done = env.run("once", "--full")
    assert len(done.reports) == 1
    assert_nothing_leaked(done)


@pytest.mark.parametrize(
    ("handler", "outcome"), [("handle", "failed"), ("dies", "crashed"), ("wants_memory", "ceiling")]
)
def test_nothing_in_what_a_handler_leaves_when_it_fails(world, env, handler, outcome):
    """An error that quotes values, a crash, a ceiling with last words."""
    done = env.run("once", SYNC_HANDLER=f"handlers:{handler}", SUPERVISOR_RSS_CEILING="150MB")
    assert done.report["outcome"] == outcome
    assert done.report["error"]["traceback"]
    assert_nothing_leaked(done)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_worker_dumps_no_core_and_nobody_may_read_its_memory(world, env, method, tmp_path):
    """What its memory holds is data; a piped core_pattern does not ask RLIMIT_CORE, so the kernel is told twice."""
    told = tmp_path / "told"
    done = env.run("once", SYNC_HANDLER="handlers:tells", TOLD=str(told), SUPERVISOR_START_METHOD=method)
    assert done.code == 0
    assert told.read_text() == "0 (0, 0)"


@pytest.mark.parametrize("sink", ["postgresql+psycopg://canary:CanaryPassword@/none?host=/nowhere", "jsonl:/proc/no"])
def test_nothing_of_a_sink_that_fails(world, env, sink):
    done = env.run("once", SYNC_SINK=sink)
    assert done.report["outcome"] == "failed"
    assert "CanaryPassword" not in done.out + done.err + str(done.journal)
    assert_nothing_leaked(done)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("by", ["file", "env-file", "credential"])
def test_no_token_in_the_environment_or_the_command_line_of_any_process(world, env, method, by, tmp_path):
    arguments, variables = [], {"SUPERVISOR_START_METHOD": method, "SUPERVISOR_GRACE": "0s"}
    if by == "env-file":
        (tmp_path / "settings").write_text(f"REDCAP_API_TOKEN={TOKEN}\n")
        del env.env["REDCAP_API_TOKEN_FILE"]
        arguments = ["--env-file", str(tmp_path / "settings")]
    elif by == "credential":
        del env.env["REDCAP_API_TOKEN_FILE"]
        (tmp_path / "redcap_api_token").write_text(TOKEN)
        variables["CREDENTIALS_DIRECTORY"] = str(tmp_path)
    world.server.faults.add("drip:7")  # the seventh answer takes for ever
    service = env.start("run", *arguments, **variables)
    try:
        wait_until(lambda: len(world.api.requests) >= 7)
        me = psutil.Process(service.pid)
        for one in (me, *me.children(recursive=True)):
            for name in ("environ", "cmdline"):
                with open(f"/proc/{one.pid}/{name}", "rb") as file:
                    assert_clean(file.read(), f"{name} of {one.pid}")
    finally:
        service.send_signal(signal.SIGTERM)
        done = env.finish(service)
    assert_nothing_leaked(done)


def test_nothing_in_the_report_page(world, env):
    world.server.faults.add("duplicate-keys:4")
    env.run("once", "--full")
    env.run("once", SYNC_HANDLER="handlers:handle")
    assert env.run("report").code == 0
    assert (env.state_dir / "report.html").stat().st_size > 1_000_000
    assert_nothing_leaked(env.run("status"))
