"""The settings: read in a child, every fault in one list, by variable name."""

import signal

import pytest

from supervisor.settings import duration_s
from tests.conftest import wait_until


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("1h30m", 5400), ("45", 45), ("1.5h", 5400), ("2d", 172_800), ("0", 0)],
)
def test_durations(text, seconds):
    assert duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "-5s", "5 parsecs", "1h30", "s90", "1e3", "inf", "nan", None])
def test_what_is_no_duration(text):
    if text == "1h30":
        assert duration_s(text) == 3630  # as the README says: a bare number is seconds
        return
    with pytest.raises(ValueError, match="duration"):
        duration_s(text)


def faults_of(done):
    assert done.code == 78, done.err
    assert "Traceback" not in done.err
    return {line.strip().partition(":")[0] for line in done.err.splitlines()[1:]}


def test_every_fault_is_in_one_list(cli):
    done = cli.run(
        "once",
        SUPERVISOR_INTERVAL="soon",
        SUPERVISOR_RSS_CEILING="much",
        SUPERVISOR_CYCLES_PER_WORKER="-1",
        SUPERVISOR_START_METHOD="threads",
        SUPERVISOR_LOG_LEVEL="loud",
        SUPERVISOR_GRACE="x",
        REDCAP_API_URL="ftp://host/api/",
        REDCAP_API_TOKEN="short",
        REDCAP_MAX_RATE="601",
        REDCAP_TIMEZONE="Mars/Olympus",
        REDCAP_TIMEOUT="10s",
        SYNC_SINK="mongodb://host/db",
        SYNC_ON_DELETE="forget",
    )
    assert faults_of(done) == {
        "SUPERVISOR_INTERVAL",
        "SUPERVISOR_RSS_CEILING",
        "SUPERVISOR_CYCLES_PER_WORKER",
        "SUPERVISOR_START_METHOD",
        "SUPERVISOR_LOG_LEVEL",
        "SUPERVISOR_GRACE",
        "REDCAP_API_URL",
        "REDCAP_API_TOKEN",
        "REDCAP_MAX_RATE",
        "REDCAP_TIMEZONE",
        "REDCAP_TIMEOUT",
        "SYNC_SINK",
        "SYNC_ON_DELETE",
    }


def test_what_is_missing_is_named(cli):
    done = cli.run("run")
    assert faults_of(done) == {"REDCAP_API_URL", "REDCAP_API_TOKEN"}


@pytest.mark.parametrize(
    "url",
    [
        "http://redcap.example.org/api/",
        "https://user:secret@redcap.example.org/api/",
        "https://redcap.example.org/",
        "https://redcap.example.org/api/?token=1",
        "redcap.example.org/api/",
        "https:///api/",
        "https://[::1/api/",
        "https://redcap.example.org:port/api/",
    ],
)
def test_a_bad_url_is_refused(cli, url):
    done = cli.run("once", REDCAP_API_URL=url, REDCAP_API_TOKEN="0" * 32)
    assert faults_of(done) == {"REDCAP_API_URL"}
    assert "secret" not in done.err


def test_a_bad_token_is_never_shown(cli, tmp_path):
    done = cli.run("once", REDCAP_API_URL="https://h/api/", REDCAP_API_TOKEN="MY-SECRET-TOKEN")
    assert faults_of(done) == {"REDCAP_API_TOKEN"}
    assert "MY-SECRET" not in done.err
    (tmp_path / "token").write_text("MY-SECRET-TOKEN\n")
    done = cli.run("once", REDCAP_API_URL="https://h/api/", REDCAP_API_TOKEN_FILE=str(tmp_path / "token"))
    assert faults_of(done) == {"REDCAP_API_TOKEN"}
    assert "MY-SECRET" not in done.err


def test_a_token_file_that_is_not_there(cli):
    done = cli.run("once", REDCAP_API_URL="https://h/", REDCAP_API_TOKEN_FILE="/nowhere/token")
    assert faults_of(done) == {"REDCAP_API_URL", "REDCAP_API_TOKEN_FILE"}


def test_the_soft_limit_above_the_hard_one(cli):
    done = cli.run("once", SUPERVISOR_JOB="jobs:ok", SUPERVISOR_RSS_CEILING="200MB", SUPERVISOR_RECYCLE_RSS="300MB")
    assert faults_of(done) == {"SUPERVISOR_RECYCLE_RSS"}


@pytest.mark.parametrize("job", ["nonsense", "module:", ":callable", "a b:c", "os.path", "x:y z"])
def test_a_job_that_is_no_module_and_callable(cli, job):
    assert faults_of(cli.run("once", SUPERVISOR_JOB=job)) == {"SUPERVISOR_JOB"}


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("512MB", 512_000_000), ("1.5GiB", 1_610_612_736), ("300M", 300_000_000), ("100000000", 100_000_000)],
)
def test_sizes(cli, text, size_bytes):
    done = cli.run("once", SUPERVISOR_JOB="jobs:ok", SUPERVISOR_RSS_CEILING=text)
    assert done.report["rss_ceiling_bytes"] == size_bytes


def test_an_env_file_sets_what_the_environment_does_not(cli, tmp_path):
    path = tmp_path / "settings.env"
    path.write_text(
        "SUPERVISOR_JOB=jobs:environment\nSUPERVISOR_RSS_CEILING=100MB\nMY_VALUE='of the file'\nMY_OTHER=file\n"
    )
    done = cli.run("once", "--env-file", str(path), MY_OTHER="environment")
    assert done.report["rss_ceiling_bytes"] == 100_000_000
    assert done.report["summary"] == {"MY_VALUE": "of the file", "MY_OTHER": "environment"}
    done = cli.run("--env-file", str(path), "once", SUPERVISOR_RSS_CEILING="120MB")
    assert done.report["rss_ceiling_bytes"] == 120_000_000


def test_an_env_file_that_is_not_there(cli):
    assert faults_of(cli.run("once", "--env-file", "/nowhere.env", SUPERVISOR_JOB="jobs:ok")) == {"--env-file"}


def test_a_file_of_several_jobs(cli, tmp_path):
    path = tmp_path / "jobs.toml"
    path.write_text(
        """
        [jobs.first]
        job = "jobs:environment"
        rss_ceiling = "100MB"
        env = {MY_NAME = "one"}
        [jobs.second]
        job = "jobs:environment"
        [jobs.second.env]
        MY_NAME = "two"
        """
    )
    done = cli.run("once", SUPERVISOR_JOBS_FILE=str(path), SUPERVISOR_MAX_WORKERS="2")
    assert done.code == 0
    seen = {report["job"]: report for report in done.reports}
    assert seen["first"]["summary"] == {"MY_NAME": "one"}
    assert seen["second"]["summary"] == {"MY_NAME": "two"}
    assert seen["first"]["rss_ceiling_bytes"] == 100_000_000
    assert seen["second"]["rss_ceiling_bytes"] == 512_000_000


def test_faults_of_a_jobs_file_name_the_job(cli, tmp_path):
    path = tmp_path / "jobs.toml"
    path.write_text(
        '[jobs.one]\ninterval = "soon"\n[jobs.two]\ncolour = "red"\n[jobs.three]\njob = "worker.job:sync"\n'
    )
    done = cli.run("once", SUPERVISOR_JOBS_FILE=str(path))
    assert done.code == 78
    assert "SUPERVISOR_INTERVAL of [jobs.one]" in done.err
    assert "colour" in done.err
    assert "REDCAP_API_URL of [jobs.three]" in done.err


def test_every_fault_is_listed_at_once(cli, tmp_path):
    path = tmp_path / "jobs.toml"
    path.write_text('[jobs.one]\ngrace = "soon"\ncolour = "red"\nenv = {A = 1}\n[jobs.two]\nrecycle_rss = "2GB"\n')
    wrong = {"SUPERVISOR_INTERVAL": "x", "SUPERVISOR_RECYCLE_RSS": "600MB", "SYNC_ON_DELETE": "burn"}
    wrong |= {"REDCAP_API_URL": "https://h/api/", "REDCAP_API_TOKEN": "0" * 32, "REDCAP_CA_BUNDLE": "/nowhere"}
    done = cli.run("once", SUPERVISOR_JOBS_FILE=str(path), **wrong)
    lines = [line.strip().partition(": ")[0] for line in done.err.splitlines()[1:]]
    of_jobs = {f"{name} of [jobs.{job}]" for name in ("SYNC_ON_DELETE", "REDCAP_CA_BUNDLE") for job in ("one", "two")}
    told = ["SUPERVISOR_INTERVAL", "SUPERVISOR_RECYCLE_RSS", "SUPERVISOR_JOBS_FILE", "SUPERVISOR_JOBS_FILE"]
    told += ["SUPERVISOR_GRACE of [jobs.one]", "SUPERVISOR_RECYCLE_RSS of [jobs.two]", *of_jobs]
    assert sorted(lines) == sorted(told)
    done = cli.run("once", SUPERVISOR_JOBS_FILE="/nowhere.toml", SUPERVISOR_INTERVAL="x")
    assert faults_of(done) == {"SUPERVISOR_JOBS_FILE", "SUPERVISOR_INTERVAL"}


@pytest.mark.parametrize("command", ["report", "explain", "status", "check", "config"])
def test_an_env_file_that_is_not_there_is_told_by_every_command(cli, command):
    done = cli.run(command, "--env-file", "/nowhere")
    assert done.code == 78
    assert "--env-file" in done.err + done.out


@pytest.mark.parametrize("command", ["report", "status", "config"])
def test_a_state_directory_as_a_shell_writes_it(cli, command):
    done = cli.run(command, SUPERVISOR_STATE_DIR="~/x", SUPERVISOR_JOB="jobs:ok")
    assert done.code == 78
    assert "SUPERVISOR_STATE_DIR" in done.err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SUPERVISOR_INTERVAL", "9999999999d"),
        ("SUPERVISOR_INTERVAL", "9" * 400 + "d"),
        ("SUPERVISOR_RSS_CEILING", "10EB"),
        ("REDCAP_TIMEZONE", "Europe"),
        ("REDCAP_OVERLAP", "1000000d"),
        ("REDCAP_RECONCILE_EVERY", "99999999999d"),
        ("REDCAP_TIMEOUT", "0,0"),
        ("REDCAP_BATCH_SIZE", "-1"),
        ("SYNC_SINK", "sqlite://"),
        ("SYNC_SINK", "postgresql+psycopg://h:port/db"),
        ("SYNC_SINK", "sqlite:///x.db?check_same_thread=zz"),
        ("REDCAP_API_URL", "https://exa mple.org/api/"),
        ("REDCAP_API_URL", "https://é.example.org/api/"),
    ],
)
def test_a_value_that_would_break_later_is_refused_now(cli, name, value):
    variables = {"REDCAP_API_URL": "https://h/api/", "REDCAP_API_TOKEN": "0" * 32} | {name: value}
    done = cli.run("once", **variables)
    assert faults_of(done) == {name}
    assert done.err.count(name + ":") == 1


def test_an_empty_variable_is_one_that_is_not_set(cli):
    names = ("SUPERVISOR_JOBS_FILE", "SUPERVISOR_INTERVAL", "SUPERVISOR_LOG_FORMAT", "SUPERVISOR_METRICS_FILE")
    assert cli.run("once", SUPERVISOR_JOB="jobs:ok", **dict.fromkeys(names, "")).code == 0


def test_an_env_file_that_is_no_file(cli, tmp_path):
    assert faults_of(cli.run("once", "--env-file", str(tmp_path), SUPERVISOR_JOB="jobs:ok")) == {"--env-file"}


def test_names_that_no_variable_can_have(cli, tmp_path):
    path = tmp_path / "jobs.toml"
    path.write_text('[jobs.one]\njob = "jobs:ok"\n[jobs.one.env]\n"A=B" = "x"\n')
    assert faults_of(cli.run("once", SUPERVISOR_JOBS_FILE=str(path))) == {"SUPERVISOR_JOBS_FILE"}


@pytest.mark.parametrize("job", ["asks_wrongly", "asks_and_fails"])
def test_a_job_whose_own_check_is_broken_still_has_its_cycle(cli, job):
    assert cli.run("once", SUPERVISOR_JOB=f"jobs:{job}").code == 0


def test_a_thousand_jobs_are_no_more_than_a_file(cli, tmp_path):
    """Their plan has several hundred kilobytes, more than goes through a packet."""
    jobs = tmp_path / "jobs.toml"
    tables = "".join(f'[jobs.project-{number}]\njob = "jobs:ok"\ninterval = "1h"\n' for number in range(1_000))
    jobs.write_text(tables)
    service = cli.start("run", SUPERVISOR_JOBS_FILE=str(jobs), SUPERVISOR_MAX_WORKERS="4")
    try:
        cli.reports_of(1)
        jobs.write_text(tables.replace("1h", "2h") + '[jobs.last]\njob = "jobs:ok"\n')
        service.send_signal(signal.SIGHUP)
        wait_until(lambda: '"reloaded","jobs":1001' in service.stderr.readline())
    finally:
        service.send_signal(signal.SIGTERM)
        cli.finish(service)


@pytest.mark.parametrize("name", ["", "x" * 201, "a\\tb"])
def test_a_name_that_no_report_could_carry_is_refused(cli, tmp_path, name):
    jobs = tmp_path / "jobs.toml"
    jobs.write_text(f'[jobs."{name}"]\njob = "jobs:ok"\n')
    done = cli.run("once", SUPERVISOR_JOBS_FILE=str(jobs))
    assert done.code == 78
    assert "printable name" in done.err


@pytest.mark.parametrize("name", ["x" * 201, "a\x1b[2Jb", "a\nb"])
def test_the_same_goes_for_the_only_job(cli, name):
    done = cli.run("once", SUPERVISOR_JOB="jobs:ok", SUPERVISOR_JOB_NAME=name)
    assert done.code == 78
    assert "SUPERVISOR_JOB_NAME" in done.err
    assert cli.run("once", SUPERVISOR_JOB="jobs:ok", SUPERVISOR_JOB_NAME="north").report["job"] == "north"
