"""An env file: `NAME=value` lines, as docker and systemd read them. Never imported in the service."""

import io
import os

from dotenv import dotenv_values


def overlay(path: str | None) -> dict[str, str]:
    """Return what the file sets and the environment does not: the environment wins.

    Raises OSError, or ValueError for what is no text.
    """
    if path is None:
        return {}
    with open(path, encoding="utf-8") as file:
        text = file.read()
    values = dotenv_values(stream=io.StringIO(text.replace("\0", "\N{REPLACEMENT CHARACTER}")), interpolate=False)
    return {name: value for name, value in values.items() if value is not None and name not in os.environ}
