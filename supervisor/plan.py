"""What the supervisor keeps of its settings: plain frozen values, nothing to import.

The settings are read and checked in a child (`settings.py`), which sends them here as JSON.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class JobPlan:
    """One job: what to run, how often, and within which bounds."""

    name: str
    target: str  # "module:callable"
    interval_s: float = 1800.0
    rss_ceiling_bytes: int = 512_000_000
    recycle_rss_bytes: int = 256_000_000
    cycles_per_worker: int = 1  # 0: no count limit
    cycle_timeout_s: float = 1200.0
    grace_s: float = 15.0
    start_method: str = "fork"
    max_failures: int = 0  # 0: never give up
    env: Mapping[str, str] = field(default_factory=dict, repr=False)  # may hold secrets


@dataclass(frozen=True, slots=True)
class Plan:
    """All that the loop needs to know."""

    jobs: tuple[JobPlan, ...]
    state_dir: str
    max_workers: int = 1
    log_format: str = "json"
    log_level: str = "INFO"
    metrics_file: str = ""  # none are written
    metrics: Mapping[str, Any] = field(default_factory=dict, repr=False)  # by target, what a summary comes to
    remarks: tuple[str, ...] = ()  # what is no fault, and worth a line in the log


def from_message(message: Mapping[str, Any]) -> Plan:
    """Make the plan of the dict that `settings.load` sent."""
    fields = dict(message)
    fields["jobs"] = tuple(JobPlan(**job) for job in message["jobs"])
    fields["remarks"] = tuple(message["remarks"])
    return Plan(**fields)


def default_state_dir() -> str:
    """Return `$STATE_DIRECTORY` (systemd's) or the XDG state home's `redcap-sync`."""
    if given := os.environ.get("STATE_DIRECTORY"):
        return given.partition(":")[0]
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(home, "redcap-sync")
