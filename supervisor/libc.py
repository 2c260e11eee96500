"""The calls of the C library that Python has no name for (numbers from <linux/prctl.h>)."""

import ctypes
import os

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)


def _set(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}, {value}): {os.strerror(code)}")


def die_with_parent(signal_number: int) -> None:
    """Have the kernel send a signal when the thread that forked this process ends.

    Cleared by every fork; kept over exec but for set-uid programs. The parent may have ended
    before the call: compare `os.getppid()` afterwards.
    """
    _set(_PR_SET_PDEATHSIG, signal_number)


def forbid_dumps() -> None:
    """Forbid core dumps, piped ones too, and other processes of this user to read the memory.

    /proc/self then belongs to root: do first whatever must be written there.
    """
    _set(_PR_SET_DUMPABLE, 0)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends, instead of init."""
    _set(_PR_SET_CHILD_SUBREAPER, 1)


def trim_heap() -> None:
    """Give free pages of the heap back to the system, where the C library can (glibc, malloc_trim(3)).

    Once, behind the imports: it is some 0.5 MB of what the supervisor would hold for ever.
    """
    trim = getattr(_libc, "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
