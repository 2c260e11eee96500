"""Progress: a line on a terminal, lines in the log elsewhere, and nothing that a worker says can break either."""

import io

import pytest

from supervisor import log
from supervisor.console import PLAIN_EVERY_S, Console, Stretch, drawn, parts
from supervisor.state import progress

CEILING_BYTES = 512_000_000


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Ticking:
    """A clock that the test moves."""

    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Ticking()


@pytest.fixture
def screen(monkeypatch, clock):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    return Console(Terminal(), clock)


def said(done, total=1000, unit="records"):
    return {"done": done, "total": total, "unit": unit}


def last(console):
    return console._stream.getvalue().rpartition("\r\x1b[K")[2]


def test_a_bar_with_records_rate_memory_and_the_time_left(screen, clock):
    screen.progress("sync", 95_000_000, CEILING_BYTES, said(0))
    assert last(screen) == "sync  ░░░░░░░░░░░░░░░░░░░░  0 %  0 of 1,000 records  95 of 512 MB"
    clock.now_s += 4
    screen.progress("sync", 96_000_000, CEILING_BYTES, said(500))
    assert last(screen) == "sync  ██████████░░░░░░░░░░  50 %  500 of 1,000 records  125/s  96 of 512 MB  0:04 left"


def test_the_rate_is_of_what_is_done_now(screen, clock):
    """A list of ids, then the records; and the next cycle begins anew."""
    screen.progress("sync", 0, CEILING_BYTES, said(0, None, "record ids"))
    clock.now_s += 10
    screen.progress("sync", 0, CEILING_BYTES, said(50_000, None, "record ids"))
    assert "5,000/s" in last(screen)
    screen.progress("sync", 0, CEILING_BYTES, said(0))
    clock.now_s += 10
    screen.progress("sync", 0, CEILING_BYTES, said(30))
    assert "3.0/s" in last(screen)
    assert "5:23 left" in last(screen)
    screen.end("sync")
    assert last(screen) == ""
    clock.now_s += 1000
    screen.progress("sync", 0, CEILING_BYTES, said(30))
    assert "/s" not in last(screen)


def test_hours_are_hours():
    stretch = Stretch("records", 1_000_000, 0, 0.0, done=1)
    assert "left" not in str(parts("sync", stretch, 0.1, 1, 1))  # too early to tell
    assert parts("sync", stretch, 1.0, 1, 1)[-1][1] == "277:46:39 left"


@pytest.mark.parametrize("columns", range(1, 130))
def test_a_narrow_terminal_has_the_most_important(columns):
    shown = parts("sync", Stretch("records", 1000, 0, 0.0, done=500), 4.0, 96_000_000, CEILING_BYTES)
    line = drawn(shown, columns)
    assert len(line) < max(2, columns)
    assert line.startswith("sync"[: max(1, columns - 1)])
    if columns > 36:
        assert "500 of 1,000 records" in line
    if columns < 80:
        assert "█" not in line


def test_memory_near_the_ceiling_has_a_colour_where_colours_are_wanted(screen, clock, monkeypatch):
    for rss_bytes, color in ((100_000_000, ""), (400_000_000, "\x1b[33m"), (500_000_000, "\x1b[31m")):
        screen.progress("sync", rss_bytes, CEILING_BYTES, said(1))
        assert last(screen).startswith(f"{color}sync")
    monkeypatch.setenv("NO_COLOR", "1")
    gray = Console(Terminal(), clock)
    gray.progress("sync", 500_000_000, CEILING_BYTES, said(1))
    assert "\x1b[3" not in gray._stream.getvalue()


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"done": "x"},
        {"done": 1, "total": "y"},
        {"done": True, "total": 7},
        {"done": -5, "total": 10, "unit": "\x1b[2J\n"},
        {"done": 50, "total": 10, "unit": None},
        {"done": 50, "total": -10, "unit": "x"},
        {"done": 10**30, "total": 1, "unit": "x" * 5000},
        {"done": 10**400, "total": 10},
        {"done": 1, "total": 10**400},
        {"done": 1 << 53, "total": 1 << 53},
        {"done": 1, "total": 0},
        {"done": 1, "total": None, "unit": "record ids"},
    ],
)
def test_whatever_is_said_is_one_printable_line(screen, clock, wrong):
    for _ in range(2):
        screen.progress("sync\x07", 1, CEILING_BYTES, progress(said(0, wrong.get("total"), wrong.get("unit", ""))))
        clock.now_s += 1
        screen.progress("sync\x07", 1, CEILING_BYTES, progress(wrong))
        clock.now_s += 2
    for line in screen._stream.getvalue().split("\r\x1b[K"):
        assert line.isprintable()
        assert len(line) < 120


def test_elsewhere_a_line_in_the_log_once_a_minute(clock, capsys):
    log.set_up("json", "INFO")
    file = io.StringIO()
    console = Console(file, clock)
    for second in range(130):
        clock.now_s = 100.0 + second
        console.progress("sync", 96_000_000, CEILING_BYTES, said(second))
    console.end("sync")
    assert file.getvalue() == ""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 130 // int(PLAIN_EVERY_S)
    assert '"event":"progress"' in lines[0]
    assert '"done":60,"total":1000' in lines[0]
    log.set_up("text", "INFO")
    clock.now_s += 1
    console.progress("sync", 96_000_000, CEILING_BYTES, said(0))
    clock.now_s += 60
    console.progress("sync", 96_000_000, CEILING_BYTES, said(600))
    assert "sync  60 %  600 of 1,000 records  10/s  96 of 512 MB  0:40 left" in capsys.readouterr().err
