"""`./ops/start --demo`'s program: it verifies itself, and finds what is wrong."""

import copy
import json
import os
import subprocess

from ops import demo
from tests.conftest import ROOT


def test_the_demo_ends_0_and_says_what_was_seen(tmp_path):
    done = subprocess.run(
        ["./ops/start", "--demo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        env={"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path), "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert "equals the server's own export, cell for cell" in done.stdout
    (home,) = tmp_path.glob("redcap-sync-demo-*")
    reports = [json.loads(line) for line in (home / "cycles.jsonl").read_text().splitlines()]
    assert [report["outcome"] for report in reports] == ["ok", "ok", "ok", "ceiling", "ok"]
    assert str(home / "redcap.db") in done.stdout
    assert str(home / "report.html") in done.stdout
    assert "5 cycles" in (home / "report.html").read_text()
    assert "ceiling" in done.stderr


def test_it_would_see_a_row_too_many_one_too_few_and_one_that_differs():
    report = {"outcome": "ok", "supervisor_rss_bytes": 20_000_000, "worker_peak_rss_bytes": 1}
    reports = [dict(report) for _ in range(5)]
    reports[3]["outcome"] = "ceiling"
    truth = {("1", "e", "", 0): {"a": "1"}, ("2", "e", "", 0): {"a": "2"}}

    def faults(stored, code=0, reports=reports):
        return [text for text, good in demo._checks(reports, stored, truth, code) if not good]

    assert faults(truth) == []
    assert len(faults({("1", "e", "", 0): {"a": "1"}})) == 1
    assert len(faults(truth | {("3", "e", "", 0): {}})) == 1
    assert len(faults(truth | {("2", "e", "", 0): {"a": "other"}})) == 1
    assert len(faults(truth, code=1)) == 1
    grown = copy.deepcopy(reports)
    grown[-1]["supervisor_rss_bytes"] += 2_000_000
    assert len(faults(truth, reports=grown)) == 1
