"""Files that are replaced whole: whoever reads them sees the old content or the new one."""

import os


def replace(path: str, content: bytes, mode: int) -> None:
    """Write a file beside, and put it in the place. Raises OSError; then the old one stays."""
    new = f"{path}.new"
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        try:
            os.fchmod(fd, mode)  # whatever the umask, or the file that was left there, says
            with memoryview(content) as rest:
                at = 0
                while at < len(rest):
                    at += os.write(fd, rest[at:])  # a disk that is nearly full takes a part, and then raises
        finally:
            os.close(fd)
        os.replace(new, path)
    except OSError:
        os.unlink(new)
        raise
