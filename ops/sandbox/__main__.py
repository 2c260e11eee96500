"""`./ops/start sandbox …`: a local REDCap API server, until it is ended."""

import argparse
import re
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from ops.sandbox import faults, folder, odm, synthetic
from ops.sandbox.api import Api
from ops.sandbox.export import Rights
from ops.sandbox.project import Project
from ops.sandbox.server import Server, churn


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.list_faults:
        for name, (meaning, _) in faults.FAULTS.items():
            print(f"{name:<20} {meaning}")
        return 0
    try:
        project = load(arguments.project, arguments.seed, arguments.records, arguments.fields)
        token = arguments.token or secrets.token_hex(16).upper()
        api = Api(
            project,
            token,
            rights=rights(arguments.rights, project),
            timezone=arguments.timezone,
            skew_s=arguments.clock_skew,
        )
        server = Server(api, arguments.port, arguments.fault)
    except (odm.OdmError, folder.FolderError, faults.FaultError, OSError, ValueError) as error:
        parser.error(str(error))
    print(f"listening on {server.url}")
    print(f"token {token}", flush=True)
    stop = threading.Event()

    def end(_: int, __: FrameType | None) -> None:
        stop.set()
        # shutdown() waits for the loop, which is in this very thread: so not from here.
        threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    if arguments.churn:
        threading.Thread(target=churn, args=(api, arguments.churn, arguments.seed, stop), daemon=True).start()
    server.serve_forever(poll_interval=0.1)
    server.server_close()
    return 0


def load(path: Path | None, seed: int, records: int, fields: int) -> Project:
    """Return the project of an XML file or a folder of exports, or a synthetic one."""
    if path is None:
        return synthetic.make(seed=seed, records=records, fields=fields)
    if path.is_dir():
        return folder.load(path)
    return odm.load(path)


def rights(text: str, project: Project) -> Rights:
    """Return the rights that a word of --rights names. Raises ValueError."""
    if text.startswith("dag:"):
        group = text.removeprefix("dag:")
        if group not in project.groups:
            names = ", ".join(project.groups) or "none"
            raise ValueError(f"--rights {text}: the project has no such data access group; it has: {names}")
        return Rights(group=group)
    known = {"full": Rights(), "deidentified": Rights(deidentified=True), "no-logging": Rights(logging=False)}
    if text not in known:
        raise ValueError(f"--rights {text}: give full, deidentified, no-logging or dag:NAME")
    return known[text]


def _number(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} to {most}")
        return int(text)

    return number


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 <= rate <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no rate from 0 to 10000")
    return rate


def _token(text: str) -> str:
    if not re.fullmatch(r"[0-9A-Fa-f]{32}", text):
        raise argparse.ArgumentTypeError(f"{text!r} has not 32 hexadecimal digits")
    return text


def _zone(text: str) -> str:
    try:
        ZoneInfo(text)
    except (ZoneInfoNotFoundError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r} is no zone of the IANA database, as Europe/Berlin") from None
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ops/start sandbox", description="A local REDCap API server, to try the sync without the real one."
    )
    parser.add_argument(
        "project", nargs="?", type=Path, metavar="PROJECT", help="project XML, or a folder of API exports as JSON"
    )
    parser.add_argument(
        "--port", type=_number(0, 65_535), default=8765, help="on loopback; 0 picks one (default: 8765)"
    )
    parser.add_argument("--token", type=_token, help="32 hexadecimal digits; default: made, and printed")
    parser.add_argument("--seed", type=int, default=1, help="of the synthetic project (default: 1)")
    parser.add_argument(
        "--records", type=_number(0, 10_000_000), default=1_000, help="of the synthetic project (default: 1000)"
    )
    parser.add_argument(
        "--fields", type=_number(18, 100_000), default=60, help="of the synthetic project (default: 60)"
    )
    parser.add_argument("--churn", type=_rate, default=0.0, metavar="RATE", help="changes a second")
    parser.add_argument(
        "--fault", action="append", default=[], metavar="NAME[:EVERY]", help="misbehave; may be given again"
    )
    parser.add_argument("--list-faults", action="store_true", help="say which there are")
    parser.add_argument("--timezone", type=_zone, default="UTC", metavar="ZONE", help="of the server's wall clock")
    parser.add_argument("--clock-skew", type=float, default=0.0, metavar="S", help="seconds that it is ahead")
    parser.add_argument("--rights", default="full", help="full, deidentified, no-logging or dag:NAME")
    return parser


if __name__ == "__main__":
    sys.exit(main())
