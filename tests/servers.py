"""The processes that serve a whole session of tests (a module of its own: pytest imports a conftest twice)."""

PIDS: set[int] = set()
