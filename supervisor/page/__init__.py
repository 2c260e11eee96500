"""`redcap-sync report`: the journal as one HTML page that asks for nothing. Runs in a child.

`page.html` is the template, `page.js` draws the charts with the plotly.min.js of the plotly package. What comes from
the journal is not trusted: the template escapes it, the charts get numbers, and a Content-Security-Policy lets no
script run but these two.
"""

import base64
import hashlib
import importlib.metadata
import json
import os
import zlib
from array import array
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from supervisor import __version__, config, errors, files, settings, state, terminal
from supervisor.clock import rfc3339
from supervisor.history import OUTCOMES, History, Report
from supervisor.plan import default_state_dir
from supervisor.report import BEFORE, JOURNAL

NAME = "report.html"
CYCLES_MAX = 40_000  # two years of one job; with more the page gets larger than 6 MB
FAILURES_SHOWN = 20
PHASES_MAX, FIGURES_MAX = 8, 12  # series of one chart; those that most cycles have
NOTHING = float("nan")
OURS = {JOURNAL, JOURNAL + BEFORE, state.NAME, "metrics.json", "lock", "requests", "redcap.db"}


def show(env_file: str | None, output: str | None) -> dict[str, Any]:
    """Do `redcap-sync report`: write the page, say where, and return the exit code."""
    if missing := [name for name in ("jinja2", "plotly") if not find_spec(name)]:
        return _failed(f"it needs {' and '.join(missing)}: pip install 'redcap-sync-supervisor[report]'")
    seen = settings.read(env_file)
    if lost := [one for one in seen.faults if one["variable"] in ("--env-file", "SUPERVISOR_STATE_DIR")]:
        return {"faults": lost}  # it would tell of another service
    # The journal is worth a look also when a setting is wrong by now.
    given = seen.settings.state_dir if seen.settings else os.environ.get("SUPERVISOR_STATE_DIR")
    state_dir = str(given or default_state_dir())
    path = output or os.path.join(state_dir, NAME)
    if os.path.dirname(os.path.realpath(path)) == os.path.realpath(state_dir) and os.path.basename(path) in OURS:
        return _failed(f"{path} is one of the service's own files: write it elsewhere with -o FILE")
    history = History(state_dir)
    try:
        content, cycles = make(history, seen, state_dir)
        if path == "-":
            print(content.decode(), end="")
            return {"exit": 0}
        files.replace(path, content, 0o600)
    except OSError as error:
        return _failed(f"{error.filename or path}: {error.strerror}: write it elsewhere with -o FILE")
    of = f"{cycles:,} cycle{'' if cycles == 1 else 's'}"
    print(terminal.plain(f"{path}: {of}, {len(content) / 1e6:.1f} MB"))
    return {"exit": 0}


def _failed(why: str) -> dict[str, Any]:
    print(terminal.plain(f"redcap-sync: no report was written: {why}"))
    return {"exit": 1}


def make(history: History, seen: settings.Reading, state_dir: str) -> tuple[bytes, int]:
    """Return the page, and of how many cycles it tells. Raises OSError when the journal can't be read."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # noqa: PLC0415 - of the extra `report`

    kept = deque(history, CYCLES_MAX)
    jobs: dict[str, list[Report]] = {}
    for one in kept:
        jobs.setdefault(one.job, []).append(one)
    scripts = [_plotly(), Path(__file__).with_name("page.js").read_text(encoding="utf-8")]
    hashes = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in scripts]
    header, blob = _packed(jobs)
    known = errors.catalogue(job.settings.job for job in seen.jobs)
    here = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
    text = here.get_template("page.html").render(
        policy=" ".join(f"'sha256-{one}'" for one in hashes),
        plotly=scripts[0],
        script=scripts[1],
        style=Path(__file__).with_name("page.css").read_text(encoding="utf-8"),
        header=json.dumps(header).replace("<", "\\u003c"),
        blob=base64.b64encode(zlib.compress(blob, 6)).decode(),
        version=__version__,
        plotly_version=importlib.metadata.version("plotly"),
        made_at=_moment(datetime.now(UTC)),
        state_dir=terminal.plain(state_dir),
        unreadable=history.said(),
        left_out=history.read - len(kept),
        count=len(kept),
        first=_moment(min(one.started_at for one in kept)) if kept else "",
        last=_moment(max(one.started_at for one in kept)) if kept else "",
        jobs=[_of_job(name, cycles) for name, cycles in jobs.items()],
        failures=[_failure(one, known) for one in reversed(kept) if one.error][:FAILURES_SHOWN],
        failed=sum(one.error is not None for one in kept),
        settings=[] if seen.faults or seen.settings is None else _plain(config.rows(seen)),
        faults=_plain(seen.faults),
    )
    return text.encode(), len(kept)


def _plotly() -> str:
    spec = find_spec("plotly")
    assert spec is not None  # else `show` had said so
    assert spec.submodule_search_locations
    # To import it takes 0.1 s and 27 MB, for one file of its.
    return Path(spec.submodule_search_locations[0], "package_data", "plotly.min.js").read_text(encoding="utf-8")


def _of_job(name: str, cycles: Sequence[Report]) -> dict[str, Any]:
    good = [one for one in cycles if one.outcome == "ok"]
    last = cycles[-1]
    return {
        "name": terminal.plain(name),
        "cycles": f"{len(cycles):,}",
        "good": f"{100 * len(good) / len(cycles):.4g} %",
        "last": last.outcome,
        "last_good": _moment(good[-1].started_at + timedelta(seconds=good[-1].duration_s)) if good else "never",
        "peak": terminal.mb(max(one.worker_peak_rss_bytes for one in cycles), 1),
        "ceiling": terminal.mb(last.rss_ceiling_bytes, 1),
        "parent": f"{terminal.mb(cycles[0].supervisor_rss_bytes, 1)} → {terminal.mb(last.supervisor_rss_bytes, 1)}",
        "duration": f"{sum(one.duration_s for one in cycles) / len(cycles):.2f} s",
    }


def _failure(one: Report, known: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    assert one.error is not None
    meaning, remedy = known.get(one.error.type, ("", ""))
    return {
        "at": _moment(one.started_at),
        "job": terminal.plain(one.job),
        "cycle": one.cycle,
        "outcome": one.outcome,
        "code": terminal.plain(one.error.type),
        "message": terminal.plain(one.error.message),
        "traceback": "\n".join(map(terminal.plain, one.error.traceback.splitlines())),
        "meaning": meaning,
        "remedy": remedy,
    }


def _plain(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    return [{key: "" if value is None else terminal.plain(value) for key, value in row.items()} for row in rows]


def _packed(jobs: Mapping[str, Sequence[Report]]) -> tuple[dict[str, Any], bytes]:
    """Return the figures of all cycles as columns: what they are, and their bytes one behind the other."""
    blob = bytearray()
    codes: dict[str, int] = {"": 0}
    header = {"outcomes": OUTCOMES, "codes": codes, "jobs": []}
    for name, cycles in jobs.items():
        columns = {
            "at_ms": array("d", (round(one.started_at.timestamp()) * 1000 for one in cycles)),
            "outcome": array("f", (OUTCOMES.index(one.outcome) for one in cycles)),
            "code": array("f", (codes.setdefault(one.error.type if one.error else "", len(codes)) for one in cycles)),
            "cycle": array("d", (one.cycle for one in cycles)),
            "duration_s": array("f", (one.duration_s for one in cycles)),
            "peak": array("d", (one.worker_peak_rss_bytes for one in cycles)),
            "ceiling": array("d", (one.rss_ceiling_bytes for one in cycles)),
            "parent": array("d", (one.supervisor_rss_bytes for one in cycles)),
        }
        phases, figures = _keys(cycles)
        for key in (*phases, *figures):
            kind = "f" if key in phases else "d"  # what is counted, to the last digit
            columns[f"summary.{key}"] = array(kind, (_number(one.summary.get(key)) for one in cycles))
        places = {}
        for column, values in columns.items():
            places[column] = [values.typecode, len(blob)]
            blob += values.tobytes()
        of_job = {"name": name, "count": len(cycles), "columns": places, "phases": phases, "figures": figures}
        header["jobs"].append(of_job)  # type: ignore[attr-defined]
    return {**header, "codes": list(codes)}, bytes(blob)


def _keys(cycles: Sequence[Report]) -> tuple[list[str], list[str]]:
    """Return the keys of the summaries that are times (`…_s`), and those that are other numbers; a job may have any."""
    found: Counter[str] = Counter()
    for one in cycles:
        found.update(key for key, value in one.summary.items() if _number(value) is not NOTHING)
    often = [key for key, _ in found.most_common() if not key.endswith("_id")]
    phases = [key for key in often if key.endswith("_s")]
    return phases[:PHASES_MAX], [key for key in often if key not in phases][:FIGURES_MAX]


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e30 < value < 1e30:
        return NOTHING
    return value


def _moment(moment: datetime) -> str:
    return rfc3339(moment)[:16].replace("T", " ") + " UTC"
