"""An exception as a report may show it: type, message, and where; never a value of a variable.

Runs in the child. A message is what the job chose to say, so a job that handles secret things
must choose its messages (the REDCap job does); tokens and passwords are masked all the same.
"""

import os
import re
import traceback
from types import TracebackType

MESSAGE_MAX_CHARACTERS = 1_000
TRACEBACK_MAX_FRAMES = 30
TRACEBACK_MAX_CHARACTERS = 16_000  # with the message and JSON's escapes it still fits a packet

_SECRET_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIALS?)$", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(?<=://)([^/\s:@]*):([^/\s@]+)@")
_QUERY_SECRET = re.compile(r"([?&](?:\w*password|passwd|token|secret)=)[^&\s]+", re.IGNORECASE)
# A REDCap token has 32 hexadecimal digits, its super token 64, and so have most API keys.
_HEX_SECRET = re.compile(r"(?<![0-9A-Za-z])(?:[0-9A-Fa-f]{32}){1,2}(?![0-9A-Za-z])")
MASK = "***"


def mask(text: str) -> str:
    """Return `text` with every secret of this process's environment, and what looks like one, masked."""
    for name, value in os.environ.items():
        if len(value) >= 6 and _SECRET_NAME.search(name):
            text = text.replace(value, MASK)
    text = _QUERY_SECRET.sub(rf"\1{MASK}", _URL_PASSWORD.sub(rf"\1:{MASK}@", text))
    return _HEX_SECRET.sub(MASK, text)


def describe(error: BaseException, remark: str = "") -> dict[str, str]:
    """Return `type`, `message` and `traceback` of an exception, ready for the report."""
    try:
        message = str(error)
    except BaseException as second:  # a __str__ that fails is no reason to lose the report
        message = f"(its own text can't be made: {type(second).__name__})"
    message = mask(message)
    if len(message) > MESSAGE_MAX_CHARACTERS:
        message = message[:MESSAGE_MAX_CHARACTERS] + " (cut)"
    return {"type": type(error).__qualname__, "message": message + remark, "traceback": _frames_of(error)}


def _frames_of(error: BaseException) -> str:
    """Return the chain of errors, the first cause first, as files, lines and functions."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain and len(chain) < 8:
        chain.append(link)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    text = "\n".join(f"{type(one).__qualname__} in\n{_frames(one.__traceback__)}" for one in reversed(chain))
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
