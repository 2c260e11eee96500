"""`redcap-sync config`: every setting, its value, and where it comes from. Runs in a child."""

import json
import os
from collections.abc import Iterator
from typing import Any

from pydantic import ByteSize, SecretStr
from pydantic_settings import BaseSettings
from rich.table import Table
from rich.text import Text

from supervisor import terminal
from supervisor.failure import MASK, mask
from supervisor.plan import default_state_dir
from supervisor.settings import SHARED, Job, Reading, Settings, environment, read, variables

Row = dict[str, Any]

_SIZES = (("GiB", 1 << 30), ("GB", 10**9), ("MiB", 1 << 20), ("MB", 10**6))
_TIMES = (("d", 86_400), ("h", 3_600), ("m", 60))
_EXAMPLE_HEAD = """\
# Settings of redcap-sync: `redcap-sync --env-file THIS-FILE run`, or systemd's EnvironmentFile=.
# Every setting is here with its default; take away the # of those that you change.
# Keep this file to yourself (chmod 600) if it holds a token.
"""


def rows(seen: Reading) -> list[Row]:
    """Return a row for each setting: `job` (null where it is every job's), `variable`, `value`, `source`, `default`, `meaning`."""
    assert seen.settings is not None  # else there were faults
    shared = list(_of_model(seen.settings, seen, None))
    half_bytes = ByteSize(seen.settings.rss_ceiling // 2)
    derived = {"SUPERVISOR_STATE_DIR": default_state_dir(), "SUPERVISOR_RECYCLE_RSS": shown(half_bytes)}
    if not seen.settings.jobs_file:
        derived["SUPERVISOR_JOB_NAME"] = seen.jobs[0].name
    for row in shared:
        if row["source"] == "default":
            row["value"] = derived.get(row["variable"], row["value"])
    if seen.settings.jobs_file:
        for job in seen.jobs:
            shared += [row for row in _of_model(job.settings, seen, job) if row["source"] == "jobs file"]
    for job in seen.jobs:
        with environment(job.env):
            for model in job.models:
                shared += _of_model(model(), seen, job)
    return shared


def _of_model(settings: BaseSettings, seen: Reading, job: Job | None) -> Iterator[Row]:
    of_itself = settings.sources() if hasattr(settings, "sources") else {}
    named = job is not None and seen.settings is not None and seen.settings.jobs_file
    for variable, about in variables(type(settings)).items():
        name = variable.removeprefix(str(settings.model_config["env_prefix"])).lower()
        source = of_itself.get(name) or _source(variable, name, seen, job)
        value = shown(getattr(settings, name))
        default = (about.json_schema_extra or {}).get("shown") or shown(about.default)
        yield {
            "job": job.name if job and named else None,
            "variable": variable,
            "value": default if source == "default" and not value else value,
            "source": source,
            "default": default,
            "meaning": about.description,
        }


def _source(variable: str, name: str, seen: Reading, job: Job | None) -> str:
    if job and (variable in job.env or (name in job.overrides and name not in SHARED)):
        return "jobs file"
    if not os.environ.get(variable):
        follows = variable == "SUPERVISOR_RSS_CEILING" and seen.settings is not None and seen.settings.follows()
        return "control group" if follows else "default"
    return "env file" if variable in seen.overlay else "environment"


def shown(value: object) -> str:
    """Return a setting's value as one would write it; a secret is masked."""
    if isinstance(value, SecretStr):
        return MASK if value.get_secret_value() else ""
    if isinstance(value, ByteSize):
        unit, size = next(((unit, size) for unit, size in _SIZES if value and value % size == 0), ("", 1))
        return f"{int(value) // size}{unit}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return _duration(value)
    if isinstance(value, list | tuple):
        return ",".join(map(shown, value))
    return "" if value is None else mask(str(value))


def _duration(seconds: float) -> str:
    text, rest = "", seconds
    for unit, size in _TIMES:
        if seconds % 1 == 0 and rest >= size and (unit != "d" or seconds >= 2 * size):  # a day is 24h
            text += f"{int(rest // size)}{unit}"
            rest %= size
    return text + (f"{rest:g}s" if rest or not text else "")


def show(env_file: str | None, *, as_json: bool, example: bool, look: dict[str, Any]) -> dict[str, Any]:
    """Do `redcap-sync config`: print, and return the exit code."""
    if example:
        print(_example())
        return {"exit": 0}
    seen = read(env_file)
    if seen.faults or seen.settings is None:
        sources = [seen.source(one["variable"].partition(" ")[0]) for one in seen.faults]
        said = [f" (set by {source})" if source else "" for source in sources]
        faults = [{**one, "message": one["message"] + more} for one, more in zip(seen.faults, said, strict=True)]
        return {"faults": [*faults, *seen.hints()]}
    found = rows(seen)
    unknown = [{"variable": name, "nearest": near or None} for name, near in seen.misspelt()]
    if as_json:
        print(json.dumps({"settings": found, "unknown": unknown}, indent=1, ensure_ascii=False))
        return {"exit": 0}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("setting", "value", "from", "default"):
        table.add_column(heading, overflow="fold")
    for row in found:
        name = f"{row['variable']} of [jobs.{row['job']}]" if row["job"] else row["variable"]
        style = "" if row["source"] == "default" else "bold"
        cells = (name, row["value"], row["source"], row["default"])
        table.add_row(*(Text(terminal.plain(cell), style) for cell in cells))
    terminal.show(table, look)
    for one in unknown:
        hint = f"did you mean {one['nearest']}?" if one["nearest"] else "is it another program's?"
        print(terminal.plain(f"{one['variable']} is set and is no setting: {hint}"))
    return {"exit": 0}


def _example() -> str:
    """Return an env file with every setting of the supervisor and of its default job."""
    models: list[type[BaseSettings]] = [Settings, *Job("", Settings(job=Settings.model_fields["job"].default)).models]
    lines = [_EXAMPLE_HEAD]
    for model in models:
        for variable, about in variables(model).items():
            words = (about.json_schema_extra or {}).get("shown") or ""
            default = shown(about.default)
            lines.append(f"# {about.description}" + (f" (default: {words})" if words else ""))
            lines.append(f"#{variable}={default}\n")
    return "\n".join(lines)
