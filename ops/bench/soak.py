"""The parent's memory over 10,000 cycles, each in a fresh process. Goal: flat within 128 KiB."""

from ops.bench import parent

CYCLES = 10_000
GOAL_GROWTH_KIB = 128


def main() -> int:
    """Measure; return 0 when the goals are met."""
    return parent.main(CYCLES, GOAL_GROWTH_KIB)
