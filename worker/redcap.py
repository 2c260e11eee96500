"""The API client: one connection, a bounded rate, answers read as they arrive."""

import email.utils
import os
import random
import ssl
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Any, TypeVar

import requests
from urllib3 import Retry
from urllib3.exceptions import DecodeError, HTTPError, IncompleteRead, InvalidHeader, ProtocolError, ReadTimeoutError

from worker import errors, stream
from worker.settings import RATE_MAX, RedcapSettings

T = TypeVar("T")
Row = dict[str, Any]

PIECE_BYTES = 65_536
BODY_MIN_BYTES_PER_S = 10_000  # slower than that, for longer than the read time-out, is too slow
ANSWER_MAX_BYTES = 1_000_000_000  # the ids of ten million records
TABLE_MAX_ROWS = 200_000  # five times the longest dictionary that was heard of
BACK_OFF_FIRST_S = 1.0
BACK_OFF_MAX_S = 60.0
RATE_WINDOW_S = 60.0


@dataclass(slots=True)
class Counters:
    """What a cycle's requests came to."""

    requests: int = 0
    retries: int = 0
    bytes_received: int = 0
    answers: dict[str, int] = field(default_factory=dict)  # by HTTP status
    fetch_s: float = 0.0


@dataclass(slots=True)
class Client:
    """A project behind its token. `remaining_s` tells what is left of the cycle."""

    settings: RedcapSettings
    remaining_s: Callable[[], float]
    state_dir: str
    sleep: Callable[[float], None] = time.sleep
    chance: Callable[[], float] = random.random
    counters: Counters = field(default_factory=Counters)
    server_time: datetime | None = None  # the Date header of the last answer, UTC
    _sent: deque[float] = field(default_factory=deque)
    _session: requests.Session = field(default_factory=requests.Session)
    _sent_fd: int = -1

    def __post_init__(self) -> None:
        # The rate is kept across cycles too: this clock is the same in every process, until a reboot.
        self._sent_fd = os.open(os.path.join(self.state_dir, "requests"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        now_s = time.monotonic()
        kept = os.pread(self._sent_fd, RATE_MAX * 8, 0)
        before = array("d", kept[: len(kept) // 8 * 8])
        self._sent.extend(sorted(sent_s for sent_s in before if now_s - RATE_WINDOW_S < sent_s <= now_s))
        # Proxies are taken from the environment; passwords of a .netrc and its like are not.
        self._session.trust_env = False
        self._session.proxies = dict(requests.utils.get_environ_proxies(self.settings.api_url))
        self._session.headers["User-Agent"] = "redcap-sync-supervisor"
        self._session.verify = trusted(self.settings)

    def close(self) -> None:
        """Close the connection."""
        self._session.close()
        os.close(self._sent_fd)

    def table(self, content: str) -> list[Row]:
        """Return a small answer whole: metadata, events, a log's window."""

        def consume(rows: Iterator[bytes]) -> list[Row]:
            found = list(map(stream.decoded, islice(rows, TABLE_MAX_ROWS + 1)))
            if len(found) > TABLE_MAX_ROWS:
                raise errors.AnswerMalformed(
                    f"the server's {content} has more than {TABLE_MAX_ROWS:,} rows: a loop of its"
                )
            return found

        return self.read(content, {}, consume)

    def read(
        self,
        content: str,
        parameters: Mapping[str, str | Iterable[str]],
        consume: Callable[[Iterator[bytes]], T],
        *,
        divisible: bool = False,
    ) -> T:
        """Return what `consume` makes of the rows of an answer; after a fault it is called anew.

        With `divisible`, a fault that a smaller request may avoid is raised at once.
        """
        read = lambda response: consume(stream.rows(self._pieces(response), _refusal))  # noqa: E731
        return self._call(content, parameters, read, divisible=divisible)

    def one(self, content: str) -> Row:
        """Return an answer that is one object, as content=project gives it."""
        return self._call(content, {}, lambda body: stream.single(self._pieces(body), _refusal), divisible=False)

    def text(self, content: str) -> str:
        """Return an answer that is a line of text, as content=version gives it."""
        line = self._call(content, {}, lambda body: self._pieces(body)().decode("utf-8", "replace"), divisible=False)
        return "".join(c for c in line.strip()[:40] if c.isprintable())

    def _call(
        self,
        content: str,
        parameters: Mapping[str, str | Iterable[str]],
        read: Callable[[requests.Response], T],
        *,
        divisible: bool,
    ) -> T:
        form = _form(content, parameters, self.settings.api_token.get_secret_value())
        tries = 0
        while True:
            try:
                return self._once(form, read)
            except errors.SyncError as error:
                if divisible and error.smaller:
                    raise
                if not error.transient or tries >= self.settings.retries:
                    raise
                wait_s = self._wait_s(error, tries)
                if wait_s >= self.remaining_s():
                    raise
                tries += 1
                self.counters.retries += 1
                self._wait(lambda: self.sleep(wait_s))  # noqa: B023 - called at once

    def _wait(self, wait: Callable[[], T]) -> T:
        """Do what is but waiting for the server, and count its time."""
        started_s = time.monotonic()
        try:
            return wait()
        finally:
            self.counters.fetch_s += time.monotonic() - started_s

    def _wait_s(self, error: errors.SyncError, tries: int) -> float:
        if error.retry_after_s is not None:
            return error.retry_after_s
        return float(min(BACK_OFF_MAX_S, BACK_OFF_FIRST_S * 2**tries) * (0.5 + 0.5 * self.chance()))

    def _once(self, form: list[tuple[str, str]], read: Callable[[requests.Response], T]) -> T:
        self._keep_rate()
        self.counters.requests += 1
        connect_s, read_s = self.settings.timeout
        send = lambda: self._session.post(  # noqa: E731
            self.settings.api_url, data=form, stream=True, allow_redirects=False, timeout=(connect_s, read_s)
        )
        try:
            with self._wait(send) as response:
                self._note_time(response)
                try:
                    self._check_status(response)
                except errors.SyncError as error:
                    error.retry_after_s = _retry_after_s(response.headers.get("Retry-After"))
                    raise
                return read(response)
        except requests.exceptions.SSLError as error:
            reason = _reason(error)
            if "CERTIFICATE" not in reason and "certificate" not in reason:
                raise errors.TlsFailed(
                    f"the server does not speak TLS with us ({reason}): is it the right port?"
                ) from None
            raise errors.TlsFailed(
                f"the certificate of the server is not accepted ({reason}): if your institution signs "
                "its own, name its bundle in REDCAP_CA_BUNDLE"
            ) from None
        except (requests.exceptions.ReadTimeout, ReadTimeoutError):
            raise errors.ServerTooSlow(
                f"the server sent nothing for {read_s:g} s: make REDCAP_BATCH_SIZE smaller, or the second part "
                "of REDCAP_TIMEOUT longer"
            ) from None
        except requests.exceptions.ConnectTimeout:
            raise errors.ServerUnreachable(
                f"no connection to the server within {connect_s:g} s: check REDCAP_API_URL and the firewall"
            ) from None
        except (ProtocolError, IncompleteRead, DecodeError, requests.exceptions.ChunkedEncodingError):
            raise errors.AnswerCutOff(
                "the connection broke in the middle of the server's answer, or damaged it: the next try may do; if it goes on, make "
                "REDCAP_BATCH_SIZE smaller, or look at the proxies on the way"
            ) from None
        except (requests.exceptions.ConnectionError, OSError) as error:
            raise errors.ServerUnreachable(
                f"no connection to the server ({_reason(error)}): check REDCAP_API_URL, the name service and "
                "the network"
            ) from None
        except (HTTPError, requests.exceptions.RequestException) as error:
            raise errors.AnswerMalformed(
                f"the server's answer breaks HTTP ({type(error).__name__}): look at the proxies on the way"
            ) from None

    def _keep_rate(self) -> None:
        """Wait until one more request keeps below REDCAP_MAX_RATE in any minute."""
        now_s = time.monotonic()
        while self._sent and self._sent[0] <= now_s - RATE_WINDOW_S:
            self._sent.popleft()
        if len(self._sent) >= self.settings.max_rate:
            self.sleep(self._sent[0] + RATE_WINDOW_S - now_s)
            self._sent.popleft()
        self._sent.append(time.monotonic())
        os.ftruncate(self._sent_fd, os.pwrite(self._sent_fd, array("d", self._sent).tobytes(), 0))

    def _note_time(self, response: requests.Response) -> None:
        try:
            moment = email.utils.parsedate_to_datetime(response.headers.get("Date", ""))
        except ValueError:
            return  # a server without a Date header: `server_time` stays what it was
        self.server_time = moment.astimezone(UTC)

    def _check_status(self, response: requests.Response) -> None:
        status = response.status_code
        self.counters.answers[str(status)] = self.counters.answers.get(str(status), 0) + 1
        if status == 200:
            return
        if 300 <= status < 400:
            raise errors.RedirectRefused(
                f"the server redirects the API (status {status}): the token is not sent elsewhere. "
                "If REDCap has moved, set REDCAP_API_URL to its new address"
            )
        if status == 429:
            raise errors.TooManyRequests("the server answered 429, too many requests: make REDCAP_MAX_RATE smaller")
        text = self._error_text(response)
        said = _refusal(text) if text else None
        if isinstance(said, errors.OutOfServerMemory):
            raise said
        if status == 504:
            raise errors.ServerTooSlow(
                "the server's gateway gave up waiting (status 504): make REDCAP_BATCH_SIZE smaller"
            )
        if status in (408, 500, 502, 503):
            raise errors.ServerFailed(
                f"the server failed with status {status}: it is down, overloaded or in maintenance. "
                "It is tried again; ask its administrator if that does not end"
            )
        if status == 403 and text and "permissions to use the API" not in text:
            raise errors.RightMissing(f"the token's user has not the right for this: {errors.server_text(text)}")
        if status in (401, 403):
            raise errors.TokenRefused(
                f"the server refuses the token or the request (status {status}"
                + (f", {errors.server_text(text)!r}" if text else "")
                + "): check REDCAP_API_TOKEN, that it was not revoked, and that its user has the API Export right; "
                "a page instead of an error text means that a firewall or a ban stands before REDCap"
            )
        if status == 404:
            raise errors.ApiNotThere("the server has no API at this address (status 404): check REDCAP_API_URL")
        raise said or errors.RequestRefused(f"the server refuses the request (status {status}) and does not say why")

    def _error_text(self, response: requests.Response) -> str:
        """Return the text of the server's JSON error; empty when the body is something else."""
        if "json" not in response.headers.get("Content-Type", ""):
            return ""
        pieces = self._pieces(response)
        try:
            for _ in stream.rows(pieces, _SaidError):
                break
        except _SaidError as said:
            return str(said)
        except errors.SyncError:
            pass  # not an error of REDCap's: the status alone tells
        return ""

    def _pieces(self, response: requests.Response) -> Callable[[], bytes]:
        """Return a function that reads the body piece by piece, and gives up on a drip."""
        started_s = time.monotonic()
        _, read_s = self.settings.timeout
        received_bytes = 0

        def read() -> bytes:
            nonlocal received_bytes
            piece: bytes = self._wait(lambda: response.raw.read1(PIECE_BYTES, decode_content=True))
            received_bytes += len(piece)
            self.counters.bytes_received += len(piece)
            if received_bytes > ANSWER_MAX_BYTES:
                raise errors.AnswerMalformed(
                    f"the server's answer is longer than {ANSWER_MAX_BYTES:,} bytes: make REDCAP_BATCH_SIZE smaller; if that "
                    "does not help, its administrator must look at what it sends"
                )
            took_s = time.monotonic() - started_s
            if took_s > read_s + received_bytes / BODY_MIN_BYTES_PER_S:
                raise errors.ServerTooSlow(
                    f"the server sent {received_bytes:,} bytes in {took_s:.0f} s, too slow to wait for: "
                    "make REDCAP_BATCH_SIZE smaller"
                )
            if self.remaining_s() <= 0:
                raise errors.ServerTooSlow("the cycle's time limit came in the middle of an answer")
            return piece

        return read


def trusted(settings: RedcapSettings) -> str:
    """Return the file or folder of the certificates that are trusted."""
    return str(settings.ca_bundle or ssl.get_default_verify_paths().cafile or requests.utils.DEFAULT_CA_BUNDLE_PATH)


class _SaidError(errors.SyncError):
    """Carries the server's own words out of the reader."""


def _form(content: str, parameters: Mapping[str, str | Iterable[str]], token: str) -> list[tuple[str, str]]:
    """Return the variables of a POST; a list becomes `name[0]`, `name[1]` and so on.

    Raises ValueError for an empty list: the server takes it for all.
    """
    form = [("token", token), ("content", content), ("format", "json"), ("returnFormat", "json")]
    for name, value in parameters.items():
        if isinstance(value, str):
            form.append((name, value))
            continue
        items = list(value)
        if not items:
            raise ValueError(f"an empty list of {name} would be sent, which the server takes for all")
        form += [(f"{name}[{index}]", item) for index, item in enumerate(items)]
    return form


def _refusal(text: str) -> errors.SyncError:
    """Return the error that the server's own words mean."""
    if "ran out of server memory" in text:
        return errors.OutOfServerMemory("REDCap ran out of memory for the request: make REDCAP_BATCH_SIZE smaller")
    if "permissions to use the API" in text or "privileges" in text:
        return errors.TokenRefused(
            f"the server refuses the token or the request ({errors.server_text(text)!r}): check REDCAP_API_TOKEN, "
            "that it was not revoked, and that its user has the API Export right"
        )
    return errors.RequestRefused(f"the server refuses the request: {errors.server_text(text)!r}")


def _retry_after_s(text: str | None) -> float | None:
    try:
        return None if text is None else float(Retry().parse_retry_after(text))
    except InvalidHeader:
        return None


def _reason(error: BaseException) -> str:
    """Return the innermost cause by its type and system text; never the URL or the body."""
    seen: list[BaseException] = [error]
    while True:
        last = seen[-1]
        inner = [*last.args, getattr(last, "reason", None), last.__cause__, last.__context__]
        fresh = [one for one in inner if isinstance(one, BaseException) and one not in seen]
        if not fresh:
            break
        seen.append(fresh[0])
    innermost = seen[-1]
    text = getattr(innermost, "strerror", None) or getattr(innermost, "verify_message", None)
    return f"{type(innermost).__name__}: {text}" if text else type(innermost).__name__
