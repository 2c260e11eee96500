"""Cycles in processes that really die: a program that has all imported and forks one for each.

Run as a program it reads a JSON line a cycle and answers one; `Zygote` is its client.
"""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any, Self

from tests import servers
from tests.conftest import ROOT


class Zygote:
    """Runs cycles, one at a time. A context manager."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.sync.zygote"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        servers.PIDS.add(self._process.pid)
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            assert self._process.stdin
            self._process.stdin.close()

    def cycle(
        self,
        env: dict[str, str],
        state_dir: str,
        *,
        full: bool = False,
        kill_after_s: float | None = None,
        kill_at_call: int | None = None,
        stop_at: int | None = None,
        now: str | None = None,
    ) -> dict[str, Any]:
        """Run a cycle; return how it ended: `killed`, or its `summary`, or its `error`; and `took_s`, `calls`.

        It is killed by SIGKILL so many seconds behind its start, or when so many Python calls
        were made; `stop_at` drains it behind so many records. `now` is what the host's clock shows.
        """
        assert self._process.stdin
        assert self._process.stdout
        Path(state_dir, "requests").unlink(missing_ok=True)  # else REDCAP_MAX_RATE would make it long
        about = {"full": full, "kill_after_s": kill_after_s, "kill_at_call": kill_at_call, "stop_at": stop_at}
        about["now"] = now
        self._process.stdin.write(json.dumps({"env": env, "state_dir": state_dir, **about}) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


def _cycle(asked: dict[str, Any], out_fd: int) -> None:
    import worker.sync
    from tests.sync.conftest import Alone
    from worker import errors
    from worker.job import sync

    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += 1
        if calls == asked["kill_at_call"]:
            os.kill(os.getpid(), signal.SIGKILL)

    class Cycle(Alone):
        def progress(self, done: int, total: int | None = None, unit: str = "") -> None:
            self.stopping = asked["stop_at"] is not None and unit == "records" and done >= asked["stop_at"]

    class Shown(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.fromisoformat(asked["now"]).astimezone(tz)

    if asked["now"]:
        worker.sync.datetime = Shown  # type: ignore[misc]
    for name in [name for name in os.environ if name.startswith(("REDCAP_", "SYNC_"))]:
        del os.environ[name]
    os.environ.update(asked["env"])
    started_s = time.monotonic()
    if asked["kill_at_call"] is not None:
        sys.setprofile(count)
    try:
        ended = {"summary": sync(Cycle(asked["state_dir"], full=asked["full"]))}
    except errors.SyncError as error:
        ended = {"error": f"{type(error).__name__}: {error}"}
    finally:
        sys.setprofile(None)
    os.write(out_fd, json.dumps({**ended, "took_s": time.monotonic() - started_s, "calls": calls}).encode())


def main() -> None:
    """Be the program."""
    import psycopg  # noqa: F401 - so that no cycle has to import it
    import sqlalchemy.dialects.postgresql.psycopg  # noqa: F401

    for line in sys.stdin:
        asked = json.loads(line)
        read_fd, write_fd = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read_fd)
            _cycle(asked, write_fd)
            os._exit(0)
        os.close(write_fd)
        if asked["kill_after_s"] is not None:
            time.sleep(asked["kill_after_s"])
            os.kill(pid, signal.SIGKILL)
        with os.fdopen(read_fd, "rb") as file:
            said = file.read()
        _, status = os.waitpid(pid, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        answer = json.loads(said) if said else {"killed": killed, "status": status}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
