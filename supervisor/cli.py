"""The command line: parse, have the settings read in a child, run."""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence

from supervisor import __version__, configure, lock, log, report, terminal
from supervisor.console import Console
from supervisor.loop import EX_TEMPFAIL, Supervisor
from supervisor.plan import Plan
from supervisor.state import StateFile
from supervisor.systemd import Notifier

EX_CONFIG = 78

# The short commands, each done in a child: what is heavy is never imported here.
TARGETS = {
    "check": "supervisor.check:show",
    "config": "supervisor.config:show",
    "explain": "supervisor.errors:explain",
    "report": "supervisor.page:show",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    _open_standard_streams()
    try:
        return _main(argv)
    finally:
        _flush_standard_streams()


def _main(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    if arguments.command == "status":
        from supervisor import status  # noqa: PLC0415 - heavier than the service may be

        return status.main(arguments)
    if arguments.command not in ("run", "once"):
        return _short(arguments)
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2))  # until `Signals`
    try:
        plan = configure.load(arguments.env_file)
    except configure.ConfigError as error:
        print(error, file=sys.stderr)
        return EX_CONFIG
    log.set_up(plan.log_format, plan.log_level)
    for remark in plan.remarks:
        log.say("remark", logging.WARNING, remark, remark=remark)
    try:
        lock_fd = lock.take(plan.state_dir)
        journal = report.Journal(plan.state_dir)
    except lock.HeldError as error:
        print(f"redcap-sync: {error} (redcap-sync explain StateDirHeld)", file=sys.stderr)
        return EX_TEMPFAIL
    except OSError as error:
        print(configure.listed([("SUPERVISOR_STATE_DIR", f"{plan.state_dir} can't be used: {error}")]), file=sys.stderr)
        return EX_CONFIG
    try:
        return _run(plan, arguments, journal, lock_fd)
    finally:
        os.close(lock_fd)


def _short(arguments: argparse.Namespace) -> int:
    """Do a short command in a child of its own."""
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr] # a mark that the locale has no byte for
    given = dict(vars(arguments))
    target = TARGETS[given.pop("command")]
    if "as_json" in given:
        given["look"] = terminal.look()
    try:
        return configure.command(target, given)
    except configure.ConfigError as error:
        print(error, file=sys.stderr)
        return EX_CONFIG
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _open_standard_streams() -> None:
    """Open what the caller closed: else the next file that is opened becomes standard error."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), fd)
            setattr(sys, name, os.fdopen(fd, "w" if fd else "r", closefd=False))


def _flush_standard_streams() -> None:
    """Write out what is left; what a full disk or a closed pipe does not take is let go.

    Else the interpreter tries it once more at its end, and makes 120 of the exit code.
    """
    for fd, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), fd)


def _run(plan: Plan, arguments: argparse.Namespace, journal: report.Journal, lock_fd: int) -> int:
    once = arguments.command == "once"
    console = Console(sys.stderr)
    log.before_each(console.clear)
    name_columns = max(len(job.name) for job in plan.jobs)

    def on_report(made: report.Report) -> None:
        console.end(made["job"])
        report.log_line(made, console.columns() if console.terminal else None, name_columns)
        try:
            journal.write(made)
        except OSError as error:
            text = f"the journal can't be written: {error}"
            log.say("journal", logging.ERROR, text, code="StateDirUnusable", error=str(error))

    try:
        supervisor = Supervisor(
            plan,
            once=once,
            full=getattr(arguments, "full", False),
            env_file=arguments.env_file,
            notifier=Notifier(os.environ),
            on_report=on_report,
            on_progress=console.progress,
            state_file=StateFile(plan.state_dir),
            holds=lambda: lock.holds(lock_fd, plan.state_dir),
        )
        if not once:
            jobs = ", ".join(f"{job.name} every {job.interval_s:g} s" for job in plan.jobs)
            log.say("started", text=f"started: {jobs}", pid=os.getpid(), version=__version__)
        code = supervisor.run()
        if not once:
            log.say("stopped", text="stopped", exit_code=code)
        return code
    finally:
        console.clear()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="redcap-sync", description="Sync REDCap into a database, each cycle in a fresh process."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("run", help="the service, in the foreground, until SIGTERM or SIGINT")
    once: argparse.ArgumentParser = commands.add_parser("once", help="one supervised cycle of every job")
    once.add_argument("--full", action="store_true", help="ask the job for a full cycle")
    check: argparse.ArgumentParser = commands.add_parser("check", help="what is wrong, and what to do about it")
    config: argparse.ArgumentParser = commands.add_parser("config", help="every setting in force, and where it is from")
    config.add_argument("--example", action="store_true", help="print an env file with a comment for each setting")
    explain: argparse.ArgumentParser = commands.add_parser("explain", help="what an error means, and what to do")
    explain.add_argument("code", nargs="?", metavar="CODE", help="as a report has it; without one, all are listed")
    status: argparse.ArgumentParser = commands.add_parser("status", help="is it alive, what runs now, the last cycles")
    status.add_argument("--watch", action="store_true", help="go on looking, until Ctrl-C")
    page: argparse.ArgumentParser = commands.add_parser("report", help="an HTML page of what the cycles came to")
    page.add_argument(
        "-o", "--output", metavar="FILE", help="where to write it; else report.html in the state directory"
    )
    status.add_argument("--alive", action="store_true", help="end with 0 also when a cycle was not ok")
    for one in (check, config, status):
        one.add_argument("--json", action="store_true", dest="as_json", help="for programs")
    # Behind the command too; where it is not given there, what was given before counts.
    for each, default in ((parser, None), *((one, argparse.SUPPRESS) for one in commands.choices.values())):
        each.add_argument("--version", action="version", version=f"redcap-sync {__version__}")
        each.add_argument(
            "--env-file", metavar="FILE", default=default, help="read settings from FILE where the environment has none"
        )
    return parser
