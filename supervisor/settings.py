"""The settings, read and checked. Imported in a child only: pydantic-settings costs 25 MB.

`load` is what the child runs; its dict comes back to the supervisor as the plan, or as the
list of all that is wrong.
"""

import importlib
import io
import os
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from dotenv import dotenv_values
from pydantic import BeforeValidator, ByteSize, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

Fault = dict[str, str]  # variable, message

_UNIT_S = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")

# A fork of the supervisor holds some 20 MB before the job has done anything.
CEILING_MIN_BYTES = 32_000_000
CEILING_MAX_BYTES = 1 << 50
DURATION_MAX_S = 10 * 366 * 86_400


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


def target(text: object) -> str:
    """Return `module:callable` as it is. Raises ValueError when it is not of that form."""
    if not isinstance(text, str) or not _TARGET.fullmatch(text.strip()):
        raise ValueError("is not of the form module:callable, as worker.job:sync")
    return text.strip()


Seconds = Annotated[float, BeforeValidator(duration_s)]
Target = Annotated[str, BeforeValidator(target)]


class Settings(BaseSettings):
    """SUPERVISOR_*, as the README's table has them."""

    model_config = SettingsConfigDict(
        env_prefix="SUPERVISOR_", extra="ignore", env_ignore_empty=True, validate_default=False
    )

    job: Target = "worker.job:sync"
    jobs_file: Path | None = None
    interval: Seconds = Field(1800.0, ge=0.1)
    rss_ceiling: ByteSize = Field(ByteSize(512_000_000), ge=CEILING_MIN_BYTES, le=CEILING_MAX_BYTES)
    recycle_rss: ByteSize | None = Field(None, ge=CEILING_MIN_BYTES // 2)
    cycles_per_worker: int = Field(1, ge=0)
    cycle_timeout: Seconds = Field(1200.0, ge=0.1)
    grace: Seconds = Field(15.0, ge=0)
    start_method: Literal["fork", "spawn", "forkserver"] = "fork"
    max_workers: int = Field(1, ge=1, le=1_000)
    max_failures: int = Field(0, ge=0)
    state_dir: Path | None = None
    log_format: Literal["auto", "text", "json"] = "auto"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _soft_below_hard(self) -> "Settings":
        if self.recycle_rss is not None and self.recycle_rss > self.rss_ceiling:
            raise ValueError(
                "SUPERVISOR_RECYCLE_RSS: is above SUPERVISOR_RSS_CEILING, so it could never be met: lower it"
            )
        return self

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


def load(env_file: str | None) -> dict[str, Any]:
    """Return `{"plan": …}`, or `{"faults": [{"variable": …, "message": …}, …]}` with every fault."""
    faults: list[Fault] = []
    overlay = _read_env_file(env_file, faults)
    os.environ.update(overlay)
    if os.environ.get("SUPERVISOR_METRICS_FILE"):
        faults.append({"variable": "SUPERVISOR_METRICS_FILE", "message": "can't be set: there are no metrics yet"})
    settings = _settings(faults, {})
    jobs: list[dict[str, Any]] = []
    if settings and settings.jobs_file:
        jobs = list(_jobs_of_file(settings.jobs_file, overlay, faults))
    elif settings:
        jobs = [settings.job_plan(settings.job.rpartition(":")[2], overlay)]
        faults += job_faults(settings.job)
    else:
        # The job's own faults belong into the same list, as far as the job can be told.
        faults += job_faults(os.environ.get("SUPERVISOR_JOB", Settings.model_fields["job"].default))
    if faults or settings is None:
        return {"faults": faults}
    return {
        "plan": {
            "jobs": jobs,
            "state_dir": str(settings.state_dir or default_state_dir()),
            "max_workers": settings.max_workers,
            "log_format": settings.log_format,
            "log_level": settings.log_level,
        }
    }


def default_state_dir() -> Path:
    """Return `$STATE_DIRECTORY` (systemd's) or the XDG state home's `redcap-sync`."""
    if given := os.environ.get("STATE_DIRECTORY"):
        return Path(given.partition(":")[0])
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(home) / "redcap-sync"


def _read_env_file(path: str | None, faults: list[Fault]) -> dict[str, str]:
    """Return what the file sets and the environment does not: the environment wins."""
    if path is None:
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        values = dotenv_values(stream=io.StringIO(text.replace("\0", "\N{REPLACEMENT CHARACTER}")), interpolate=False)
    except (OSError, ValueError) as error:
        faults.append({"variable": "--env-file", "message": f"{path} can't be read: {error}"})
        return {}
    return {name: value for name, value in values.items() if value is not None and name not in os.environ}


def _settings(faults: list[Fault], overrides: dict[str, Any], where: str = "") -> Settings | None:
    try:
        return Settings(**overrides)
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            name = "SUPERVISOR_" + str(problem["loc"][0]).upper() if problem["loc"] else ""
            message = str(problem["msg"]).removeprefix("Value error, ")
            if not name:
                name, _, message = message.partition(": ")
            if problem["loc"] and problem["type"] != "missing":
                # The values of these settings are no secrets, and a wrong one must be seen.
                message = f"{problem['input']!r} {message[:1].lower()}{message[1:]}"
            faults.append({"variable": name + where, "message": message})
        return None


def _jobs_of_file(path: Path, overlay: Mapping[str, str], faults: list[Fault]) -> Iterator[dict[str, Any]]:
    def fault(message: str) -> None:
        faults.append({"variable": "SUPERVISOR_JOBS_FILE", "message": f"{path}: {message}"})

    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8")).get("jobs", {})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        return fault(f"can't be read: {error}")
    if not isinstance(tables, dict) or not tables:
        return fault("has no [jobs.NAME] table")
    known = set(Settings.model_fields) - {"jobs_file", "max_workers", "state_dir", "log_format", "log_level"}
    for name, table in tables.items():
        if not isinstance(table, dict):
            fault(f"jobs.{name} is no table")
            continue
        keys = {key.lower().removeprefix("supervisor_"): value for key, value in table.items()}
        env = keys.pop("env", {})
        if unknown := sorted(set(keys) - known):
            fault(f"[jobs.{name}] has {', '.join(unknown)}, which a job does not have")
            continue
        if not isinstance(env, dict) or not all(_is_variable(*pair) for pair in env.items()):
            fault(f"[jobs.{name}.env] must be a table of strings, its keys names of variables")
            continue
        if settings := _settings(faults, keys, f" of [jobs.{name}]"):
            with _environment(env):
                faults += [
                    {**one, "variable": f"{one['variable']} of [jobs.{name}]"} for one in job_faults(settings.job)
                ]
            yield settings.job_plan(name, {**overlay, **env})


def _is_variable(name: str, value: object) -> bool:
    return isinstance(value, str) and bool(name) and not set("=\0") & set(name) and "\0" not in value


@contextmanager
def _environment(env: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(env)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def job_faults(target_text: str) -> list[Fault]:
    """Return what the job itself finds wrong with its environment.

    A job may carry a function `settings_faults` that returns a list of `variable` and
    `message`. A job that can't be imported is no fault of the settings: its cycle fails, and
    says why.
    """
    module_name, _, attribute = target_text.partition(":")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        job = getattr(importlib.import_module(module_name), attribute)
        ask = getattr(job, "settings_faults", None)
        found = list(ask()) if callable(ask) else []
        return [{"variable": str(one["variable"]), "message": str(one["message"])} for one in found]
    except (Exception, SystemExit):
        return []  # the first cycle imports it again, fails, and reports the whole error
