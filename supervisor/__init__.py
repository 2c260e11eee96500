"""Run any callable in a fresh, bounded, supervised process, cycle after cycle.

This package knows processes, time and memory. It knows nothing of what a job does.
"""

__version__ = "0.1.0"
__all__ = ["__version__"]
