"""Split a JSON array into its rows as it arrives, in bounded memory, each of them checked and left as it came.

msgspec (a C library) finds where each row ends without making Python objects of its values, ten
times as fast as the standard library's decoder makes them. What it does not see is seen here: a
key that comes twice, bytes that are no UTF-8, a body that goes on.
"""

import codecs
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from worker.errors import AnswerCutOff, AnswerMalformed, NotRedcap, SyncError

PART_BYTES = 262_144  # decoded at once
ROW_MAX_BYTES = 64 * 1024 * 1024  # one row; a REDCap note holds at most some MB
OBJECT_MAX_BYTES = 4_000_000
_BLANKS = b" \t\r\n"
_CUTS_TRIED = 20
_REMEDY = (
    "check REDCAP_API_URL in a browser; if it is right, the server is in maintenance, its database is down, "
    "or a proxy asks for a login"
)
_ADMINISTRATOR = "REDCap makes no such answer: ask the server's administrator what stands before it"

Row = dict[str, Any]
Read = Callable[[], bytes]  # the next piece of the body; empty at its end
OnError = Callable[[str], SyncError]  # makes the exception of the server's own error object

_array = msgspec.json.Decoder(list[msgspec.Raw])
_any = msgspec.json.Decoder(msgspec.Raw)


def rows(read: Read, on_error: OnError) -> Iterator[bytes]:
    """Yield the objects of the array that `read` delivers, as the JSON they are.

    They count only when the iterator has ended: a body that is cut off raises AnswerCutOff
    after rows that are complete. Raises AnswerMalformed, NotRedcap, AnswerCutOff.
    """
    start = _begin(read)
    if start.startswith(b"{"):
        raise on_error(_error_text(start, read))
    if not start.startswith(b"["):
        raise _no_json(start, read)
    rest = start[1:]
    enough = PART_BYTES
    while piece := read():
        rest = (rest + piece).lstrip(_BLANKS)
        if len(rest) < enough:
            continue
        found, rest = _complete(rest)
        yield from found
        enough = max(PART_BYTES, 2 * len(rest))  # so that a long row costs linear time
        if len(rest) > ROW_MAX_BYTES:
            raise AnswerMalformed(f"a row of the server's answer is longer than {ROW_MAX_BYTES:,} bytes")
    yield from _rows(b"[" + rest)


def _complete(text: bytes) -> tuple[list[bytes], bytes]:
    """Return the rows that are there as a whole, and the rest.

    A row ends where another begins with the first one's first key. In a text value that can't
    stand: its quotes would be escaped.
    """
    head = text[: text.find(b":") + 1]
    if not head.startswith(b"{"):
        return [], text
    ends = [match.span() for match in re.finditer(rb"\}[ \t\r\n]*,[ \t\r\n]*(?=" + re.escape(head) + b")", text)]
    for end, begin in ends[: -_CUTS_TRIED - 1 : -1]:
        try:
            return _rows(b"[" + text[: end + 1] + b"]"), text[begin:]
        except AnswerCutOff:
            pass  # a list of objects inside a row: what that is, its whole row tells
    return [], text


def _rows(text: bytes) -> list[bytes]:
    """Return the rows of a whole array. Raises AnswerCutOff when it is none."""
    found = [bytes(raw) for raw in _checked(_array, text)]
    if not all(row.startswith(b"{") for row in found):
        raise AnswerMalformed("the server's list holds something else where a row should be")
    return found


def _checked(decoder: msgspec.json.Decoder[Any], text: bytes) -> Any:
    try:
        found = decoder.decode(text)
        text.decode()  # what is skipped is not looked at: any bytes would do
    except msgspec.DecodeError as error:
        raise _malformed(str(error)) from None
    except RecursionError:
        raise AnswerMalformed(
            f"the server's answer is nested deeper than any REDCap answer. {_ADMINISTRATOR}"
        ) from None
    except UnicodeDecodeError:
        raise AnswerMalformed(
            "the server's answer is not UTF-8: a field holds bytes of another encoding; "
            "REDCap's Data Quality page, or a CSV export, shows which"
        ) from None
    return found


def _malformed(what: str) -> SyncError:
    """Return the error that msgspec's words mean: they quote no value."""
    if "truncated" in what:
        return AnswerCutOff(
            "the server's answer ended in the middle of its list: it ran out of memory or time, or a proxy cut it off. "
            "Make REDCAP_BATCH_SIZE smaller"
        )
    if "trailing characters" in what:
        return AnswerMalformed(
            "the server's answer goes on behind its end: PHP printed a warning, or a proxy added something; "
            "the administrator of the REDCap server finds it in the server's log"
        )
    return AnswerMalformed(
        f"the server's answer is broken JSON: {what.removeprefix('JSON is malformed: ')}. {_ADMINISTRATOR}"
    )


def decoded(row: bytes) -> Row:
    """Return a row as a dict. Raises AnswerMalformed for a key that comes twice."""
    try:
        answer = json.loads(row, object_pairs_hook=_object)
    except ValueError:  # an integer of more digits than CPython reads
        raise AnswerMalformed(f"the server's answer holds a number of thousands of digits. {_ADMINISTRATOR}") from None
    assert isinstance(answer, dict)
    return answer


def _object(pairs: list[tuple[str, Any]]) -> Row:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise AnswerMalformed(
            "a row of the server's answer has a key twice: which value counts can't be known. " + _ADMINISTRATOR
        )
    return made


def single(read: Read, on_error: OnError) -> Row:
    """Return the one small object that `read` delivers, as content=project answers.

    Raises what `rows` raises, and AnswerMalformed for anything but one object.
    """
    start = _begin(read)
    if start.startswith(b"["):
        raise AnswerMalformed("the server sent a list where one object should be")
    if not start.startswith(b"{"):
        raise _no_json(start, read)
    answer = _small_object(start, read)
    if isinstance(answer.get("error"), str):
        raise on_error(answer["error"])
    return answer


def _begin(read: Read) -> bytes:
    """Return the beginning of the body: without a byte order mark, and without blanks."""
    start = b""
    while piece := read():
        start = (start + piece).lstrip(_BLANKS)
        begun = start.removeprefix(codecs.BOM_UTF8).lstrip(_BLANKS)
        if begun and not codecs.BOM_UTF8.startswith(begun):
            return begun
    return start


def _error_text(start: bytes, read: Read) -> str:
    text = _small_object(start, read).get("error")
    if not isinstance(text, str):
        raise AnswerMalformed("the server sent an object where a list should be")
    return text


def _small_object(start: bytes, read: Read) -> Row:
    while len(start) < OBJECT_MAX_BYTES and (piece := read()):
        start += piece
    return decoded(bytes(_checked(_any, start)))


def _no_json(start: bytes, read: Read) -> SyncError:
    while len(start) < 2_000 and (piece := read()):
        start += piece
    if not start:
        return AnswerCutOff("the server sent an empty body: it ran out of memory or time for the request")
    what = "an error as text" if start.startswith(b"ERROR:") else "something else"
    if start.startswith(b"<"):
        what = "a web page"
    elif b"could not connect" in start[:2_000]:
        what = "the text of a failed database connection"
    return NotRedcap(f"the server sent {what} instead of JSON: {_REMEDY}")
