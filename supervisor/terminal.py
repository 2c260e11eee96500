"""What a short command prints, made in its child for the terminal of its parent. Never in the service."""

import io
import os
import shutil
import sys
from typing import Any

PLAIN_COLUMNS = 120  # where it is no terminal


def look() -> dict[str, Any]:
    """Return what a child must know of this process's terminal."""
    terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    columns = shutil.get_terminal_size().columns if terminal else PLAIN_COLUMNS
    return {"columns": columns, "color": terminal and not os.environ.get("NO_COLOR")}


def show(what: Any, look: dict[str, Any]) -> None:
    """Print a renderable of rich's at that width, with or without colours."""
    from rich.console import Console  # noqa: PLC0415 - the parent asks for `look` alone

    file = io.StringIO()
    color = look["color"]
    console = Console(
        file=file,
        width=look["columns"],
        force_terminal=color,
        color_system="standard" if color else None,
        highlight=False,
    )
    console.print(what)
    print(*(line.rstrip() for line in file.getvalue().splitlines()), sep="\n")


def bar(part: int, whole: int, cells: int) -> str:
    """Return a bar that is filled by the share of `part`; empty for no cells."""
    full = max(0, min(cells, cells * part // whole)) if whole else 0
    return "█" * full + "░" * (cells - full)


def mb(size_bytes: int, digits: int = 0) -> str:
    """Return a size in megabytes."""
    return f"{size_bytes / 1e6:,.{digits}f} MB"


def plain(text: object) -> str:
    """Return a text without what a terminal would obey: whatever comes from elsewhere goes through here."""
    return "".join(c if c.isprintable() else "\ufffd" for c in str(text))
