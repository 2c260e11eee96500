"""Misbehaviour on demand: what real servers, proxies and networks have been seen to do.

A fault takes the answer that was right and says what is sent instead.
"""

import gzip
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ops.sandbox.api import Answer

RESET = b"\x00reset"  # a marker: the connection is reset here


@dataclass(slots=True)
class Wire:
    """What goes over the wire."""

    status: int
    headers: dict[str, str]
    pieces: Iterator[bytes]
    length: int | None  # None: no Content-Length, the connection is closed at the end
    delay_s: float = 0.0  # before each piece
    chunks: list[bytes] = field(default_factory=list)


def wire(answer: Answer) -> Wire:
    """Return an answer as it is."""
    return Wire(answer.status, {"Content-Type": answer.content_type}, iter([answer.body]), len(answer.body))


def _body(answer: Answer, body: bytes, *, length: int | None = -1, delay_s: float = 0.0) -> Wire:
    size = len(body) if length == -1 else length
    return Wire(answer.status, {"Content-Type": answer.content_type}, iter([body]), size, delay_s)


def page(status: int, title: str, **headers: str) -> Wire:
    """Return an HTML page, as web servers and proxies send it."""
    body = f"<!DOCTYPE html><html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>".encode()
    fields = {"Content-Type": "text/html; charset=utf-8"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    return Wire(status, fields, iter([body]), len(body))


def _truncated(answer: Answer) -> Wire:
    return _body(answer, answer.body[: len(answer.body) // 2])


def _cut(answer: Answer) -> Wire:
    return _body(answer, answer.body[: len(answer.body) // 2] + RESET, length=len(answer.body))


def _drip(answer: Answer) -> Wire:
    pieces = (answer.body[i : i + 1] for i in range(len(answer.body)))
    return Wire(answer.status, {"Content-Type": answer.content_type}, pieces, len(answer.body), 1.0)


def _endless(answer: Answer) -> Wire:
    row = b'{"record_id":"1","note":"' + b"x" * 1000 + b'"},'
    pieces = itertools.chain([b"["], itertools.repeat(row))
    return Wire(200, {"Content-Type": answer.content_type}, pieces, None)


def _bomb(answer: Answer) -> Wire:
    body = gzip.compress(b"[" + b" " * 200_000_000 + b"]")
    return Wire(200, {"Content-Type": answer.content_type, "Content-Encoding": "gzip"}, iter([body]), len(body))


def _damaged(answer: Answer) -> Wire:
    body = gzip.compress(answer.body)
    body = body[:-8] + bytes(4) + body[-4:]  # its checksum
    return Wire(200, {"Content-Type": answer.content_type, "Content-Encoding": "gzip"}, iter([body]), len(body))


def _error_object(answer: Answer) -> Wire:
    return _body(Answer(200, answer.content_type, b""), b'{"error":"You do not have permissions to use the API"}')


def _out_of_memory(answer: Answer) -> Wire:
    text = (
        b'{"error":"REDCap ran out of server memory. The request cannot be processed. '
        b'Please try importing\\/exporting a smaller amount of data."}'
    )
    return _body(Answer(400, answer.content_type, b""), text)


def _lost_rows(answer: Answer) -> Wire:
    """Leave out the last half of an array's rows and say nothing."""
    rows = answer.body.split(b"},{")
    if len(rows) < 2:
        return _body(answer, b"[]" if answer.body.startswith(b"[") else answer.body)
    return _body(answer, b"},{".join(rows[: len(rows) // 2]) + b"}]")


def _duplicate_keys(answer: Answer) -> Wire:
    return _body(answer, answer.body.replace(b"[{", b'[{"record_id":"duplicate",', 1))


def _wrong_charset(answer: Answer) -> Wire:
    body = answer.body.replace(b"[{", b'[{"bad":"\xa0\xff",', 1)
    return _body(answer, body)


def _database_down(_: Answer) -> Wire:
    text = (
        b"The hostname (db.example.org) / username (redcap) / password (***) combination "
        b"could not connect to the MySQL server."
    )
    return _body(Answer(200, "text/html; charset=utf-8", b""), text)


FAULTS: dict[str, tuple[str, Callable[[Answer], Wire]]] = {
    "truncated": ("JSON that is cut in the middle, with the length of what is there", _truncated),
    "cut": ("the connection is reset in the middle of the body", _cut),
    "reset": ("the connection is reset before the first byte", lambda a: _body(a, RESET, length=len(a.body))),
    "empty": ("status 200 and an empty body", lambda a: _body(a, b"")),
    "html": ("a login page with status 200", lambda _: page(200, "Log In")),
    "maintenance": ("a maintenance page with status 503", lambda _: page(503, "REDCap is offline")),
    "database-down": ("status 200 and the text of a failed database connection", _database_down),
    "error-object": ("an error object with status 200 where an array should be", _error_object),
    "out-of-memory": ("REDCap ran out of server memory", _out_of_memory),
    "rubbish": ("an array followed by rubbish", lambda a: _body(a, a.body + b"<br>Warning: PHP")),
    "lost-rows": ("half of the rows are missing, and nothing says so", _lost_rows),
    "duplicate-keys": ("an object with a key twice", _duplicate_keys),
    "wrong-charset": ("bytes that are no UTF-8", _wrong_charset),
    "bom": ("a byte order mark before the JSON", lambda a: _body(a, b"\xef\xbb\xbf" + a.body)),
    "control-characters": (
        "raw control characters in a string",
        lambda a: _body(a, a.body.replace(b'":"', b'":"\x01', 1)),
    ),
    "deep": ("arrays nested 100,000 deep", lambda a: _body(a, b"[" * 100_000 + b"]" * 100_000)),
    "huge-number": ("a number of 10,000 digits", lambda a: _body(a, b"[" + b"9" * 10_000 + b"]")),
    "drip": ("one byte a second", _drip),
    "endless": ("a body without end", _endless),
    "bomb": ("200 MB of blanks in a compressed body", _bomb),
    "damaged": ("a compressed body with a wrong checksum", _damaged),
    "redirect": ("a redirect to another host", lambda _: page(302, "Moved", Location="http://127.0.0.2:9/api/")),
    "ban": ("the page of a banned address", lambda _: page(403, "Your IP address has been banned")),
    "429": ("too many requests", lambda _: page(429, "Too Many Requests")),
    "429-retry-after": (
        "too many requests, with Retry-After: 1",
        lambda _: page(429, "Too Many Requests", Retry_After="1"),
    ),
    "500": ("internal server error", lambda _: page(500, "Internal Server Error")),
    "502": ("bad gateway", lambda _: page(502, "Bad Gateway")),
    "503": ("service unavailable", lambda _: page(503, "Service Unavailable")),
    "504": ("gateway time-out", lambda _: page(504, "Gateway Time-out")),
}


class FaultError(Exception):
    """There is no such fault."""


class Schedule:
    """Which requests a fault spoils: `NAME`, every one; `NAME:EVERY`, every so many."""

    def __init__(self, texts: list[str]) -> None:
        self._entries: list[tuple[str, int]] = []
        self._count = 0
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """Add one. Raises FaultError."""
        name, _, every = text.partition(":")
        if name not in FAULTS:
            raise FaultError(f"there is no fault {name!r}; --list-faults names them")
        if every and (not every.isdigit() or int(every) < 1):
            raise FaultError(f"{text!r}: EVERY is a whole number from 1")
        self._entries.append((name, int(every or 1)))

    def clear(self) -> None:
        """Behave from now on."""
        self._entries.clear()

    def apply(self, answer: Answer) -> Wire:
        """Return what is sent for an answer."""
        self._count += 1
        for name, every in self._entries:
            if self._count % every == 0:
                return FAULTS[name][1](answer)
        return wire(answer)
