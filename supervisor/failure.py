"""An exception as a report may show it: type, message, and where; never a value of a variable.

Runs in the child. A message is what the job chose to say, so a job that handles secret things
must choose its messages (the REDCap job does); tokens and passwords are masked all the same.
"""

import json
import os
import re
import traceback
from collections.abc import Mapping
from types import TracebackType
from typing import Any

TYPE_MAX_CHARACTERS = 200
MESSAGE_MAX_CHARACTERS = 1_000
TRACEBACK_MAX_FRAMES = 30
TRACEBACK_MAX_CHARACTERS = 16_000  # with the message and JSON's escapes it still fits a packet

_SECRET_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIALS?)$", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(?<=://)([^/\s:@]*):([^/\s@]+)@")
_QUERY_SECRET = re.compile(r"([?&](?:\w*password|passwd|token|secret)=)[^&\s]+", re.IGNORECASE)
# A REDCap token has 32 hexadecimal digits, its super token 64, and so have most API keys.
_HEX_SECRET = re.compile(r"(?<![0-9A-Za-z])(?:[0-9A-Fa-f]{32}){1,2}(?![0-9A-Za-z])")
MASK = "***"


def _secrets(more: Mapping[str, str], least_characters: int = 6) -> set[str]:
    found = {*os.environ.items(), *more.items()}
    return {value for name, value in found if len(value) >= least_characters and _SECRET_NAME.search(name)}


def mask(text: str, more: Mapping[str, str] = {}) -> str:
    """Return `text` with every secret of the environment (and of `more` of it), and what looks like one, masked."""
    for secret in _secrets(more):
        text = re.sub(re.escape(secret), MASK, text, flags=re.IGNORECASE)
    text = _QUERY_SECRET.sub(rf"\1{MASK}", _URL_PASSWORD.sub(rf"\1:{MASK}@", text))
    return _HEX_SECRET.sub(MASK, text)


def mask_values(value: Any) -> Any:
    """Return what JSON has a form for without the secrets of the environment.

    A checksum in it stays, and a word that is somebody's short password: it may be a key.
    """
    text = before = json.dumps(value)
    for secret in _secrets({}, 12):
        text = re.sub(re.escape(json.dumps(secret)[1:-1]), MASK, text, flags=re.IGNORECASE)
    return value if text == before else json.loads(text)


def describe(error: BaseException, remark: str = "") -> dict[str, str]:
    """Return `type`, `message` and `traceback` of an exception, ready for the report."""
    try:
        message = str(error)
    except BaseException as second:  # a __str__ that fails is no reason to lose the report
        message = f"(its own text can't be made: {type(second).__name__})"
    message = mask(message)
    if len(message) > MESSAGE_MAX_CHARACTERS:
        message = message[:MESSAGE_MAX_CHARACTERS] + " (cut)"
    kind = mask(type(error).__qualname__)[:TYPE_MAX_CHARACTERS]
    return {"type": kind, "message": message + remark, "traceback": mask(_frames_of(error))}


def _frames_of(error: BaseException) -> str:
    """Return the chain of errors, the first cause first, as files, lines and functions."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain and len(chain) < 8:
        chain.append(link)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    text = "\n".join(
        f"{type(one).__qualname__[:TYPE_MAX_CHARACTERS]} in\n{_frames(one.__traceback__)}" for one in reversed(chain)
    )
    return text if len(text) <= TRACEBACK_MAX_CHARACTERS else "(cut)…" + text[-TRACEBACK_MAX_CHARACTERS:]


def _frames(trace: TracebackType | None) -> str:
    # Source lines would be read from disk, which may hold a newer version than the one that ran.
    frames = [
        frame
        for frame in traceback.StackSummary.extract(traceback.walk_tb(trace), lookup_lines=False, capture_locals=False)
        if not frame.filename.startswith("<frozen importlib")  # ten of them an import, and none of a job's
    ]
    lines = [f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}' for frame in frames]
    if len(lines) > TRACEBACK_MAX_FRAMES:
        half = TRACEBACK_MAX_FRAMES // 2
        lines = [*lines[:half], f"  ({len(lines) - 2 * half} frames left out)", *lines[-half:]]
    return "\n".join(lines)
