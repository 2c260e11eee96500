"""`redcap-sync report`, in a real browser: drawn, quiet, and deaf to whatever stands in the journal."""

import base64
import json
import os
import re
import stat
from datetime import datetime

import pytest

from ops.bench.report import GOAL_BYTES, YEAR_CYCLES, write_journal
from supervisor import page as page_maker
from tests import browser
from tests.conftest import ROOT

PAGE = ROOT / "supervisor" / "page"
CHARTS = ("memory", "durations", "figures", "outcomes")
TOKEN = "0123456789ABCDEF" * 2
needs_browser = pytest.mark.skipif(browser.PROGRAM is None, reason="no Chromium is installed")


@pytest.fixture
def ready(cli):
    """The command line with all that a report's settings need, and an empty state directory."""
    cli.env |= {"REDCAP_API_URL": "https://redcap.example.org/api/", "REDCAP_API_TOKEN": TOKEN}
    cli.state_dir.mkdir()
    return cli


@pytest.fixture
def chromium(tmp_path):
    with browser.page(tmp_path) as opened:
        yield opened


def report_of(ready, **variables):
    done = ready.run("report", **variables)
    assert done.code == 0, done.err
    return ready.state_dir / "report.html"


def drawn(chromium, path):
    chromium.open(path)
    chromium.wait("document.documentElement.dataset.drawn === 'yes'")


def line(**changes):
    one = {"event": "cycle", "job": "sync", "cycle": 1, "outcome": "ok", "started_at": "2026-11-25T06:00:00Z"}
    one |= {"duration_s": 1.5, "worker_peak_rss_bytes": 70_000_000, "rss_ceiling_bytes": 512_000_000}
    return json.dumps(one | {"supervisor_rss_bytes": 20_000_000} | changes) + "\n"


@needs_browser
def test_a_year_is_drawn_and_can_be_looked_into(ready, chromium):
    write_journal(ready.state_dir / "cycles.jsonl", YEAR_CYCLES)
    journal = [json.loads(one) for one in (ready.state_dir / "cycles.jsonl").read_text().splitlines()]
    path = report_of(ready)
    assert path.stat().st_size < GOAL_BYTES
    drawn(chromium, path)

    # All of it is there, and what it shows is what the journal has.
    for chart in CHARTS:
        assert chromium.run(f"document.querySelectorAll('#{chart} .main-svg').length") > 0
        assert chromium.run(f"document.querySelectorAll('#{chart} .trace, #{chart} .scatterlayer path').length") > 0
    x, peak = chromium.run("[Array.from(memory.data[0].x), Array.from(memory.data[0].y)]")
    assert len(x) == YEAR_CYCLES
    assert x[-1] == datetime.fromisoformat(journal[-1]["started_at"]).timestamp() * 1000
    assert peak == pytest.approx([one["worker_peak_rss_bytes"] / 1e6 for one in journal])
    assert chromium.run("memory.data.map(one => one.name)") == ["worker's peak", "ceiling", "supervisor", "not ok"]
    assert chromium.run("memory.data[3].x.length") == sum(one["outcome"] != "ok" for one in journal)
    fetch = chromium.run("Array.from(durations.data.find(one => one.name === 'fetch').y)")
    assert fetch == pytest.approx([one["summary"]["fetch_s"] for one in journal])
    updated = chromium.run("Array.from(figures.data.find(one => one.name === 'updated').y)")
    assert updated == [one["summary"]["updated"] for one in journal]
    assert chromium.run("outcomes.data.flatMap(one => Array.from(one.y)).reduce((a, b) => a + b)") == YEAR_CYCLES

    # The last week first, all on demand; a zoom goes for all charts; by keyboard too.
    days = "((r) => (new Date(r[1]) - new Date(r[0])) / 86400e3)(CHART._fullLayout.xaxis.range)"
    assert chromium.run(days.replace("CHART", "figures")) == pytest.approx(7.14, abs=0.1)
    chromium.click("[...document.querySelectorAll('#ranges button')].find(one => one.textContent === 'All')")
    chromium.wait(f"{days.replace('CHART', 'outcomes')} > 360")
    chromium.run("Plotly.relayout(memory, {'xaxis.range[0]': '2026-11-01', 'xaxis.range[1]': '2026-11-05'}) && 1")
    for chart in CHARTS:
        chromium.wait(f"Math.abs({days.replace('CHART', chart)} - 4) < 0.01")
    chromium.run("durations.focus()")
    chromium.press("+")
    for chart in CHARTS:
        chromium.wait(f"Math.abs({days.replace('CHART', chart)} - 2.4) < 0.01")
    chromium.press("0")
    chromium.wait(f"{days.replace('CHART', 'memory')} > 360")

    # Behind each chart a table, made when it is opened.
    for chart in CHARTS:
        details = f"document.querySelector('details[data-chart={chart}]')"
        assert chromium.run(f"{details}.querySelectorAll('td').length") == 0
        chromium.click(f"{details}.querySelector('summary')")
        rows = 366 if chart == "outcomes" else YEAR_CYCLES
        chromium.wait(f"{details}.querySelectorAll('tbody tr').length === 200")
        caption = chromium.run(f"{details}.querySelector('caption').textContent")
        assert int(re.search(r"of ([\d,]+)", caption)[1].replace(",", "")) == pytest.approx(rows, abs=1)
    memory = "document.querySelector('details[data-chart=memory]')"
    cells = chromium.run(f"[...{memory}.querySelector('tbody tr').cells].map(one => one.textContent)")
    last = journal[-1]
    assert cells[1:3] == [str(YEAR_CYCLES), last["outcome"]]
    assert float(cells[4]) == pytest.approx(last["worker_peak_rss_bytes"], rel=1e-6)
    chromium.click(f"[...{memory}.querySelectorAll('button')].find(one => one.textContent === 'Older')")
    chromium.wait(f"{memory}.querySelector('tbody td').textContent === '{YEAR_CYCLES - 200}'")

    # Nothing can send it anywhere, nothing was asked for, nothing went wrong.
    offered = chromium.run("[...document.querySelectorAll('.modebar-btn')].map(one => one.dataset.title)")
    assert len(offered) == 6 * len(CHARTS)
    assert not any(re.search("cloud|share|edit|send", one, re.IGNORECASE) for one in offered)
    assert chromium.requests() == [path.as_uri()]
    assert chromium.complaints() == []


@needs_browser
def test_on_a_phone_in_the_dark_and_on_paper(ready, chromium):
    write_journal(ready.state_dir / "cycles.jsonl", 300)
    path = report_of(ready)
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    chromium.call("Emulation.setEmulatedMedia", features=dark)
    chromium.call("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=2, mobile=True)
    drawn(chromium, path)
    assert chromium.run("document.documentElement.scrollWidth") <= 360
    assert chromium.run("getComputedStyle(document.body).backgroundColor") == "rgb(13, 17, 23)"
    assert chromium.run("memory._fullLayout.paper_bgcolor") == "#0d1117"
    chromium.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
    chromium.wait("memory._fullLayout.paper_bgcolor === '#ffffff'")
    chromium.call("Emulation.setEmulatedMedia", features=dark)
    chromium.call("Emulation.clearDeviceMetricsOverride")
    assert base64.b64decode(chromium.call("Page.printToPDF")["data"]).startswith(b"%PDF")
    chromium.call("Emulation.setEmulatedMedia", media="print", features=dark)
    assert chromium.run("getComputedStyle(document.getElementById('tools')).display") == "none"
    assert chromium.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    chromium.call("Emulation.setDeviceMetricsOverride", width=1400, height=900, deviceScaleFactor=1, mobile=False)
    chromium.run("dispatchEvent(new Event('beforeprint'))")
    chromium.wait("memory._fullLayout.paper_bgcolor === '#ffffff'")
    for chart in CHARTS:  # A4 has some 700 pixels between its margins, however wide the window is
        drawing = f"{chart}.querySelector('.main-svg').getBoundingClientRect().width"
        assert chromium.run(drawing) == 680
    chromium.run("dispatchEvent(new Event('afterprint'))")
    chromium.wait("memory._fullLayout.paper_bgcolor === '#0d1117'")
    chromium.call("Emulation.setEmulatedMedia", media="screen", features=dark)
    chromium.run("dispatchEvent(new Event('afterprint'))")
    chromium.wait("memory.querySelector('.main-svg').getBoundingClientRect().width > 1000")
    assert chromium.complaints() == []


@needs_browser
def test_what_can_be_known_without_seeing_or_a_mouse(ready, chromium):
    write_journal(ready.state_dir / "cycles.jsonl", 300)
    drawn(chromium, report_of(ready))
    nodes = chromium.call("Accessibility.getFullAXTree")["nodes"]
    named = {(one["role"]["value"], one.get("name", {}).get("value", "")) for one in nodes if not one["ignored"]}
    for title in ("Memory", "Durations", "Records and other figures", "Outcomes"):
        assert ("heading", title) in named
        assert any(role == "group" and name.startswith(f"{title}:") for role, name in named), title
    assert ("button", "7 days") in named
    roles = ("button", "combobox", "DisclosureTriangle", "link", "region")
    assert not [role for role, name in named if role in roles and not name]
    assert chromium.run("document.documentElement.lang") == "en"
    for chart in CHARTS:  # the tab key comes by
        assert chromium.run(f"{chart}.tabIndex") == 0


HOSTILE = "<img src=x onerror=pwned=1></script><script>pwned=2</script>{{7*7}}%{x}\"'><a href='javascript:pwned=3'>x</a>\u202e"


@needs_browser
def test_what_a_server_or_a_job_says_stays_text(ready, chromium, tmp_path):
    error = {"type": HOSTILE, "message": HOSTILE, "traceback": HOSTILE + "\n" + HOSTILE}
    summary = {HOSTILE: 7, HOSTILE + "_s": 0.5, "title": HOSTILE}
    lines = [
        line(job=job, outcome=outcome, error=error, summary=summary, cycle=cycle)
        for cycle, (job, outcome) in enumerate([(HOSTILE, "failed"), ("other", "ok"), (HOSTILE, "ok")])
    ]
    (ready.state_dir / "cycles.jsonl").write_text("".join(lines))
    drawn(chromium, report_of(ready, SYNC_HANDLER="a:b", REDCAP_FILTER_LOGIC=HOSTILE))
    assert chromium.run("typeof pwned") == "undefined"
    assert chromium.run("document.querySelectorAll('img, a').length") == 0
    assert chromium.run("figures.data[0].name").startswith("&lt;img")
    assert "<img src=x" in chromium.run("figures.querySelector('.legendtext').textContent")
    chromium.run("document.getElementById('job').value = 1; document.getElementById('job').onchange()")
    assert chromium.run("memory.data[0].x.length") == 1
    chromium.run("document.getElementById('job').value = 0; document.getElementById('job').onchange()")
    assert chromium.run("memory.data[0].x.length") == 2
    for chart in CHARTS:
        chromium.click(f"document.querySelector('details[data-chart={chart}] summary')")
    chromium.wait("document.querySelectorAll('details.data td').length > 20")
    assert chromium.run("document.querySelectorAll('img, a').length") == 0
    assert chromium.run("typeof pwned") == "undefined"
    assert "7*7" in chromium.run("document.body.textContent")
    assert chromium.complaints() == []
    # And were something to get through, the page's policy lets no other script run.
    chromium.run(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'pwned = 4'})) || 1"
    )
    chromium.run("document.body.insertAdjacentHTML('beforeend', '<img src=data:, onerror=pwned=5>') || 1")
    chromium.run("fetch('https://example.org/').then(() => { pwned = 6 }, () => 1)")
    assert chromium.run("typeof pwned") == "undefined"
    assert "Content Security Policy" in str(chromium.complaints())


@needs_browser
def test_a_browser_that_is_too_old_is_told_so(ready, chromium):
    (ready.state_dir / "cycles.jsonl").write_text(line())
    chromium.call("Page.addScriptToEvaluateOnNewDocument", source="delete window.DecompressionStream")
    chromium.open(report_of(ready))
    chromium.wait("!document.getElementById('trouble').hidden")
    assert "newer" in chromium.run("document.getElementById('trouble').textContent")


def test_what_is_in_it_without_any_script(ready):
    error = {"type": "TokenRefused", "message": "the server refuses the token", "traceback": ""}
    lines = [line(), line(cycle=2, outcome="failed", error=error), "rubbish\n", line(cycle=3)[:40]]
    (ready.state_dir / "cycles.jsonl").write_text("".join(lines))
    text = report_of(ready, SYNC_SINK="postgresql+psycopg://me:secretword@db/x").read_text()
    assert "2 lines of the journal can&#39;t be read (1 no JSON, 1 cut off)" in text
    assert "Copy the token anew" in text
    assert "me:***@db" in text
    assert TOKEN not in text
    assert "secretword" not in text
    assert "50 %" in text


def test_a_journal_without_a_cycle(ready):
    assert "has no cycle yet" in report_of(ready).read_text()


def test_settings_that_are_wrong_by_now_are_no_hindrance(ready):
    (ready.state_dir / "cycles.jsonl").write_text(line())
    text = report_of(ready, REDCAP_API_URL="nonsense", SUPERVISOR_GRACE="long").read_text()
    assert "SUPERVISOR_GRACE" in text
    assert "REDCAP_API_URL" in text
    assert "1 cycle," in text


def test_where_it_is_written(ready, tmp_path):
    (ready.state_dir / "cycles.jsonl").write_text(line())
    done = ready.run("report", "-o", str(tmp_path / "here.html"))
    assert done.code == 0
    assert done.out.startswith(f"{tmp_path}/here.html: 1 cycle,")
    assert (tmp_path / "here.html").stat().st_mode & 0o777 == 0o600
    for wrong in ("/dev/null/x.html", str(tmp_path)):
        done = ready.run("report", "-o", wrong)
        assert done.code == 1
        assert wrong in done.out


def test_a_state_directory_that_is_not_there(cli):
    done = cli.run("report", SUPERVISOR_JOB="jobs:ok")
    assert done.code == 1
    assert str(cli.state_dir) in done.out


def test_without_the_libraries_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(page_maker, "find_spec", lambda name: None)
    assert page_maker.show(None, None) == {"exit": 1}
    assert "redcap-sync-supervisor[report]" in capsys.readouterr().out


def test_a_journal_of_many_years_is_cut(monkeypatch, ready):
    monkeypatch.setattr(page_maker, "CYCLES_MAX", 5)
    write_journal(ready.state_dir / "cycles.jsonl", 12)
    history = page_maker.History(str(ready.state_dir))
    content, cycles = page_maker.make(history, page_maker.settings.Reading(), str(ready.state_dir))
    assert cycles == 5
    assert b"7 older cycles" in content


def luminance(color):
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrasts_are_as_wcag_wants_them():
    """4.5 for text, 3 for what is drawn (WCAG 2.2, 1.4.3 and 1.4.11)."""
    themes = re.findall(r":root \{ (--paper: #\w{6}; [^}]+) \}", (PAGE / "page.css").read_text())
    assert len(themes) == 2
    script = (PAGE / "page.js").read_text()
    light, dark = re.search(r"colors: light \? \[([^]]+)\] : \[([^]]+)\]", script).groups()
    for theme, drawn_colors in zip(themes, (light, dark), strict=True):
        colors = dict(re.findall(r"--(\w+): (#\w{6})", theme))
        for name in ("text", "dim", "bad", "good", "accent"):
            assert contrast(colors[name], colors["paper"]) >= 4.5, name
        assert contrast(colors["text"], colors["note"]) >= 4.5
        for color in re.findall(r"#\w{6}", drawn_colors):
            assert contrast(color, colors["paper"]) >= 3, color


def test_a_device_a_pipe_and_the_service_s_own_files_are_not_replaced(ready, tmp_path):
    (ready.state_dir / "cycles.jsonl").write_text(line())
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", ready.state_dir / "cycles.jsonl", ready.state_dir / "state.json"):
        done = ready.run("report", "-o", str(path))
        assert done.code == 1, path
        assert str(path) in done.out
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert (ready.state_dir / "cycles.jsonl").read_text() == line()
    (tmp_path / "link.html").symlink_to(tmp_path / "real.html")
    assert ready.run("report", "-o", str(tmp_path / "link.html")).code == 0
    assert (tmp_path / "link.html").is_symlink()
    assert (tmp_path / "real.html").stat().st_size > 1_000_000
    assert ready.run("report", "-o", "-").out.startswith("<!doctype html>")


def test_a_journal_that_is_a_pipe_is_no_reason_to_wait(ready):
    os.mkfifo(ready.state_dir / "cycles.jsonl")
    for command in ("report", "status"):
        done = ready.run(command)
        assert done.code in (1, 78)
        assert "no regular file" in done.out + done.err
