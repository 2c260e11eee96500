"""SUPERVISOR_METRICS_FILE: what a scraper reads is what the journal tells, whatever happens to either."""

import json
import re
import shutil
import signal
import subprocess
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from supervisor import metrics, settings
from supervisor.errors import CATALOGUE
from supervisor.report import Journal
from tests.conftest import ROOT, wait_until
from worker.metrics import METRICS

TOKEN = "0123456789ABCDEF" * 2
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(not PROMTOOL, reason="promtool is not installed")

JOBS = """
import os, shutil

def ok():
    return {"things": 2, "lost": -1, "true": True, "of": {"a": 1, "b": 1.5, "c": "x"}}

def fails():
    error = ValueError("no")
    error.summary = {"things": 1}
    raise error

def takes_the_folder_away():
    shutil.rmtree(os.path.dirname(os.environ["SUPERVISOR_METRICS_FILE"]))

METRICS = {"shop_things_total": ("Things.", "", "things"), "shop_of_total": ("Of.", "kind", "of"),
           "shop_lost_total": ("Lost.", "", "lost"), "shop_both_total": ("Both.", "which", ("things", "true"))}
ok.metrics = fails.metrics = METRICS
"""


@pytest.fixture
def file(tmp_path, cli):
    folder = tmp_path / "textfiles"
    folder.mkdir()
    (tmp_path / "shop.py").write_text(JOBS)
    cli.env |= {"SUPERVISOR_METRICS_FILE": str(folder / "redcap.prom")}
    cli.env["PYTHONPATH"] += f":{tmp_path}"
    return folder / "redcap.prom"


def values(file):
    """Return the samples, by name and labels."""
    families = text_string_to_metric_families(file.read_text())
    return {(one.name, *sorted(one.labels.items())): one.value for family in families for one in family.samples}


def of(seen, name, **labels):
    return seen[("redcap_sync_" + name, *sorted({"sync_job": "sync", **labels}.items()))]


@pytest.fixture
def of_the_sync(world, cli, file):
    cli.env |= {"REDCAP_API_URL": world.server.url, "REDCAP_API_TOKEN": TOKEN, "REDCAP_MAX_RATE": "600"}
    cli.env |= {"REDCAP_RETRIES": "0"}
    return cli


def test_they_are_the_sums_of_the_journal_and_go_on_over_restarts(world, of_the_sync, file):
    for _ in range(2):
        assert of_the_sync.run("once").code == 0
    done = of_the_sync.run("once", REDCAP_API_TOKEN="F" * 32)
    assert done.report["summary"]["answers"] == {"403": 1}
    seen = values(file)
    reports = done.journal
    assert [one["outcome"] for one in reports] == ["ok", "ok", "failed"]
    assert of(seen, "cycles_total", outcome="ok") == 2
    assert of(seen, "cycles_total", outcome="failed") == 1
    assert of(seen, "cycles_total", outcome="ceiling") == 0
    assert of(seen, "cycle_duration_seconds_count") == 3
    assert of(seen, "cycle_duration_seconds_sum") == pytest.approx(sum(one["duration_s"] for one in reports))
    for key, name in {"records": "records", "bytes_received": "received_bytes", "requests": "requests"}.items():
        assert of(seen, f"{name}_total") == sum(one["summary"][key] for one in reports) > 0
    for change in ("inserted", "updated", "unchanged", "deleted"):
        assert of(seen, "rows_total", change=change) == sum(one["summary"][change] for one in reports)
    good = sum(one["summary"]["answers"].get("200", 0) for one in reports)
    assert of(seen, "answers_total", status="200") == good > 10
    assert of(seen, "answers_total", status="403") == 1
    assert of(seen, "worker_peak_rss_bytes") == reports[-1]["worker_peak_rss_bytes"]
    assert of(seen, "rss_ceiling_bytes") == 512e6
    assert of(seen, "interval_seconds") == 1800
    assert of(seen, "last_success_timestamp_seconds") < of(seen, "last_cycle_timestamp_seconds")
    assert of(seen, "supervisor_rss_bytes") == reports[-1]["supervisor_rss_bytes"]
    assert [path.name for path in file.parent.iterdir()] == ["redcap.prom"]
    assert file.stat().st_mode & 0o777 == 0o644
    assert (of_the_sync.state_dir / "metrics.json").stat().st_mode & 0o777 == 0o600


@needs_promtool
def test_promtool_finds_nothing(of_the_sync, file):
    of_the_sync.run("once")
    done = subprocess.run([PROMTOOL, "check", "metrics"], input=file.read_bytes(), capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_nothing_is_counted_twice_or_lost_when_the_service_is_killed(cli, file):
    """A service that cycles as fast as it can, and gets SIGKILL three times."""
    for _ in range(3):
        service = cli.start("run", SUPERVISOR_JOB="shop:ok", SUPERVISOR_INTERVAL="0.1")
        had = len(cli.reports_of(1))
        cli.reports_of(had + 4)
        service.send_signal(signal.SIGKILL)
        cli.finish(service)
    done = cli.run("once", SUPERVISOR_JOB="shop:ok")
    seen = values(file)
    assert seen[("redcap_sync_cycles_total", ("outcome", "ok"), ("sync_job", "ok"))] == len(done.journal) >= 13
    assert seen[("shop_things_total", ("sync_job", "ok"))] == 2 * len(done.journal)


def test_a_service_has_them_after_each_cycle_and_reads_a_new_place_at_sighup(cli, file, tmp_path):
    env_file = tmp_path / "settings"
    del cli.env["SUPERVISOR_METRICS_FILE"]
    env_file.write_text(f"SUPERVISOR_METRICS_FILE={file}\nSUPERVISOR_JOB=shop:ok\nSUPERVISOR_INTERVAL=1h\n")
    service = cli.start("run", "--env-file", str(env_file))
    try:
        wait_until(file.exists)
        env_file.write_text(env_file.read_text().replace("redcap.prom", "other.prom"))
        service.send_signal(signal.SIGHUP)
        other = file.with_name("other.prom")
        wait_until(lambda: b"reloaded" in (service.stderr.readline().encode()))
        service.send_signal(signal.SIGUSR1)
        wait_until(other.exists)
        assert values(other)[("shop_things_total", ("sync_job", "ok"))] == 4
        assert values(file)[("shop_things_total", ("sync_job", "ok"))] == 2
    finally:
        service.send_signal(signal.SIGTERM)
        assert cli.finish(service).code == 0


def test_what_a_job_counts_also_when_it_fails(cli, file):
    assert cli.run("once", SUPERVISOR_JOB="shop:ok").code == 0
    done = cli.run("once", SUPERVISOR_JOB="shop:fails")
    assert done.report["summary"] == {"things": 1}
    seen = values(file)
    assert seen[("shop_things_total", ("sync_job", "fails"))] == 1
    assert not any(("sync_job", "ok") in sample for sample in seen)  # its gauges would alert for ever
    cli.run("once", SUPERVISOR_JOB="shop:ok")
    seen = values(file)
    assert seen[("shop_things_total", ("sync_job", "ok"))] == 4
    assert seen[("shop_of_total", ("kind", "b"), ("sync_job", "ok"))] == 3
    assert ("shop_of_total", ("kind", "c"), ("sync_job", "ok")) not in seen
    assert seen[("shop_lost_total", ("sync_job", "ok"))] == 0
    assert seen[("shop_both_total", ("sync_job", "ok"), ("which", "true"))] == 0


def test_lost_totals_are_counted_anew_and_a_new_journal_goes_on(cli, file):
    cli.env["SUPERVISOR_JOB"] = "shop:ok"
    for _ in range(2):
        cli.run("once")
    (cli.state_dir / "metrics.json").write_bytes(b'{"jobs": 7')
    cli.run("once")
    things = ("shop_things_total", ("sync_job", "ok"))
    assert values(file)[things] == 6
    (cli.state_dir / "cycles.jsonl").rename(cli.state_dir / "cycles.jsonl.1")
    cli.run("once")
    assert values(file)[things] == 8


def test_a_hostile_journal_is_counted_as_far_as_it_is_sound(cli, file):
    cli.env["SUPERVISOR_JOB"] = "shop:ok"
    cli.run("once")
    with (cli.state_dir / "cycles.jsonl").open("ab") as journal:
        journal.write(b'rubbish\n{"event":"cycle","job":"ok"}\n{"event":"cycle","jo')
    cli.run("once")
    cli.run("once")
    seen = values(file)
    assert seen[("redcap_sync_journal_unreadable_lines_total", ("sync_job", "ok"))] == 3
    assert seen[("shop_things_total", ("sync_job", "ok"))] == 6


def test_labels_of_a_job_that_never_end_are_bounded():
    totals = metrics.Totals()
    specs = metrics.checked({"x_total": ("X.", "kind", "of")})
    for number in range(300):
        line = {"event": "cycle", "job": "j", "cycle": 1, "outcome": "ok", "started_at": "2026-01-01T00:00:00Z"}
        line |= {"duration_s": 1.0, "summary": {"of": {f"kind {number}": 1}}}
        metrics._count(totals, metrics.msgspec.convert(line, metrics.Report), specs)
    figures = totals.jobs["j"].figures["x_total"]
    assert len(figures) == metrics.LABELS_MAX + 1
    assert figures["other"] == 200


def test_a_file_that_can_not_be_written_is_said_and_hurts_no_cycle(cli, file):
    done = cli.run("once", SUPERVISOR_JOB="shop:takes_the_folder_away")
    assert done.code == 0
    (said,) = [line for line in done.lines if line["event"] == "metrics"]
    assert said["level"] == "ERROR"
    assert "FileNotFoundError" in said["error"]
    assert str(file) in said["file"]


@pytest.mark.parametrize("where", ["/dev/null/x.prom", "/nowhere/at/all.prom", "/tmp"])
def test_a_place_that_can_not_be_is_refused(cli, where):
    done = cli.run("once", SUPERVISOR_JOB="jobs:ok", SUPERVISOR_METRICS_FILE=where)
    assert done.code == 78
    assert "SUPERVISOR_METRICS_FILE" in done.err


def test_without_the_library_it_is_refused_with_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(settings, "find_spec", lambda name: None)
    monkeypatch.setenv("SUPERVISOR_METRICS_FILE", str(tmp_path / "x.prom"))
    monkeypatch.setenv("SUPERVISOR_JOB", "json:loads")
    (fault,) = settings.load(None)["faults"]
    assert "redcap-sync-supervisor[metrics]" in fault["message"]


@pytest.mark.parametrize(
    "bad",
    [
        7,
        {"x": ("X.", "", "things")},
        {"x y_total": ("X.", "", "things")},
        {"x_total": "X."},
        {"x_total": ("X.", "", ("a", "b"))},
        {"x_total": ("X.", "a-b", "things")},
        {"x_total": ("X.", "le", "things")},
        {"x_total": ("X.\ud800", "", "things")},
        {"x_total": ("X.", "key", [f"k{number}" for number in range(101)])},
        {"x_total": ("X.", "key", ["k" * 101])},
        {"x_total": ("X.", "", 3)},
        {"x_total": ("", "", "things")},
    ],
)
def test_what_is_no_metric_is_refused(bad):
    with pytest.raises(ValueError, match="metric"):
        metrics.checked(bad)


def test_a_job_that_takes_one_of_our_names_is_told_so(cli, file, tmp_path):
    (tmp_path / "thief.py").write_text(
        "def job():\n    pass\njob.metrics = {'redcap_sync_cycles_total': ('C.', '', 'c')}\n"
    )
    done = cli.run("once", SUPERVISOR_JOB="thief:job")
    assert done.code == 78
    assert "redcap_sync_cycles_total" in done.err


def test_two_jobs_that_mean_different_things_by_one_name_are_told_so(cli, file, tmp_path):
    (tmp_path / "two.py").write_text(
        "def a():\n    pass\ndef b():\n    pass\na.metrics = {'n_total': ('N.', '', 'n')}\n"
        "b.metrics = {'n_total': ('N.', 'kind', 'n')}\n"
    )
    (tmp_path / "jobs.toml").write_text('[jobs.one]\njob = "two:a"\n[jobs.other]\njob = "two:b"\n')
    done = cli.run("once", SUPERVISOR_JOBS_FILE=str(tmp_path / "jobs.toml"))
    assert done.code == 78
    assert "of [jobs.other]: its metric n_total" in done.err


@pytest.fixture
def exposed(of_the_sync, file):
    of_the_sync.run("once")
    return {name for name, *_ in values(file)}


def test_alerts_and_dashboard_name_what_there_is(exposed):
    for path in ("prometheus/alerts.yml", "prometheus/alerts_test.yml", "grafana/dashboard.json"):
        text = (ROOT / "ops" / path).read_text()
        named = set(re.findall(r"\b(redcap_sync_[a-z_]+)\b", text))
        assert len(named) > 5
        assert named <= exposed, path
    codes = set(re.findall(r"redcap-sync explain (\w+)", (ROOT / "ops/prometheus/alerts.yml").read_text()))
    assert codes <= {*CATALOGUE, "CODE"}


def test_everything_exposed_is_on_the_dashboard(exposed):
    text = (ROOT / "ops/grafana/dashboard.json").read_text()
    json.loads(text)
    assert set(METRICS) <= set(re.findall(r"\b(redcap_sync_[a-z_]+)\b", text))


@needs_promtool
def test_the_alerts_fire_when_they_should():
    for command in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run(
            [PROMTOOL, *command], cwd=ROOT / "ops/prometheus", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


LINE = {
    "event": "cycle",
    "job": "j",
    "cycle": 1,
    "outcome": "ok",
    "started_at": "2026-01-01T00:00:00Z",
    "duration_s": 1,
}


def written(tmp_path):
    job = {"name": "j", "target": "a:b", "interval_s": 1, "rss_ceiling_bytes": 1}
    metrics.write(str(tmp_path / "x.prom"), str(tmp_path), [job], {})
    return values(tmp_path / "x.prom")


def test_a_copied_state_directory_is_not_counted_again(tmp_path):
    (tmp_path / "one").mkdir()
    for cycle in range(3):
        with (tmp_path / "one" / "cycles.jsonl").open("a") as journal:
            journal.write(json.dumps(LINE | {"cycle_id": f"id-{cycle}"}) + "\n")
    written(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    seen = written(tmp_path / "two")
    assert seen[("redcap_sync_cycles_total", ("outcome", "ok"), ("sync_job", "j"))] == 3


def test_another_journal_counts_from_its_start_however_long_it_is(tmp_path):
    line = json.dumps(LINE) + "\n"
    journal = tmp_path / "cycles.jsonl"
    journal.write_text(line)
    written(tmp_path)
    journal.rename(tmp_path / "cycles.jsonl.1")
    journal.write_text(json.dumps(LINE | {"cycle_id": "another"}) + "\n" + line * 2)
    seen = written(tmp_path)
    assert seen[("redcap_sync_cycles_total", ("outcome", "ok"), ("sync_job", "j"))] == 4


def test_no_cycle_is_lost_or_counted_twice_when_the_journal_is_begun_anew(tmp_path):
    kept = Journal(str(tmp_path), max_bytes=1_000)
    for cycle in range(1, 60):
        kept.write(LINE | {"cycle": cycle})
        if cycle % 7 == 0 or cycle > 50:
            seen = written(tmp_path)
            assert seen[("redcap_sync_cycles_total", ("outcome", "ok"), ("sync_job", "j"))] == cycle
    kept.close()
    (tmp_path / "metrics.json").unlink()
    left = sum((tmp_path / name).read_bytes().count(b"\n") for name in ("cycles.jsonl", "cycles.jsonl.1"))
    seen = written(tmp_path)
    assert seen[("redcap_sync_cycles_total", ("outcome", "ok"), ("sync_job", "j"))] == left


def test_a_line_that_is_still_cut_off_is_counted_once_it_is_known_to_stay_so(tmp_path):
    line = json.dumps(LINE) + "\n"
    journal = tmp_path / "cycles.jsonl"
    journal.write_text(line + line[:50])
    unreadable = ("redcap_sync_journal_unreadable_lines_total", ("sync_job", "j"))
    assert [written(tmp_path)[unreadable] for _ in range(3)] == [0, 0, 0]
    journal.write_text(line + line[:50] + "\n" + line)
    seen = written(tmp_path)
    assert seen[unreadable] == 1
    assert seen[("redcap_sync_cycles_total", ("outcome", "ok"), ("sync_job", "j"))] == 2


def test_listed_keys_are_neither_cut_nor_bounded(tmp_path):
    keys = [f"{'k' * 90}{number}" for number in range(100)]
    totals = metrics.Totals()
    report = metrics.msgspec.convert(LINE | {"summary": dict.fromkeys(keys, 2)}, metrics.Report)
    metrics._count(totals, report, metrics.checked({"x_total": ("X.", "key", keys)}))
    assert totals.jobs["j"].figures["x_total"] == dict.fromkeys(keys, 2)


def test_a_journal_that_somebody_moves_away_goes_on_in_a_new_one(tmp_path):
    """As logrotate does."""
    kept = Journal(str(tmp_path))
    kept.write(LINE)
    (tmp_path / "cycles.jsonl").rename(tmp_path / "cycles.jsonl.1")
    kept.write(LINE)
    (tmp_path / "cycles.jsonl").rename(tmp_path / "elsewhere")
    (tmp_path / "cycles.jsonl").touch()
    kept.write(LINE)
    kept.close()
    for name in ("cycles.jsonl", "cycles.jsonl.1", "elsewhere"):
        assert (tmp_path / name).read_bytes().count(b"\n") == 1


def test_a_link_that_was_laid_beside_the_file_is_not_followed(cli, file, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("x")
    victim.chmod(0o600)
    for name in ("redcap.prom.new", ".redcap.prom.new"):
        (file.parent / name).symlink_to(victim)
    assert cli.run("once", SUPERVISOR_JOB="shop:ok").code == 0
    assert (victim.read_text(), victim.stat().st_mode & 0o777) == ("x", 0o600)
    assert file.is_file()
    assert not file.is_symlink()


def test_a_stop_does_not_wait_long_for_metrics_that_hang(cli, file, tmp_path):
    """A metrics child that began after the stop was asked for; it reads a journal that is a pipe by then."""
    (tmp_path / "hanging.py").write_text(
        "import os, time\ndef job(cycle):\n    open(os.environ['SHARED'], 'w').close()\n    while not cycle.stopping:\n"
        "        time.sleep(0.01)\n"
    )
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys, time\nclass Slow:\n    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'supervisor.metrics' and os.path.exists(os.environ['SHARED']):\n            time.sleep(60)\nsys.meta_path.insert(0, Slow())\n"
    )
    working = tmp_path / "working"
    service = cli.start("run", SUPERVISOR_JOB="hanging:job", SHARED=str(working), SUPERVISOR_INTERVAL="1h", SLOW="1")
    wait_until(working.exists)
    before_s = time.monotonic()
    service.send_signal(signal.SIGTERM)
    assert cli.finish(service).code == 0
    assert time.monotonic() - before_s < 15  # its own time limit is 30 s


def test_of_hundreds_of_jobs_each_has_its_own(cli, file, tmp_path):
    """What the child must know of them is more than goes through a packet."""
    tables = "".join(f'[jobs.project-{number}]\njob = "shop:ok"\ninterval = "1h"\n' for number in range(400))
    (tmp_path / "jobs.toml").write_text(tables)
    service = cli.start("run", SUPERVISOR_JOBS_FILE=str(tmp_path / "jobs.toml"), SUPERVISOR_LOG_LEVEL="ERROR")
    try:
        wait_until(file.exists)
        seen = values(file)
        assert seen[("shop_things_total", ("sync_job", "project-0"))] == 2
        assert seen[("shop_things_total", ("sync_job", "project-399"))] == 0
    finally:
        service.send_signal(signal.SIGTERM)
        assert cli.finish(service).code == 0


def test_several_services_on_one_machine_share_no_series(cli, file, tmp_path):
    """node_exporter refuses a series that two files have."""
    series = []
    for name in ("north", "south"):
        path = file.with_name(f"{name}.prom")
        state = str(tmp_path / name)
        cli.run(
            "once",
            SUPERVISOR_JOB="shop:ok",
            SUPERVISOR_JOB_NAME=name,
            SUPERVISOR_METRICS_FILE=str(path),
            SUPERVISOR_STATE_DIR=state,
        )
        series.append(set(values(path)))
    assert series[0]
    assert not series[0] & series[1]
