"""The API over HTTP."""

import contextlib
import email.utils
import random
import socket
import struct
import threading
import time
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from ops.sandbox import faults
from ops.sandbox.api import Answer, Api

BODY_MAX_BYTES = 64 * 1024 * 1024


class Server(ThreadingHTTPServer):
    """A REDCap server on loopback, with one project."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, api: Api, port: int = 0, fault_texts: list[str] | None = None) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.api = api
        self.faults = faults.Schedule(fault_texts or [])

    @property
    def url(self) -> str:
        """The address of the API."""
        return f"http://127.0.0.1:{self.server_address[1]}/api/"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that hang up: that is what the tests make them do."""


@contextlib.contextmanager
def running(api: Api, *, port: int = 0, fault_texts: list[str] | None = None) -> Iterator[Server]:
    """Serve in a thread for the length of a `with`."""
    server = Server(api, port, fault_texts)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def churn(api: Api, rate_per_s: float, seed: int, stop: threading.Event) -> None:
    """Change records at a rate until `stop` is set."""
    chance = random.Random(seed)
    while not stop.wait(1 / rate_per_s):
        with api.lock:
            api.changes.churn(chance)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "Apache"
    sys_version = ""
    server: Server
    timeout = 60

    def setup(self) -> None:
        super().setup()
        # Headers and body are two writes: with Nagle's algorithm each answer would take 40 ms.
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def date_time_string(self, timestamp: float | None = None) -> str:
        """Return the server's clock, with its skew."""
        if timestamp is None:
            timestamp = self.server.api.server_utc().timestamp()
        return email.utils.formatdate(timestamp, usegmt=True)

    def do_POST(self) -> None:
        """Answer an API call."""
        length = self.headers.get("Content-Length")
        if length is None:
            self._send(faults.page(411, "Length Required"))
            self.close_connection = True
            return
        body = self.rfile.read(min(int(length), BODY_MAX_BYTES))
        if self.path.partition("?")[0] not in ("/api/", "/api/index.php"):
            self._send(faults.page(404, "Not Found"))
            return
        try:
            answer = self.server.api.answer(body.decode("utf-8", "replace"))
        except Exception:
            traceback.print_exc()  # a defect of the sandbox: its user sees it, the client gets an answer
            self._send(faults.page(500, "Internal Server Error"))
            return
        self._send(self.server.faults.apply(answer))

    def do_GET(self) -> None:
        """Answer as the server answers a browser: with a page, or that it takes no GET."""
        if self.path.partition("?")[0] in ("/api/", "/api/index.php"):
            text = b'{"error":"The requested method is not implemented."}'
            self._send(faults.wire(Answer(501, "application/json; charset=utf-8", text)))
        else:
            self._send(faults.page(404, "Not Found"))

    def _send(self, wire: faults.Wire) -> None:
        try:
            self.send_response(wire.status)
            for name, value in wire.headers.items():
                self.send_header(name, value)
            if wire.length is None:
                self.send_header("Connection", "close")
                self.close_connection = True
            else:
                self.send_header("Content-Length", str(wire.length))
            self.end_headers()
            for piece in wire.pieces:
                if wire.delay_s:
                    time.sleep(wire.delay_s)
                if piece.endswith(faults.RESET):
                    self.wfile.write(piece[: -len(faults.RESET)])
                    self._reset()
                    return
                self.wfile.write(piece)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client had enough

    def _reset(self) -> None:
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Log nothing: requests hold the token."""
