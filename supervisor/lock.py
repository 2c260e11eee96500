"""One supervisor to a state directory: a lock that the kernel drops with its holder."""

import fcntl
import os
import time

LOOKS, LOOK_S = 5, 0.02


class HeldError(Exception):
    """Another instance holds the state directory; the text says which."""


def take(state_dir: str) -> int:
    """Make the state directory (mode 0700) if need be and lock it; return the descriptor.

    Raises HeldError, or OSError when the directory can't be made or written.
    """
    os.makedirs(state_dir, mode=0o700, exist_ok=True)
    path = os.path.join(state_dir, "lock")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not _taken(fd):
        pid = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        os.close(fd)
        raise HeldError(
            f"{state_dir} is held by another instance (pid {pid or 'unknown'}): stop that one first, "
            "or give this one a SUPERVISOR_STATE_DIR of its own"
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def _taken(fd: int) -> bool:
    for _ in range(LOOKS):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOOK_S)  # `holder` has it for a moment
        else:
            return True
    return False


def holds(fd: int, state_dir: str) -> bool:
    """Return whether the directory's lock is still the file that we hold: it may have been removed, and made anew."""
    try:
        there = os.stat(os.path.join(state_dir, "lock"))
    except OSError:
        return False
    return os.path.samestat(there, os.fstat(fd))


def holder(state_dir: str) -> int | None:
    """Return the pid of the instance that holds the state directory, None where there is none.

    Raises OSError when we may not look.
    """
    try:
        fd = os.open(os.path.join(state_dir, "lock"), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(fd, 32, 0).strip()
        return int(text) if text.isdigit() else 0
    else:
        return None
    finally:
        os.close(fd)
