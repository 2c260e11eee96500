"""A worker's process tree as the kernel shows it: who belongs to it, what it holds, how it ends.

A worker is the subreaper of what it starts (`inside.py`), so as long as it lives its tree is
connected: a daemon that forked twice and left the session is still found below it.
"""

import os
import select
import signal
from collections.abc import Iterable

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def _read(path: str) -> bytes:
    """Return a file of /proc, without the four system calls that a file object adds to each."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pieces = []
        while piece := os.read(fd, 65_536):
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        os.close(fd)


def rss_bytes(pid: int, statm_fd: int = -1) -> int:
    """Return the resident bytes of one process; 0 when it has ended.

    Half the price with its statm already open (measured: 20 us for 120, after a pause). Never call it for a reaped worker: its pid may be another process by then.
    """
    try:
        statm = os.pread(statm_fd, 256, 0) if statm_fd >= 0 else _read(f"/proc/{pid}/statm")
        return int(statm.split()[1]) * _PAGE_BYTES
    except (FileNotFoundError, ProcessLookupError):
        return 0


def children(pid: int) -> list[int]:
    """Return the live or unreaped children of a process, from every one of its threads."""
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            found += map(int, _read(f"/proc/{pid}/task/{task}/children").split())
    except (FileNotFoundError, ProcessLookupError):
        if os.path.exists(f"/proc/self/task/{os.getpid()}/children"):
            return found  # the process, or one of its threads, ended while we read
        # A kernel without CONFIG_PROC_CHILDREN: psutil reads all of /proc instead. Imported here,
        # as it is 1.6 MB of the parent's 12 and most kernels never come here.
        import psutil  # noqa: PLC0415

        try:
            return [child.pid for child in psutil.Process(pid).children()]
        except psutil.NoSuchProcess:
            return []
    return found


def descendants(pid: int) -> list[int]:
    """Return all that descend from a process, parents before their children."""
    found: list[int] = []
    waiting = children(pid)
    while waiting:
        child = waiting.pop()
        if child not in found:
            found.append(child)
            waiting += children(child)
    return found


def oom_score(pid: int) -> int:
    """Return what the kernel's OOM killer adds to the score of a process; 0 when it has ended."""
    try:
        return int(_read(f"/proc/{pid}/oom_score_adj"))
    except (FileNotFoundError, ProcessLookupError):
        return 0


def tree_rss_bytes(pid: int, below: list[int] | None = None, statm_fd: int = -1) -> int:
    """Return the sum of resident bytes of a process and all its descendants (`below`, where known).

    Pages that a fork shares are counted once a process: the sum is an upper bound, and the
    ceiling errs on the side of ending too early.
    """
    return rss_bytes(pid, statm_fd) + sum(map(rss_bytes, descendants(pid) if below is None else below))


def data_bytes() -> int:
    """Return what RLIMIT_DATA counts of this process (nearly: the stack is in it too)."""
    return int(_read("/proc/self/statm").split()[5]) * _PAGE_BYTES


def own_peak_rss_bytes() -> int:
    """Return the largest RSS that this process ever had: VmHWM, as getrusage counts a parent's peak in."""
    for line in _read("/proc/self/status").splitlines():
        if line.startswith(b"VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def random_uuid() -> str:
    """Return a random UUID (RFC 9562, version 4): `import uuid` brings `platform` along, half a megabyte."""
    bits = int.from_bytes(os.urandom(16), "big") & ~(0xF << 76) & ~(0b11 << 62) | 0x4 << 76 | 0b10 << 62
    text = f"{bits:032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def data_limit_bytes(pid: int) -> int:
    """Return the soft RLIMIT_DATA of a process, -1 for none. Raises OSError when it has ended."""
    (line,) = [line for line in _read(f"/proc/{pid}/limits").splitlines() if line.startswith(b"Max data size")]
    soft = line.split()[3]
    return -1 if soft == b"unlimited" else int(soft)


def with_data_limit(limit_bytes: int) -> set[int]:
    """Return all processes of the machine that have this very soft RLIMIT_DATA."""
    found = set()
    for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
        try:
            if data_limit_bytes(pid) == limit_bytes:
                found.add(pid)
        except (OSError, ValueError):
            pass  # it has ended
    return found


def ends_within(pidfds: Iterable[int], timeout_s: float | None) -> bool:
    """Return whether one of these processes has ended, or does within that time; None is for ever."""
    poller = select.poll()
    for fd in pidfds:
        poller.register(fd, select.POLLIN)
    return bool(poller.poll(None if timeout_s is None else timeout_s * 1000))


def kill_tree(pid: int) -> None:
    """Send SIGKILL to an unreaped worker and to all that descend from it.

    The worker is stopped first, then what it started, until a listing shows nobody new:
    a process that is stopped can't fork past the list. The worker is killed last, as its
    children stay below it for just as long as it lives.
    """
    send([pid], signal.SIGSTOP)
    stopped: list[int] = []
    for _ in range(100):  # a fork bomb gains nothing: what escapes is adopted, and ended then
        new = [child for child in descendants(pid) if child not in stopped]
        if not new:
            break
        send(new, signal.SIGSTOP)
        stopped += new
    send(stopped, signal.SIGKILL)
    send([pid], signal.SIGKILL)


def send(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to each of these processes that still lives."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass  # it ended in the meantime, which is what we want
