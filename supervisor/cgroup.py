"""Our control group as the kernel shows it: whom its OOM killer ended, and what may be held."""

import os
from collections.abc import Iterator

ROOT = "/sys/fs/cgroup"


def oom_kills() -> int | None:
    """Return how many processes of this process's control group the OOM killer has ended so far.

    None where no memory controller tells: a cause is then not known, and not guessed. The
    counter of the whole machine (/proc/vmstat) would not say whose process it was.
    """
    # Hierarchical: it counts what ended in groups below ours as well (cgroup v2, memory.events).
    for folder, version in _groups():
        for line in _read(folder, "memory.events" if version == 2 else "memory.oom_control").splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return None


def memory_limit() -> tuple[int | None, str]:
    """Return the smallest limit in bytes of our group and those above it, and the file that has it."""
    found: list[tuple[int, str]] = []
    for folder, version in _groups():
        name = "memory.max" if version == 2 else "memory.limit_in_bytes"
        above = folder
        while len(above) >= len(ROOT):
            if (text := _read(above, name).strip()).isdecimal():
                found.append((int(text), os.path.join(above, name)))
            above = os.path.dirname(above)
    return min(found, default=(None, ""))


def ends_whole_group() -> bool:
    """Return whether the OOM killer, when it comes, ends all of our group (memory.oom.group)."""
    return any(version == 2 and _read(folder, "memory.oom.group").strip() == "1" for folder, version in _groups())


def path_parts() -> list[str]:
    """Return the names of the groups that we are in, from the outermost on."""
    return list(dict.fromkeys(part for folder, _ in _groups() for part in folder.split("/") if part))


def _groups() -> Iterator[tuple[str, int]]:
    """Yield the folders of our groups that may have a memory controller, with the version."""
    for line in _read("/proc/self", "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield os.path.join(ROOT, path.lstrip("/")).rstrip("/"), 2
        elif "memory" in controllers.split(","):
            yield os.path.join(ROOT, "memory", path.lstrip("/")).rstrip("/"), 1


def _read(folder: str, name: str) -> str:
    try:
        with open(os.path.join(folder, name), encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""  # not mounted here, or not ours to read
