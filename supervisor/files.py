"""Files that are replaced whole: whoever reads them sees the old content or the new one."""

import errno
import os


def replace(path: str, content: bytes, mode: int) -> None:
    """Write a file beside, and put it in the place. Raises OSError; then the old one stays.

    A link is followed. What is no regular file, as a device or a pipe, is not replaced.
    """
    path = os.path.realpath(path)
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(errno.EINVAL, "it is no regular file", path)
    # A name that nobody can guess and prepare, and two writers don't share; hidden, as a collector reads the folder.
    new = os.path.join(os.path.dirname(path), f".{os.path.basename(path)[:200]}.{os.urandom(6).hex()}")
    try:
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, mode)  # whatever the umask says
            file.write(content)
        os.replace(new, path)
    except OSError as error:
        os.unlink(new)
        raise OSError(error.errno, error.strerror, path) from None
