"""Progress: a line on a terminal, and nothing that a worker says can break it."""

import io

import pytest

from supervisor.console import Console, progress_line


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_with_what_is_done_and_held():
    line = progress_line("sync", 96_000_000, {"done": 500, "total": 1000, "unit": "records"}, 10)
    assert line == "sync  █████░░░░░ 500 of 1,000 records  96 MB"
    assert "█" not in progress_line("sync", 0, {"done": 1, "total": 2, "unit": "x"}, 0)


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"done": "x"},
        {"done": 1, "total": "y"},
        {"done": -5, "total": 10, "unit": "\x1b[2J\n"},
        {"done": 50, "total": 10, "unit": None},
        {"done": 1, "total": 0},
        {"done": 1, "total": None, "unit": "record ids"},
    ],
)
def test_whatever_is_said_is_one_printable_line(said):
    line = progress_line("sync", 1, said)
    assert line.isprintable()


def test_it_draws_on_a_terminal_and_nowhere_else(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        console = Console(stream)
        console.progress("sync", 1, {"done": 1, "total": 2, "unit": "records"})
        console.clear()
    assert "1 of 2 records" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")
    assert max(map(len, terminal.getvalue().split("\r"))) <= 43
    assert file.getvalue() == ""
