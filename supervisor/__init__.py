"""Run any callable in a fresh, bounded, supervised process, cycle after cycle.

This package knows processes, time and memory. It knows nothing of what a job does.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "CallCrashed",
    "CallFailed",
    "CallTimeout",
    "CeilingExceeded",
    "Isolated",
    "IsolationError",
    "KilledByKernel",
    "__version__",
    "isolate",
    "isolated",
]

if TYPE_CHECKING:
    from supervisor.isolation import (
        CallCrashed,
        CallFailed,
        CallTimeout,
        CeilingExceeded,
        Isolated,
        IsolationError,
        KilledByKernel,
        isolate,
        isolated,
    )


def __getattr__(name: str) -> Any:
    """Import the API when it is used: the service itself never does."""
    if name in __all__:
        from supervisor import isolation  # noqa: PLC0415

        return getattr(isolation, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
