"""Answers as JSON, CSV and XML, the way the server writes each."""

import csv
import io
import json
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Mapping, Sequence
from xml.sax.saxutils import escape

CONTENT_TYPES = {
    "json": "application/json; charset=utf-8",
    "csv": "text/csv; charset=utf-8",
    "xml": "text/xml; charset=utf-8",
}


def write(
    rows: Iterable[Mapping[str, object]],
    columns: Sequence[str],
    form: str,
    delimiter: str = ",",
    headers: Sequence[str] | None = None,
) -> Iterator[bytes]:
    """Yield the pieces of a list of rows in `form`; csv may have other headers than its columns."""
    if form == "json":
        return _json(rows)
    if form == "csv":
        return _csv(rows, columns, delimiter, headers or columns)
    return _xml(rows)


def _json(rows: Iterable[Mapping[str, object]]) -> Iterator[bytes]:
    before = "["
    for row in rows:
        yield (before + php_json(row)).encode()
        before = ","
    yield b"[]" if before == "[" else b"]"


def php_json(value: object) -> str:
    """Return JSON as PHP's json_encode writes it: no blanks, `/` escaped, ASCII only."""
    return json.dumps(value, separators=(",", ":")).replace("/", "\\/")


def _csv(
    rows: Iterable[Mapping[str, object]], columns: Sequence[str], delimiter: str, headers: Sequence[str]
) -> Iterator[bytes]:
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator="\n")
    first = True
    for row in rows:
        if first:
            writer.writerow(headers)
            first = False
        writer.writerow([row.get(column, "") for column in columns])
        yield buffer.getvalue().encode()
        buffer.seek(0)
        buffer.truncate()
    if first:
        yield b"\n"  # an empty export is one blank line


def _xml(rows: Iterable[Mapping[str, object]]) -> Iterator[bytes]:
    yield b'<?xml version="1.0" encoding="UTF-8" ?>\n<records>\n'
    for row in rows:
        cells = "".join(f"<{name}><![CDATA[{_cdata(value)}]]></{name}>" for name, value in row.items())
        yield f"<item>{cells}</item>\n".encode()
    yield b"</records>"


def _cdata(value: object) -> str:
    return str(value).replace("]]>", "]]]]><![CDATA[>")


def error(text: str, form: str) -> bytes:
    """Return the body of an error in the returnFormat."""
    if form == "json":
        return php_json({"error": text}).encode()
    if form == "csv":
        return f"ERROR: {text}".encode()
    return f'<?xml version="1.0" encoding="UTF-8" ?><hash><error>{escape(text)}</error></hash>'.encode()


def read_rows(text: str, form: str, delimiter: str = ",") -> list[dict[str, str]]:
    """Return the rows of imported data. Raises ValueError when they can't be read."""
    if form == "json":
        try:
            data = json.loads(text)
        except RecursionError:
            raise ValueError("nested too deep") from None
        if isinstance(data, dict):
            data = [data]
        if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
            raise ValueError("not a list of objects")
        return [{str(k): "" if v is None else str(v) for k, v in row.items()} for row in data]
    if form == "csv":
        return [
            {str(k): v or "" for k, v in row.items() if k is not None}
            for row in csv.DictReader(io.StringIO(text), delimiter=delimiter)
        ]
    try:
        root = ET.fromstring(text.encode())  # noqa: S314 - expat refuses entity bombs since 2.4
    except ET.ParseError as problem:
        raise ValueError(str(problem)) from None
    return [{cell.tag: cell.text or "" for cell in item} for item in root.iter("item")]
