"""Wait for workers: all of them at once in the loop, a single one to its end in `call`."""

import codecs
import errno
import select
import sys
from typing import Any, TextIO

from supervisor.clock import Clock
from supervisor.life import State
from supervisor.plan import JobPlan
from supervisor.process import Worker
from supervisor.run import Run, begin


def wait(workers: list[Worker], extra_fds: list[int], timeout_s: float) -> list[int]:
    """Wait until something happens to one of `workers`; serve it; return the ready extra fds."""
    poller = select.poll()
    owners: dict[int, Worker] = {}
    for fd in extra_fds:
        poller.register(fd, select.POLLIN)
    for worker in workers:
        for fd in worker.descriptors():
            owners[fd] = worker
            poller.register(fd, select.POLLIN)
    ready = [fd for fd, _ in poller.poll(max(0.0, timeout_s) * 1000)]
    for fd in sorted(ready, key=lambda fd: fd in owners and fd == owners[fd].pidfd):
        if fd in owners and fd in owners[fd].descriptors():
            owners[fd].on_ready(fd)
    for worker in workers:
        worker.on_time()
    return [fd for fd in ready if fd not in owners]


def call(
    job: JobPlan, arguments: dict[str, Any], clock: Clock, stream: TextIO | None = None, result_fd: int = -1
) -> Run:
    """Run one function in a worker of its own, to its end: for what is too heavy for the parent.

    What it prints goes to `stream`, else standard error; what it returns into `result_fd` as JSON, where one is given.
    Raises OSError when no process can be started.
    """
    to: TextIO | None = stream or sys.stderr
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a chunk may end within a character

    def write(chunk: bytes) -> None:
        nonlocal to
        if (text := decoder.decode(chunk, final=not chunk)) and to:
            try:
                to.write(text)
                to.flush()
            except OSError as error:  # nobody reads any more: no more is written; a full disk is told
                if stream and error.errno != errno.EPIPE:
                    print(f"redcap-sync: standard output: {error.strerror}", file=sys.stderr)
                to = None

    worker = Worker(job, "", clock, on_output=write, result_fd=result_fd)
    return to_its_end(worker, begin(job, clock, arguments=arguments), clock)


def to_its_end(worker: Worker, run: Run, clock: Clock) -> Run:
    """Give a worker its only cycle and wait until it is gone."""
    try:
        worker.assign(run)
        while worker.state is not State.GONE:
            wait([worker], [], worker.deadline_s() - clock.now_s())
    except BaseException:  # Ctrl-C: the call must not live on without its caller
        while worker.state is not State.GONE:
            worker.hurry()
            wait([worker], [], min(0.1, worker.deadline_s() - clock.now_s()))
        raise
    return worker.ended[0]
