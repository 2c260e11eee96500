"""When to look at a worker's memory again.

Pure: no clock, no process, no logging.
"""

# A process that writes new pages at full speed grew by 1.7 GB/s where it was measured
# (ops/bench/ceiling): with less than a machine's own speed in mind a look comes too late.
GROWTH_MAX_BYTES_PER_S = 3_000_000_000
LOOK_MIN_S = 0.001  # a look at one process costs some 15 us, so this is at most 2 % of a core
LOOK_MAX_S = 0.5
LOOK_IDLE_S = 10.0  # a worker that is kept between cycles

LAST_WORDS_SHARE = 0.9


def next_look_s(rss_bytes: int, ceiling_bytes: int) -> float:
    """Return the seconds until a tree of `rss_bytes` must be looked at again.

    The headroom, at the fastest growth there is: a tree far below its ceiling is looked at
    twice a second, one that is close to it a thousand times.
    """
    headroom_bytes = max(0, ceiling_bytes - rss_bytes)
    return min(LOOK_MAX_S, max(LOOK_MIN_S, headroom_bytes / GROWTH_MAX_BYTES_PER_S))


def recycle_reason(
    *, outcome: str, cycles_served: int, cycles_per_worker: int, rss_bytes: int, recycle_rss_bytes: int
) -> str | None:
    """Return why a worker is not kept after a cycle; None when it is, or would be if the service went on."""
    if outcome not in ("ok", "stopped"):
        return "failure"
    if cycles_per_worker == 1:
        return "fresh"
    if cycles_per_worker and cycles_served >= cycles_per_worker:
        return "count"
    if rss_bytes > recycle_rss_bytes:
        return "rss"
    return None
