"""What a person sees: the bar of `once`, the lines of `run`, the live view of `status`."""

import re
import signal
import sys

import pytest

from tests import terminals

BAR = re.compile(r"counts_up  █+░*  \d+ %  [\d,]+ of 1,000 records  .*of 512 MB")


@pytest.fixture
def on_terminal(cli):
    env = {name: value for name, value in cli.env.items() if name not in ("TERM", "NO_COLOR", "COLUMNS", "LINES")}

    def start(*arguments, columns=120, lines=30, **variables):
        command = [sys.executable, "-m", "supervisor", *arguments]
        return terminals.running(command, env | variables, columns, lines)

    return start


def test_once_has_a_bar_that_gives_way_to_the_report(on_terminal):
    with on_terminal("once", SUPERVISOR_JOB="jobs:counts_up") as screen:
        screen.wait(lambda lines: any(BAR.match(line) for line in lines))
        screen.wait(lambda lines: any(re.search(r"\d/s .* \d:\d\d left", line) for line in lines))
        assert screen.finish() == 0
        (line,) = screen.lines
        assert re.fullmatch(r"\d\d:\d\d:\d\d  counts_up #1    ok .* things 1,000.*", line)


@pytest.mark.parametrize("columns", [20, 40, 70])
def test_a_narrow_terminal_is_not_scrolled_by_the_bar(on_terminal, columns):
    with on_terminal("once", columns=columns, SUPERVISOR_JOB="jobs:counts_up") as screen:
        assert screen.finish() == 0
        drawn = [state for state in screen.seen if state and "#1" not in " ".join(state)]
        assert len(drawn) > 5
        assert {len(state) for state in drawn} == {1}
        assert all(len(state[0]) < columns for state in drawn)


def test_no_color_and_dumb_terminals(on_terminal):
    small = {"SUPERVISOR_JOB": "jobs:counts_up", "SUPERVISOR_RSS_CEILING": "32MB"}
    with on_terminal("once", **small) as screen:
        screen.finish()
        assert b"\x1b[33m" in screen.raw or b"\x1b[31m" in screen.raw
    with on_terminal("once", NO_COLOR="1", **small) as screen:
        screen.finish()
        assert b"\xe2\x96\x91" in screen.raw
        assert b"\x1b[3" not in screen.raw
    with on_terminal("once", TERM="dumb", **small) as screen:
        assert screen.finish() == 0
        assert b"\x1b" not in screen.raw


def test_run_has_one_aligned_line_a_cycle(on_terminal, tmp_path):
    jobs = tmp_path / "jobs.toml"
    jobs.write_text(
        '[jobs.a]\njob = "jobs:ok"\n[jobs.longer-name]\njob = "jobs:counts_a_lot"\n[jobs.bad]\njob = "jobs:fails"\n'
    )
    with on_terminal("run", SUPERVISOR_JOBS_FILE=str(jobs), SUPERVISOR_INTERVAL="0.5", lines=100) as screen:
        screen.wait(lambda lines: sum(" #2 " in line for line in lines) >= 3)
        screen.program.send_signal(signal.SIGTERM)
        assert screen.finish() == 0
        cycles = [line for line in screen.lines if re.search(r" #\d+ ", line)]
        assert {line.find("peak") for line in cycles} == {cycles[0].find("peak")}
        assert {line.find(" of ") for line in cycles} == {cycles[0].find(" of ")}
        assert any("| thing_1 " in line for line in cycles)
        # No line was broken by the terminal: each begins with the time, or is an error's own.
        after = [line for line in screen.lines if not re.match(r"\d\d:\d\d:\d\d  ", line)]
        assert after
        assert all(line.startswith("          ") for line in after), after


def test_status_watch_is_a_live_view(cli, on_terminal):
    service = cli.start("run", SUPERVISOR_JOB="jobs:counts_up", SUPERVISOR_INTERVAL="0.1")
    try:
        with on_terminal("status", "--watch") as screen:
            screen.wait(lambda lines: any("redcap-sync is healthy" in line for line in lines))
            screen.wait(
                lambda lines: any(re.search(r"cycle \d+ for \d s: \d+ of 1,000 records +░", line) for line in lines)
            )
            screen.wait(lambda lines: any(re.search(r"counts_up +ok +\d", line) for line in lines))
            assert "green" in screen.colors
            screen.program.send_signal(signal.SIGINT)
            assert screen.finish() == 0
            assert any("redcap-sync is healthy" in line for line in screen.lines)
        with on_terminal("status", "--watch", columns=50, NO_COLOR="1") as screen:
            screen.wait(lambda lines: any("redcap-sync is healthy" in line for line in lines))
            service.send_signal(signal.SIGTERM)
            screen.wait(lambda lines: any("redcap-sync is not running" in line for line in lines))
            assert screen.colors == {"default"}
            screen.program.send_signal(signal.SIGINT)
            assert screen.finish() == 3
    finally:
        if service.poll() is None:
            service.send_signal(signal.SIGTERM)
        cli.finish(service)


def test_a_job_s_own_lines_stand_on_lines_of_their_own(on_terminal):
    with on_terminal("once", SUPERVISOR_JOB="jobs:counts_and_prints") as screen:
        assert screen.finish() == 0
        printed = [line for line in screen.lines if "hello" in line]
        assert len(printed) == 5
        assert all(re.fullmatch(r"\d\d:\d\d:\d\d  counts_and_prints #1 \| hello \d", line) for line in printed)


def test_what_a_job_says_is_not_obeyed_by_the_terminal(on_terminal):
    with on_terminal("once", SUPERVISOR_JOB="jobs:says_escapes") as screen:
        assert screen.finish() == 1
        assert b"\x1b]0;owned" not in screen.raw
        assert b"\x1b[2J" not in screen.raw
        assert not any(line.startswith("12:00:00") for line in screen.lines)
    with on_terminal("once", SUPERVISOR_JOB="jobs:says_escapes_well") as screen:
        assert screen.finish() == 0
        assert b"\x1b[2J" not in screen.raw
