"""One supervisor to a state directory: a lock that the kernel drops with its holder."""

import fcntl
import os


class HeldError(Exception):
    """Another instance holds the state directory; the text says which."""


def take(state_dir: str) -> int:
    """Make the state directory (mode 0700) if need be and lock it; return the descriptor.

    Raises HeldError, or OSError when the directory can't be made or written.
    """
    os.makedirs(state_dir, mode=0o700, exist_ok=True)
    path = os.path.join(state_dir, "lock")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        os.close(fd)
        raise HeldError(
            f"{state_dir} is held by another instance (pid {holder or 'unknown'}): stop that one first, "
            "or give this one a SUPERVISOR_STATE_DIR of its own"
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd
