"""`state.json` in the state directory: what the service does now, for `redcap-sync status`. Replaced whole."""

import json
import logging
import os
from collections.abc import Mapping
from typing import Any

from supervisor import files, log

NAME = "state.json"
PROGRESS_EVERY_S = 1.0
COUNT_MAX = 1 << 53


def of_post(post: Any, now_s: float) -> dict[str, Any]:
    """Return what there is to be seen of one job; times in seconds of the clock that counts from the boot."""
    worker = post.worker
    run = worker.run if worker else None
    return {
        "job": post.job.name,
        "cycle": post.cycles,
        "due_s": None if post.busy else max(now_s, post.schedule.due_s),
        "worker_pid": worker.pid if worker else None,
        "worker_state": worker.state.name.lower() if worker else None,
        "started_s": run.started_s if run else None,
        "overdue_s": run.deadline_s + worker.job.grace_s if run else None,
        "rss_ceiling_bytes": post.job.rss_ceiling_bytes,
        "progress": post.progress,
        "last": post.last,
    }


def progress(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a job said of its progress, as far as it is what it should be."""
    kept: dict[str, Any] = {}
    for name in ("done", "total"):
        one = said.get(name)
        kept[name] = one if type(one) is int and 0 <= one <= COUNT_MAX else None  # what a float can hold, too
    return kept | {"unit": str(said.get("unit", ""))[:40]}


class StateFile:
    """Writes what has changed: at once, or for mere progress once a second."""

    def __init__(self, state_dir: str) -> None:
        self._path = os.path.join(state_dir, NAME)
        self._written_s = float("-inf")
        self._seen: Any = None
        self._moved = False
        self._failed = False

    def move(self) -> None:
        """Say that a job is further than it was."""
        self._moved = True

    def keep(self, now_s: float, posts: list[Any], about: dict[str, Any]) -> None:
        """Write the state when it is another; a disk that does not take it is said once."""
        seen = [about, [(post.job, post.cycles, post.worker and post.worker.state, post.last) for post in posts]]
        if seen == self._seen and not (self._moved and now_s - self._written_s >= PROGRESS_EVERY_S):
            return
        self._seen, self._moved, self._written_s = seen, False, now_s
        content = {"pid": os.getpid(), **about, "jobs": [of_post(post, now_s) for post in posts]}
        try:
            files.replace(self._path, json.dumps(content, separators=(",", ":")).encode(), 0o600)
            self._failed = False
        except OSError as error:
            if not self._failed:
                why = f"{self._path} can't be written: {error}"
                log.say("state", logging.ERROR, why, code="StateDirUnusable", error=str(error))
            self._failed = True
