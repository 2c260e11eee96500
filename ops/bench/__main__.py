"""Run one of the proofs by name."""

import importlib
import sys

PROOFS = {
    "parent": "what the supervisor itself holds, and what 300 cycles add to it",
    "soak": "the same over 10,000 cycles (some minutes)",
    "methods": "what stays resident between cycles in each start method",
    "cycle": "what an empty cycle costs over a bare fork",
    "ceiling": "how far a runaway gets over its ceiling, and how fast it is gone",
    "sync": "records a second and memory of a sync, against PyCap (some minutes; [RECORDS ...])",
    "report": "how long the report of a year of cycles takes, and how large it is",
    "memory": "what a data frame, plain dicts and this hold over 48 cycles; draws the README's picture",
    "fleet": "200 projects over one, two and four Celery workers (some minutes; [PROJECTS])",
    "upsert": "which way into PostgreSQL is the fastest ([URL])",
    "peers": "empty cycles a second against others that start a process a task",
}


def main() -> int:
    """Run the proof that is named; return 0 when its goals are met."""
    if len(sys.argv) < 2 or sys.argv[1] not in PROOFS:
        print("usage: ops/start bench NAME\n" + "\n".join(f"  {name:<8} {text}" for name, text in PROOFS.items()))
        return 2
    return int(importlib.import_module(f"ops.bench.{sys.argv[1]}").main())


if __name__ == "__main__":
    sys.exit(main())
