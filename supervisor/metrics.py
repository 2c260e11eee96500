"""SUPERVISOR_METRICS_FILE: what the journal tells, in Prometheus' text format. Runs in a child.

The totals are kept in the state directory with the place in the journal up to which they count, so that each cycle
is counted once and a restart begins nothing anew. Names and units follow prometheus.io/docs/practices/naming.
"""

import bisect
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import accumulate
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from supervisor import __version__, files
from supervisor.history import LINE_MAX_BYTES, OUTCOMES, History, Report, Size, at_once
from supervisor.report import BEFORE, JOURNAL

TOTALS = "metrics.json"
BUCKETS_S = (0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 3600.0)
LABELS_MAX = 100  # of one metric of a job's; each is a time series that somebody stores
LABEL_MAX = 100  # characters
OTHER = "other"
NAME = re.compile(r"[A-Za-z_]\w*_total", re.ASCII)
LABEL = re.compile(r"(?!sync_job$|le$|quantile$|__)[A-Za-z_]\w*", re.ASCII)

# name: help, label, source in the summary (see the README, "A job may bring along").
Spec = tuple[str, str, str | list[str] | tuple[str, ...]]


class JobTotals(msgspec.Struct):
    """What one job's cycles came to."""

    outcomes: dict[str, int] = {}
    durations: list[int] = []  # cycles by bucket, the last one for what is longer
    duration_sum_s: float = 0.0
    missed_ticks: int = 0
    peak_rss_bytes: int = 0  # of the last cycle
    last_at_s: float | None = None  # the end of the last one, seconds since 1970
    last_ok_at_s: float | None = None
    figures: dict[str, dict[str, float]] = {}  # by metric and label


class Totals(msgspec.Struct):
    """`metrics.json`."""

    journal: int = 0  # by its first line
    next_byte: Size = 0
    unreadable: Size = 0
    supervisor_rss_bytes: Size = 0
    jobs: dict[str, JobTotals] = {}


def write(path: str, state_dir: str, jobs: list[dict[str, Any]], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Count what the journal has got since, and replace the file; `metrics` are those of each target. Raises OSError."""
    specs = {job["name"]: metrics.get(job["target"], {}) for job in jobs}
    totals = _read(state_dir)
    now, before = (_first_line(os.path.join(state_dir, name)) for name in (JOURNAL, JOURNAL + BEFORE))
    if now != totals.journal:
        if totals.journal in (0, before):  # a new journal was begun: first what the one before got until then
            _count_all(totals, specs, History(state_dir, name=JOURNAL + BEFORE, from_byte=totals.next_byte))
        totals.journal, totals.next_byte = now, 0
    _count_all(totals, specs, History(state_dir, name=JOURNAL, from_byte=totals.next_byte))
    registry = CollectorRegistry()
    registry.register(_Families(totals, jobs, specs))
    # The exposition first: what can't be shown must not be counted, or it would be missing for good.
    files.replace(path, generate_latest(registry), 0o644)  # for an exporter of another user; it has no record's value
    files.replace(os.path.join(state_dir, TOTALS), msgspec.json.encode(totals), 0o600)
    return {}


def checked(metrics: object) -> dict[str, Spec]:
    """Return a job's `metrics` as they must be. Raises ValueError."""
    if not isinstance(metrics, Mapping):
        raise ValueError(  # noqa: TRY004 - a setting's fault like the others
            "a job's `metrics` are a dict from a name to (help, label, source)"
        )
    ours = _our_names()
    for name, spec in metrics.items():
        if str(name).removesuffix("_total") in ours:
            raise ValueError(f"a job's metric {name!r} has the name of one of the supervisor's")
        try:
            about, label, source = spec
            keys = source if isinstance(source, list | tuple) and label else [source]
            sound = bool(about) and all(isinstance(one, str) for one in (name, about, label, *keys))
            sound = sound and len(keys) <= LABELS_MAX and all(len(key) <= LABEL_MAX for key in keys)
            sound = sound and all(one.isprintable() for one in (about, *keys))
            sound = sound and bool(NAME.fullmatch(name)) and (not label or bool(LABEL.fullmatch(label)))
        except (TypeError, ValueError):
            sound = False
        if not sound:
            raise ValueError(
                f"a job's metric {name!r} must be named as Prometheus names counters (…_total), and be "
                "(help, label, source): a key of the summary, or for a label several"
            )
    return dict(metrics)


@cache
def _our_names() -> frozenset[str]:
    return frozenset(family.name for family in _Families(Totals(), [], {}).collect())


def _read(state_dir: str) -> Totals:
    """Return the totals until now; those of a journal that is not there any more go on, from the new one's start."""
    try:
        with open(os.path.join(state_dir, TOTALS), "rb", opener=at_once) as file:
            totals = msgspec.json.decode(file.read() or b"", type=Totals)
    except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        totals = Totals()  # the journal has it all
    return totals


def _first_line(path: str) -> int:
    """Return by what a journal is known, also when its directory was copied: its first line has a UUID. 0 for none."""
    try:
        with open(path, "rb", opener=at_once) as file:
            return zlib.crc32(file.readline(LINE_MAX_BYTES))
    except FileNotFoundError:
        return 0


def _count_all(totals: Totals, specs: Mapping[str, Mapping[str, Spec]], journal: History) -> None:
    for report in journal:
        _count(totals, report, specs.get(report.job, {}))
    totals.unreadable += journal.unreadable.total() - journal.unreadable["cut off"]  # that one is met again
    totals.next_byte = journal.next_byte


def _count(totals: Totals, report: Report, specs: Mapping[str, Spec]) -> None:
    job = totals.jobs.setdefault(report.job, JobTotals())
    job.outcomes[report.outcome] = job.outcomes.get(report.outcome, 0) + 1
    if len(job.durations) != len(BUCKETS_S) + 1:
        job.durations = [0] * (len(BUCKETS_S) + 1)
    job.durations[bisect.bisect_left(BUCKETS_S, report.duration_s)] += 1
    job.duration_sum_s += report.duration_s
    job.missed_ticks += report.missed_ticks
    job.peak_rss_bytes = report.worker_peak_rss_bytes
    job.last_at_s = report.started_at.timestamp() + report.duration_s
    if report.outcome == "ok":
        job.last_ok_at_s = job.last_at_s
    totals.supervisor_rss_bytes = report.supervisor_rss_bytes
    for name, (_, _, source) in specs.items():
        figures = job.figures.setdefault(name, {})
        for label, value in _sourced(report.summary, source):
            # The keys that a job lists are few; those of a dict in its summary may be any.
            known = label in figures or not isinstance(source, str) or len(figures) < LABELS_MAX
            kept = label if known else OTHER
            figures[kept] = figures.get(kept, 0) + value


def _sourced(summary: Mapping[str, Any], source: str | list[str] | tuple[str, ...]) -> Iterator[tuple[str, float]]:
    """Yield the labels and numbers that a summary has for one metric; what is no number of a counter is passed over."""
    found = summary.get(source) if isinstance(source, str) else {key: summary.get(key) for key in source}
    for label, value in (found if isinstance(found, Mapping) else {"": found}).items():
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e300:
            yield str(label)[:LABEL_MAX], value


class _Families(Collector):
    """The totals as prometheus_client's families; of jobs that are not in the plan any more nothing is told."""

    def __init__(self, totals: Totals, jobs: list[dict[str, Any]], specs: Mapping[str, Mapping[str, Spec]]) -> None:
        self._totals = totals
        self._jobs = jobs
        self._specs = specs

    def collect(self) -> Iterator[Metric]:
        """Yield every family."""
        ours = "redcap_sync_"
        # Of the supervisor itself, and yet with a label: several of them on one machine are read from one folder.
        build = GaugeMetricFamily(f"{ours}build_info", "The version that wrote this.", labels=["sync_job", "version"])
        about = "What the supervisor held in memory after the last cycle."
        parent = GaugeMetricFamily(f"{ours}supervisor_rss_bytes", about, labels=["sync_job"])
        about = "Lines of the journal that could not be read."
        lines = CounterMetricFamily(f"{ours}journal_unreadable_lines", about, labels=["sync_job"])
        cycles = CounterMetricFamily(f"{ours}cycles", "Cycles by how they ended.", labels=["sync_job", "outcome"])
        durations = HistogramMetricFamily(f"{ours}cycle_duration_seconds", "How long cycles took.", labels=["sync_job"])
        missed = CounterMetricFamily(
            f"{ours}missed_ticks", "Ticks that passed while nothing could start.", labels=["sync_job"]
        )
        gauges = {
            "worker_peak_rss_bytes": "The most that the last cycle's process tree held in memory.",
            "rss_ceiling_bytes": "What a worker's process tree may hold before it is ended.",
            "interval_seconds": "The time from tick to tick.",
            "last_cycle_timestamp_seconds": "When the last cycle ended, in seconds since 1970.",
            "last_success_timestamp_seconds": "When the last cycle that was ok ended, in seconds since 1970.",
        }
        families = {name: GaugeMetricFamily(ours + name, about, labels=["sync_job"]) for name, about in gauges.items()}
        for plan in self._jobs:
            name = plan["name"]
            job = self._totals.jobs.get(name, JobTotals())
            for outcome in OUTCOMES:  # also those that did not happen: a rate needs a zero before the first one
                cycles.add_metric([name, outcome], job.outcomes.get(outcome, 0))
            counts = accumulate(job.durations or [0] * (len(BUCKETS_S) + 1))
            bounds = [*map(str, BUCKETS_S), "+Inf"]
            durations.add_metric([name], list(zip(bounds, counts, strict=True)), sum_value=job.duration_sum_s)
            missed.add_metric([name], job.missed_ticks)
            build.add_metric([name, __version__], 1)
            parent.add_metric([name], self._totals.supervisor_rss_bytes)
            lines.add_metric([name], self._totals.unreadable)
            values = (
                job.peak_rss_bytes,
                plan["rss_ceiling_bytes"],
                plan["interval_s"],
                job.last_at_s,
                job.last_ok_at_s,
            )
            for family, value in zip(families.values(), values, strict=True):
                if value is not None:
                    family.add_metric([name], value)
        yield from (build, cycles, durations, missed, *families.values(), parent, lines, *self._of_jobs())

    def _of_jobs(self) -> Iterator[Metric]:
        families: dict[str, CounterMetricFamily] = {}
        for job, specs in self._specs.items():
            of_job = self._totals.jobs.get(job, JobTotals()).figures
            for name, (about, label, source) in specs.items():
                both = ["sync_job", *([label] if label else [])]
                family = families.setdefault(name, CounterMetricFamily(name, about, labels=both))
                zeros = dict.fromkeys(source, 0.0) if label and not isinstance(source, str) else {}
                zeros |= {} if label else {"": 0.0}
                for one, value in (zeros | of_job.get(name, {})).items():
                    if label or not one:
                        family.add_metric([job, *([one] if label else [])], value)
        yield from families.values()
