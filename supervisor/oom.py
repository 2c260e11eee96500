"""The kernel's own account of whom its OOM killer ended in our control group."""

import os


def kills() -> int | None:
    """Return how many processes of this process's control group the OOM killer has ended so far.

    None where no memory controller tells: a cause is then not known, and not guessed. The
    counter of the whole machine (/proc/vmstat) would not say whose process it was.
    """
    for path, key in _accounts():
        try:
            with open(path, encoding="ascii") as account:
                for line in account:
                    name, _, value = line.partition(" ")
                    if name == key:
                        return int(value)
        except OSError:
            continue  # not mounted here, or not ours to read
    return None


def _accounts() -> list[tuple[str, str]]:
    """Return the files that may tell: version 2's, then version 1's of this process's groups."""
    found: list[tuple[str, str]] = []
    try:
        with open("/proc/self/cgroup", encoding="utf-8") as groups:
            lines = groups.read().splitlines()
    except OSError:
        return found
    for line in lines:
        _, controllers, path = line.split(":", 2)
        path = path.lstrip("/")
        if not controllers:
            # Hierarchical: it counts what ended in groups below ours as well (cgroup v2, memory.events).
            found.append((os.path.join("/sys/fs/cgroup", path, "memory.events"), "oom_kill"))
        elif "memory" in controllers.split(","):
            found.append((os.path.join("/sys/fs/cgroup/memory", path, "memory.oom_control"), "oom_kill"))
    return found
