"""A REDCap server that costs next to nothing: rows from a few made ones, so that the clients' own cost shows.

`python -m ops.bench.lean_server RECORDS FIELDS`: the address on the first line. A GET changes
one record in a hundred. Knows what the clients of the bench ask for, and nothing else.
"""

import json
import re
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl

FORM_FIELDS = 50
BODIES = 101
CHANGED_EVERY = 100
WORDS = ("", "1", "0", "2", "12.5", "2024-05-06", "stable", "reported, two weeks", "naïve “façade”", "107.25")


class Rows:
    """The rows as bytes: what stands behind the id, in each form."""

    def __init__(self, records: int, fields: int) -> None:
        self.ids = [str(number) for number in range(1, records + 1)]
        self.names: list[tuple[str, str]] = [("record_id", "form_01")]
        for number in range(1, fields):
            self.names.append((f"field_{number:04d}", f"form_{number // FORM_FIELDS + 1:02d}"))
        columns = [name for name, _ in self.names[1:]] + sorted({f"{form}_complete" for _, form in self.names})
        self.columns = columns
        self.generation = 0
        self.json: list[bytes] = []
        self.csv: list[bytes] = []
        for number in range(BODIES):
            values = {name: WORDS[(number * 7 + index * 3 + number * index) % 10] for index, name in enumerate(columns)}
            values |= {name: "2" for name in columns if name.endswith("_complete")}
            text = json.dumps(values, ensure_ascii=True, separators=(",", ":"))[1:]
            self.json.append(b'",' + text.encode())
            quoted = ",".join(f'"{value}"' if re.search(r"[^\w.-]", value) else value for value in values.values())
            self.csv.append(b"," + quoted.encode() + b"\n")

    def body(self, form: str, record_id: str) -> bytes:
        """Return what follows the id."""
        number = int(record_id)
        shift = self.generation if number % CHANGED_EVERY == 0 else 0
        return (self.json if form == "json" else self.csv)[(number + shift) % BODIES]

    def export(self, asked: dict[str, str], wanted: list[str]) -> Iterator[bytes]:
        """Yield the pieces of a record export."""
        ids = wanted or self.ids
        if asked.get("dateRangeBegin"):
            ids = [one for one in self.ids if int(one) % CHANGED_EVERY == 0] if self.generation else []
        only_id = asked.get("fields") == "record_id"
        if asked.get("format") == "csv":
            yield ("record_id" if only_id else ",".join(["record_id", *self.columns])).encode() + b"\n"
            for one in ids:
                yield one.encode() + (b"\n" if only_id else self.body("csv", one))
            return
        end = b'","redcap_data_access_group":""}' if asked.get("exportDataAccessGroups") == "true" else b'"}'
        before = b"["
        for one in ids:
            yield before + b'{"record_id":"' + one.encode() + (end if only_id else self.body("json", one))
            before = b","
        yield b"]" if ids else b"[]"

    def small(self, asked: dict[str, str]) -> object:
        """Return the answer to anything but a record export."""
        now = datetime.now(UTC)
        match asked.get("content"):
            case "project":
                return {"project_id": 1, "is_longitudinal": 0, "has_repeating_instruments_or_events": 0}
            case "metadata":
                rest = ("section_header", "field_label", "select_choices_or_calculations", "identifier")
                return [
                    {"field_name": name, "form_name": form, "field_type": "text", **dict.fromkeys(rest, "")}
                    | {"text_validation_type_or_show_slider_number": ""}
                    for name, form in self.names
                ]
            case "log" if asked.get("logtype") == "record_edit":
                changed = self.ids[CHANGED_EVERY - 1 :: CHANGED_EVERY] if self.generation else []
                return [{"timestamp": f"{now:%Y-%m-%d %H:%M}", "action": "Update", "record": one} for one in changed]
            case "log" if not asked.get("logtype"):
                return [{"timestamp": f"{now:%Y-%m-%d %H:%M}", "action": "Export record data (API)", "record": ""}]
            case "exportFieldNames":
                names = [*(name for name, _ in self.names), *self.columns[len(self.names) - 1 :]]
                return [{"original_field_name": n, "choice_value": "", "export_field_name": n} for n in names]
            case "instrument":
                forms = sorted({form for _, form in self.names})
                return [{"instrument_name": form, "instrument_label": form} for form in forms]
        return []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a client that asks often waits 40 ms each time
    rows: Rows

    def do_GET(self) -> None:
        """Change one record in a hundred."""
        self.rows.generation += 1
        self._answer([b"changed"])

    def do_POST(self) -> None:
        """Answer an API call."""
        pairs = parse_qsl(self.rfile.read(int(self.headers["Content-Length"])).decode(), keep_blank_values=True)
        asked = dict(pairs)
        if asked["content"] == "record":
            self._answer(self.rows.export(asked, [value for name, value in pairs if name.startswith("records")]))
        elif asked["content"] == "version":
            self._answer([b"14.7.3"])
        elif asked["content"] in ("event", "arm", "formEventMapping"):
            self._answer([b'{"error":"You cannot export events for classic projects"}'], 400)
        else:
            self._answer([json.dumps(self.rows.small(asked)).encode()])

    def _answer(self, pieces: Iterator[bytes] | list[bytes], status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        held: list[bytes] = []
        size = 0
        try:
            for piece in pieces:
                held.append(piece)
                size += len(piece)
                if size > 262_144:
                    self.wfile.write(b"%x\r\n%b\r\n" % (size, b"".join(held)))
                    held, size = [], 0
            if held:
                self.wfile.write(b"%x\r\n%b\r\n" % (size, b"".join(held)))
            self.wfile.write(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # a client that had seen enough, or no memory any more

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Log nothing."""


def main() -> None:
    """Serve until standard input ends."""
    _Handler.rows = Rows(int(sys.argv[1]), int(sys.argv[2]))
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_address[1]}/api/", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
