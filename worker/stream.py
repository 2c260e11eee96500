"""Decode a JSON array row by row as it arrives, in bounded memory.

The standard library's decoder in a moving window. It sees what ijson, the usual choice, does not:
a key that comes twice (ijson keeps the last), nesting (quadratic time there), a number of
thousands of digits (a crash there).
"""

import codecs
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from worker.errors import AnswerCutOff, AnswerMalformed, NotRedcap, SyncError

ROW_MAX_CHARACTERS = 64 * 1024 * 1024  # one row; a REDCap note holds at most some MB
OBJECT_MAX_CHARACTERS = 1_000_000
# An incomplete token at the end of the window is at most a \uXXXX\uXXXX escape.
_TOKEN_MAX = 16
_BLANKS = re.compile(r"[ \t\r\n]*")
_REMEDY = (
    "check REDCAP_API_URL in a browser; if it is right, the server is in maintenance, its database is down, "
    "or a proxy asks for a login"
)

Row = dict[str, Any]
Read = Callable[[], bytes]  # the next piece of the body; empty at its end


def rows(read: Read, on_error: Callable[[str], SyncError]) -> Iterator[Row]:
    """Yield the objects of the array that `read` delivers.

    The rows count only when the iterator has ended: a body that is cut off raises
    AnswerCutOff after all complete rows. `on_error` makes the exception of the server's own
    error object. Raises AnswerMalformed, NotRedcap, AnswerCutOff.
    """
    window = _Window(read)
    first = window.next_character()
    if first == "{":
        raise on_error(_error_text(window))
    if first != "[":
        raise _no_json(window)
    window.position += 1
    if window.next_character() != "]":
        while True:
            yield window.take_row()
            following = window.next_character()
            if following == "]":
                break
            if following == "":
                raise AnswerCutOff("the server's answer ended in the middle of its list")
            if following != ",":
                raise AnswerMalformed("the server's list has something between two rows that is no comma")
            window.position += 1
            window.next_character()
    window.position += 1
    if window.next_character() != "":
        raise AnswerMalformed(
            "the server's answer goes on behind its list: PHP printed a warning, or a proxy added something; "
            "the administrator of the REDCap server finds it in the server's log"
        )


class _Window:
    """The part of the body that is not decoded yet."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")("strict")
        self._decoder = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant)
        self.text = ""
        self.position = 0
        self._ended = False

    def more(self) -> bool:
        """Read on; return whether there was anything."""
        if self._ended:
            return False
        piece = self._read()
        self._ended = not piece
        try:
            fresh = self._utf8.decode(piece, final=self._ended)
        except UnicodeDecodeError:
            if self._ended:
                raise AnswerCutOff("the server's answer ended in the middle of a character") from None
            raise AnswerMalformed(
                "the server's answer is not UTF-8: a field holds bytes of another encoding; "
                "REDCap's Data Quality page, or a CSV export, shows which"
            ) from None
        self.text = self.text[self.position :] + fresh
        self.position = 0
        return not self._ended

    def next_character(self) -> str:
        """Return the next character that is no blank, without taking it; empty at the end."""
        while True:
            self.position = _BLANKS.match(self.text, self.position).end()  # type: ignore[union-attr]
            if self.position < len(self.text):
                return self.text[self.position]
            if not self.more() and self.position >= len(self.text):
                return ""

    def take_row(self) -> Row:
        """Return the next object."""
        while True:
            try:
                row, end = self._decoder.raw_decode(self.text, self.position)
                break
            except json.JSONDecodeError as error:
                self._check(error)
            except RecursionError:
                raise AnswerMalformed("the server's answer is nested deeper than any REDCap answer") from None
            except ValueError:  # an integer of more digits than CPython reads
                raise AnswerMalformed("the server's answer holds a number of thousands of digits") from None
            # Twice as much before the next try, so that a long row costs linear time.
            had = len(self.text) - self.position
            while len(self.text) - self.position < 2 * had and self.more():
                if len(self.text) - self.position > ROW_MAX_CHARACTERS:
                    raise AnswerMalformed(f"a row of the server's answer is longer than {ROW_MAX_CHARACTERS:,}")
            if len(self.text) - self.position == had:
                raise AnswerCutOff("the server's answer ended in the middle of a row")
        if not isinstance(row, dict):
            raise AnswerMalformed(f"the server's list holds a {type(row).__name__} where a row should be")
        self.position = end
        return row

    def _check(self, error: json.JSONDecodeError) -> None:
        """Raise when the decoder stopped at a mistake, not at the end of what has arrived."""
        at_the_end = error.pos >= len(self.text) - _TOKEN_MAX
        if not at_the_end and not error.msg.startswith("Unterminated string"):
            what = error.msg.partition(" starting at")[0].partition(" at")[0]
            raise AnswerMalformed(f"the server's answer is broken JSON: {what}") from None


def _object(pairs: list[tuple[str, Any]]) -> Row:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise AnswerMalformed("a row of the server's answer has a key twice: which value counts can't be known")
    return made


def _no_constant(name: str) -> Any:
    raise AnswerMalformed(f"the server's answer holds {name}, which is no JSON")


def single(read: Read, on_error: Callable[[str], SyncError]) -> Row:
    """Return the one small object that `read` delivers, as content=project answers.

    Raises what `rows` raises, and AnswerMalformed for anything but one object.
    """
    window = _Window(read)
    if window.next_character() == "{":
        answer = _small_object(window)
        if isinstance(answer.get("error"), str):
            raise on_error(answer["error"])
        return answer
    if window.next_character() == "[":
        raise AnswerMalformed("the server sent a list where one object should be")
    raise _no_json(window)


def _error_text(window: _Window) -> str:
    text = _small_object(window).get("error")
    if not isinstance(text, str):
        raise AnswerMalformed("the server sent an object where a list should be")
    return text


def _small_object(window: _Window) -> Row:
    while len(window.text) < OBJECT_MAX_CHARACTERS and window.more():
        pass
    answer = window.take_row()
    if window.next_character() != "":
        raise AnswerMalformed("the server's answer goes on behind its object")
    return answer


def _no_json(window: _Window) -> SyncError:
    if window.next_character() == "":
        return AnswerCutOff("the server sent an empty body: it ran out of memory or time for the request")
    return NotRedcap(f"the server sent {_kind_of(window)} instead of JSON: {_REMEDY}")


def _kind_of(window: _Window) -> str:
    while len(window.text) < 2_000 and window.more():
        pass
    start = window.text[window.position : window.position + 2_000]
    if start.lstrip().startswith("<"):
        return "a web page"
    if "could not connect" in start:
        return "the text of a failed database connection"
    return "an error as text" if start.startswith("ERROR:") else "something else"
