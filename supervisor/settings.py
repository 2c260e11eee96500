"""The settings, read and checked. Imported in a child only: pydantic-settings costs 25 MB.

`load` is what the child runs; its dict comes back to the supervisor as the plan, or as the
list of all that is wrong.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ByteSize,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from supervisor import cgroup, envfile, target
from supervisor.plan import default_state_dir

Fault = dict[str, str]  # variable, message

_UNIT_S = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")

# A fork of the supervisor holds some 20 MB before the job has done anything.
CEILING_MIN_BYTES = 32_000_000
CEILING_MAX_BYTES = 1 << 50
OTHERS_BYTES = 64_000_000  # of a group's limit: the supervisor, what reads the settings, what the kernel keeps
DURATION_MAX_S = 10 * 366 * 86_400
NAME_MAX = 200
NEAR_ENOUGH = 0.75  # of two names, as difflib measures it


def duration_s(text: object) -> float:
    """Return the seconds of `90s`, `30m`, `1h30m`, `2d` or a number. Raises ValueError."""
    written = str(text).lower().replace(" ", "")
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd]?)", written)
    if not parts or "".join(number + unit for number, unit in parts) != written:
        raise ValueError("is no duration: write 90s, 30m, 1h30m, or a number of seconds")
    seconds = sum(float(number) * _UNIT_S[unit] for number, unit in parts)
    if seconds > DURATION_MAX_S:
        raise ValueError("is longer than ten years")
    return seconds


def target_text(text: object) -> str:
    """Return `module:callable` as it is. Raises ValueError when it is not of that form."""
    if not isinstance(text, str) or not _TARGET.fullmatch(text.strip()):
        raise ValueError("is not of the form module:callable, as worker.job:sync")
    return text.strip()


Seconds = Annotated[float, BeforeValidator(duration_s)]
Target = Annotated[str, BeforeValidator(target_text)]


def _setting(default: Any, meaning: str, *, shown: str | None = None, **bounds: Any) -> Any:
    """Return a field; `shown` is its default in words where a value does not say it."""
    return Field(default, description=meaning, json_schema_extra={"shown": shown}, **bounds)


class Settings(BaseSettings):
    """SUPERVISOR_*, in the order of the README's table."""

    model_config = SettingsConfigDict(
        env_prefix="SUPERVISOR_", extra="ignore", env_ignore_empty=True, validate_default=False
    )

    _follows: str = PrivateAttr("")

    job: Target = _setting("worker.job:sync", "`module:callable` of the job")
    job_name: str = _setting("", "what its reports call the job", shown="the callable's name", max_length=NAME_MAX)
    jobs_file: Path | None = _setting(
        None, "TOML with several jobs, each `[jobs.NAME]` overriding these and carrying its own `env` table"
    )
    interval: Seconds = _setting(1800.0, "from tick to tick, drift-free", ge=0.1)
    rss_ceiling: ByteSize = _setting(
        ByteSize(512_000_000),
        "hard: a worker tree above it in mid-cycle is killed; where a control group has less, the default is what fits it",
        ge=CEILING_MIN_BYTES,
        le=CEILING_MAX_BYTES,
    )
    recycle_rss: ByteSize | None = _setting(
        None,
        "soft: a kept worker above it after a cycle is replaced",
        shown="half the ceiling",
        ge=CEILING_MIN_BYTES // 2,
    )
    cycles_per_worker: int = _setting(1, "1 is a fresh process every cycle; 0 is no count limit", ge=0)
    cycle_timeout: Seconds = _setting(1200.0, "SIGTERM at it, SIGKILL after the grace", ge=0.1)
    grace: Seconds = _setting(15.0, "between SIGTERM and SIGKILL, and for the drain at stop", ge=0)
    start_method: Literal["fork", "spawn", "forkserver"] = _setting("fork", "`fork`, `spawn`, `forkserver`")
    max_workers: int = _setting(1, "cycles of different jobs at once", ge=1, le=1_000)
    max_failures: int = _setting(0, "failures in a row that open the breaker; 0 never", ge=0)
    state_dir: Path | None = _setting(
        None, "lock, state, journal, default database", shown="$STATE_DIRECTORY, else XDG state home + /redcap-sync"
    )
    log_format: Literal["auto", "text", "json"] = _setting("auto", "`text` on a terminal, else `json`")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = _setting(
        "INFO", "`DEBUG`, `INFO`, `WARNING`, `ERROR`, `CRITICAL`"
    )
    metrics_file: Path | None = _setting(
        None,
        "for Prometheus: a file `NAME.prom` that node_exporter's textfile collector reads; replaced after each cycle",
    )

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @field_validator("job_name")
    @classmethod
    def _printable(cls, name: str) -> str:
        if not name.isprintable():
            raise ValueError("holds what can't be printed")
        return name

    @field_validator("recycle_rss")
    @classmethod
    def _soft_below_hard(cls, soft: ByteSize | None, info: ValidationInfo) -> ByteSize | None:
        if soft and soft > info.data.get("rss_ceiling", soft):
            raise ValueError("is above SUPERVISOR_RSS_CEILING, so it could never be met: lower it")
        return soft

    @field_validator("state_dir", "jobs_file", "metrics_file")
    @classmethod
    def _no_shell_s(cls, path: Path | None) -> Path | None:
        if path and str(path).startswith(("~", "$")):
            raise ValueError("begins with what only a shell expands: an env file needs the whole path")
        return path

    @field_validator("metrics_file")
    @classmethod
    def _can_be_written(cls, path: Path | None) -> Path | None:
        if path and not find_spec("prometheus_client"):
            raise ValueError("needs prometheus_client: pip install 'redcap-sync-supervisor[metrics]'")
        folder = path.absolute().parent if path else None
        if path and folder and (path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK)):
            raise ValueError("is no file that can be made: its folder must be there, and be ours to write to")
        return path and path.absolute()

    @model_validator(mode="after")
    def _ceiling_below_the_group_s_limit(self) -> "Settings":
        """Follow the control group's limit, as of a container, where nobody said how high the ceiling is."""
        limit_bytes, where = cgroup.memory_limit()
        if "rss_ceiling" in self.model_fields_set or limit_bytes is None:
            return self
        share_bytes = max(CEILING_MIN_BYTES, (limit_bytes - OTHERS_BYTES) // self.max_workers)
        if share_bytes < self.rss_ceiling:
            self._follows = f"follows {where} ({limit_bytes:,} bytes): it is {share_bytes:,} bytes"
            self.__dict__["rss_ceiling"] = ByteSize(share_bytes)  # not as if somebody had set it
            if self.recycle_rss and self.recycle_rss > share_bytes:
                raise ValueError(f"SUPERVISOR_RECYCLE_RSS: is above the ceiling, which {self._follows}: lower it")
        return self

    def follows(self) -> str:
        """Return whose limit the ceiling follows, in words; empty where it is set, or its default."""
        return self._follows

    def job_plan(self, name: str, env: Mapping[str, str]) -> dict[str, Any]:
        """Return the keywords of a JobPlan."""
        return {
            "name": name,
            "target": self.job,
            "interval_s": self.interval,
            "rss_ceiling_bytes": int(self.rss_ceiling),
            "recycle_rss_bytes": int(self.recycle_rss or self.rss_ceiling // 2),
            "cycles_per_worker": self.cycles_per_worker,
            "cycle_timeout_s": self.cycle_timeout,
            "grace_s": self.grace,
            "start_method": self.start_method,
            "max_failures": self.max_failures,
            "env": dict(env),
        }


# Of all jobs together: none has its own.
SHARED = {"jobs_file", "job_name", "max_workers", "state_dir", "log_format", "log_level", "metrics_file"}


@dataclass(slots=True)
class Job:
    """One job as it was read: what it overrides, and its own environment."""

    name: str
    settings: Settings
    overrides: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)

    @property
    def models(self) -> Sequence[type[BaseSettings]]:
        """The job's own settings, where it brings them along as `settings`."""
        return tuple(target.attribute(self.settings.job, "settings", ()))

    @property
    def metrics(self) -> Any:
        """What the job's summaries come to, where somebody reads it. Raises ValueError for what is no metric."""
        if not self.settings.metrics_file:
            return {}
        from supervisor.metrics import checked  # noqa: PLC0415 - it needs what may not be installed

        return checked(target.attribute(self.settings.job, "metrics", {}))


@dataclass(slots=True)
class Reading:
    """All that was read, and all that is wrong with it."""

    overlay: dict[str, str] = field(default_factory=dict)  # what the env file sets
    settings: Settings | None = None
    jobs: list[Job] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def source(self, variable: str) -> str:
        """Return what sets a variable, in words; empty when nothing does."""
        if variable in self.overlay:
            return "the env file"
        return "the environment" if variable in os.environ else ""

    def misspelt(self) -> list[tuple[str, str]]:
        """Return the variables that are set and mean nothing, each with the nearest name that does, if one is near."""
        models: list[type[BaseSettings]] = [Settings, *(model for job in self.jobs for model in job.models)]
        names = {str(model.model_config["env_prefix"]): list(variables(model)) for model in models}
        given = set(os.environ).union(*(job.env for job in self.jobs))
        found = []
        for one in sorted(given):
            for prefix, known in names.items():
                if one.startswith(prefix) and one not in known:
                    found.append((one, _nearest(one.removeprefix(prefix), prefix, known)))
        return found

    def hints(self) -> list[Fault]:
        """Return the right name of each variable that is nearly one."""
        return [
            {"variable": one, "message": f"is no setting; did you mean {near}?"}
            for one, near in self.misspelt()
            if near
        ]

    def remarks(self) -> list[Fault]:
        """Return what is no fault, and worth a word."""
        file = self.settings.metrics_file if self.settings else None
        follows = {job.settings.follows() for job in self.jobs} - {""}
        odd = {"variable": "SUPERVISOR_METRICS_FILE", "message": f"is {file}: node_exporter reads names in .prom only"}
        ceilings = [{"variable": "SUPERVISOR_RSS_CEILING", "message": one} for one in sorted(follows)]
        return [*self.hints(), *ceilings, *([odd] if file and file.suffix != ".prom" else [])]


def _nearest(rest: str, prefix: str, known: Sequence[str]) -> str:
    """Return the name that is meant; of SUPERVISOR_GRACE and SUPERVISOR_GROUP most letters are the prefix."""
    by_rest = {one.removeprefix(prefix): one for one in known}
    if near := difflib.get_close_matches(rest, by_rest, 1, NEAR_ENOUGH):
        return by_rest[near[0]]
    words = set(rest.split("_"))  # REDCAP_TOKEN, REDCAP_URL: a word was left out, or one added
    shared = [one for one in by_rest if words < set(one.split("_")) or words > set(one.split("_"))]
    return by_rest[min(shared, key=len)] if shared else ""


def read(env_file: str | None) -> Reading:
    """Read all there is; the environment of this process becomes the jobs'."""
    seen = Reading()
    try:
        seen.overlay = envfile.overlay(env_file)
    except (OSError, ValueError) as error:
        seen.faults.append({"variable": "--env-file", "message": f"{env_file} can't be read: {error}"})
    os.environ.update(seen.overlay)
    seen.settings = settings = _settings(seen.faults, {})
    # Where settings are wrong, the faults of a jobs file and of the job belong into the same list, as far as they can be told.
    given = settings.jobs_file if settings else os.environ.get("SUPERVISOR_JOBS_FILE")
    if given and "SUPERVISOR_JOBS_FILE" not in {one["variable"] for one in seen.faults}:
        _read_jobs_file(Path(given), seen)
    elif settings:
        seen.jobs.append(Job(settings.job_name or settings.job.rpartition(":")[2], settings))
    else:
        seen.faults += job_faults({}, {})
    labels: dict[str, str] = {}  # of the jobs' metrics
    for job in seen.jobs:
        where = f" of [jobs.{job.name}]" if given else ""
        seen.faults += job_faults({"job": job.settings.job}, job.env, where)
        try:
            for name, (_, label, _) in job.metrics.items():
                if labels.setdefault(name, label) != label:
                    text = f"its metric {name} has the label {label!r}, and that of another job {labels[name]!r}"
                    seen.faults.append({"variable": f"SUPERVISOR_JOB{where}", "message": text})
        except ValueError as error:
            seen.faults.append({"variable": f"SUPERVISOR_JOB{where}", "message": str(error)})
    return seen


def load(env_file: str | None) -> dict[str, Any]:
    """Return `{"plan": …}`, or `{"faults": [{"variable": …, "message": …}, …]}` with every fault."""
    seen = read(env_file)
    settings = seen.settings
    if seen.faults or settings is None:
        return {"faults": [*seen.faults, *seen.hints()]}
    return {
        "plan": {
            "jobs": [job.settings.job_plan(job.name, {**seen.overlay, **job.env}) for job in seen.jobs],
            "metrics": {job.settings.job: job.metrics for job in seen.jobs},
            "state_dir": str(settings.state_dir or default_state_dir()),
            "max_workers": settings.max_workers,
            "log_format": settings.log_format,
            "log_level": settings.log_level,
            "metrics_file": str(settings.metrics_file or ""),
            "remarks": [f"{one['variable']} {one['message']}" for one in seen.remarks()],
        }
    }


def variables(model: type[BaseSettings]) -> dict[str, Any]:
    """Return the fields of a model by their variables."""
    return {f"{model.model_config['env_prefix']}{name}".upper(): one for name, one in model.model_fields.items()}


def _settings(faults: list[Fault], overrides: dict[str, Any], where: str = "") -> Settings | None:
    try:
        return Settings(**overrides)
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            if overrides and problem["loc"] and problem["loc"][0] not in overrides:
                continue  # it is every job's, and told already
            name = "SUPERVISOR_" + str(problem["loc"][0]).upper() if problem["loc"] else ""
            message = str(problem["msg"]).removeprefix("Value error, ")
            if not name:
                name, _, message = message.partition(": ")
            if problem["loc"] and problem["type"] != "missing":
                # The values of these settings are no secrets, and a wrong one must be seen.
                message = f"{str(problem['input'])!r} {message[:1].lower()}{message[1:]}"
            faults.append({"variable": name + where, "message": message})
        return None


def _read_jobs_file(path: Path, seen: Reading) -> None:
    def fault(message: str) -> None:
        seen.faults.append({"variable": "SUPERVISOR_JOBS_FILE", "message": f"{path}: {message}"})

    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8")).get("jobs", {})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        return fault(f"can't be read: {error}")
    if not isinstance(tables, dict) or not tables:
        return fault("has no [jobs.NAME] table")
    for name, table in tables.items():
        if not isinstance(table, dict) or not 0 < len(name) <= NAME_MAX or not name.isprintable():
            fault(f"[jobs.{name[:40]!r}] is no table with a printable name of at most {NAME_MAX} characters")
            continue
        keys = {key.lower().removeprefix("supervisor_"): value for key, value in table.items()}
        env = keys.pop("env", {})
        if unknown := sorted(set(keys) - (set(Settings.model_fields) - SHARED)):
            fault(f"[jobs.{name}] has {', '.join(unknown)}, which a job does not have")
        if not isinstance(env, dict) or not all(_is_variable(*pair) for pair in env.items()):
            fault(f"[jobs.{name}.env] must be a table of strings, its keys names of variables")
            env = {}
        if settings := _settings(seen.faults, keys, f" of [jobs.{name}]"):
            seen.jobs.append(Job(name, settings, keys, env))
        else:
            seen.faults += job_faults(keys, env, f" of [jobs.{name}]")
    return None


def _is_variable(name: str, value: object) -> bool:
    return isinstance(value, str) and bool(name) and not set("=\0") & set(name) and "\0" not in value


@contextmanager
def environment(env: Mapping[str, str]) -> Iterator[None]:
    """Have these variables too, for a while."""
    before = dict(os.environ)
    os.environ.update(env)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def job_faults(overrides: Mapping[str, Any], env: Mapping[str, str], where: str = "") -> list[Fault]:
    """Return what a job itself finds wrong with its environment: its `settings_faults()`, where it has one."""
    text = overrides.get("job") or os.environ.get("SUPERVISOR_JOB") or Settings.model_fields["job"].default
    try:
        with environment(env):
            found = target.attribute(str(text), "settings_faults", list)()
        return [{"variable": f"{one['variable']}{where}", "message": str(one["message"])} for one in found]
    except (Exception, SystemExit):
        return []  # the first cycle meets the same, fails, and reports the whole error
