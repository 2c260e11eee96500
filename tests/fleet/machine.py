"""A machine of the fleet, whose leases end soon: `python machine.py worker -c 2`, and the job that its tests run."""

import fcntl
import os
import sys
import time


def sync(cycle):
    """Sync a project, alone; slowly while a file says so."""
    from worker.job import sync as real

    shared = os.environ["SHARED"]
    with open(f"{shared}/{cycle.name}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _tell("overlap", cycle)
            raise
        _tell("begin", cycle)
        while os.path.exists(f"{shared}/{cycle.name}.hold"):
            time.sleep(0.05)
        summary = real(cycle)
        _tell("end", cycle)
    return summary


def _tell(what, cycle):
    fd = os.open(f"{os.environ['SHARED']}/told", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{what} {cycle.name} {os.environ['MACHINE']} {os.getpid()}\n".encode())
    os.close(fd)


if __name__ == "__main__":
    from supervisor import fleet

    fleet.LEASE_S, fleet.RENEW_S, fleet.LOST_S = 6.0, 1.0, 4.0
    fleet.app.start(sys.argv[1:])
