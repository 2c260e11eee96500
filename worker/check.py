"""What `redcap-sync check` asks of the sync: the server, the token, the clocks, the sink. Changes nothing."""

import os
import re
import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import requests

from worker import project, settings
from worker.errors import CATALOGUE, ServerUnreachable, SyncError, TlsFailed, TokenRefused, ZoneWrong
from worker.ids import IdList
from worker.log_export import read_log, server_offset
from worker.project import Structure
from worker.reader import LOOKED_AT, Reader
from worker.redcap import Client, trusted
from worker.settings import RedcapSettings, SyncSettings
from worker.sink import rehearse

Line = dict[str, str]  # name, mark (ok, note, fault, skipped), found, remedy, code
Found = tuple[str, str, str]  # mark, found, remedy

ALL_S = 120.0
CONNECT_MAX_S, READ_MAX_S = 10.0, 60.0  # a check is no cycle: nobody waits five minutes for it
CERTIFICATE_DAYS = 21
SKEW_S = 120.0


def lines(state_dir: str) -> Iterator[Line]:
    """Yield a line for each thing that was looked at; what needs one that failed is skipped."""
    redcap, sync = settings.load()
    connect_s, read_s = redcap.timeout
    redcap = redcap.model_copy(
        update={"timeout": (min(connect_s, CONNECT_MAX_S), min(read_s, READ_MAX_S)), "retries": 0}
    )
    with ExitStack() as stack:
        # Nothing of the service's own files is touched: who checks may be another user.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="redcap-sync-check-"))
        until_s = time.monotonic() + ALL_S
        client = Client(redcap, lambda: until_s - time.monotonic(), folder)
        stack.callback(client.close)
        ids = IdList(folder)
        stack.callback(ids.close)
        look = _Look(redcap, client, ids)
        failed = ""
        for name, step in look.steps():
            if failed:
                yield _line(name, "skipped", f"not tried, as {failed} is at fault", "")
                continue
            made = _made(name, step)
            failed = name if made["mark"] == "fault" else ""
            yield made
    yield _made("sink", lambda: _sink(sync, state_dir))


def _line(name: str, mark: str, found: str, remedy: str, code: str = "") -> Line:
    return {"name": name, "mark": mark, "found": found, "remedy": remedy, "code": code}


def _made(name: str, step: Callable[[], Found]) -> Line:
    try:
        return _line(name, *step())
    except SyncError as error:
        code = type(error).__name__
        return _line(name, "fault", str(error), CATALOGUE[code][1], code)


def _sink(sync: SyncSettings, state_dir: str) -> Found:
    return "ok", f"{rehearse(sync.sink, state_dir)}; it takes our tables", ""


@dataclass(slots=True)
class _Look:
    """The steps, each of which needs those before it."""

    redcap: RedcapSettings
    client: Client
    ids: IdList
    structure: Structure = field(init=False)
    logging: bool = False

    def steps(self) -> list[tuple[str, Callable[[], Found]]]:
        """Return their names and what they do, in order."""
        return [
            ("name", self.name),
            ("TLS", self.tls),
            ("server", self.server),
            ("token", self.token),
            ("project", self.project),
            ("export right", self.export_right),
            ("logging right", self.logging_right),
            ("clock", self.clock),
            ("zone", self.zone),
        ]

    def _host(self) -> tuple[str, int]:
        parts = urlsplit(self.redcap.api_url)
        return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)

    def _proxy(self) -> str:
        url = requests.utils.select_proxy(self.redcap.api_url, requests.utils.get_environ_proxies(self.redcap.api_url))
        return urlsplit(url).hostname or "" if url else ""

    def name(self) -> Found:
        """Find the addresses of the host."""
        host, port = self._host()
        if proxy := self._proxy():
            return "ok", f"{host} is asked for through the proxy {proxy}", ""
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise ServerUnreachable(
                f"{host} has no address ({error.strerror}): look at the name in REDCAP_API_URL and at the name service"
            ) from None
        addresses = list(dict.fromkeys(str(address[4][0]) for address in found))
        return "ok", f"{host} is {', '.join(addresses[:4])}", ""

    def tls(self) -> Found:
        """Connect, and read the certificate."""
        host, port = self._host()
        if urlsplit(self.redcap.api_url).scheme == "http":
            if settings.is_loopback(host):
                return "ok", "none: it is this machine itself", ""
            return "note", "none: the token and the data go in the clear", "use https, and unset REDCAP_ALLOW_HTTP"
        if self._proxy():
            return "ok", "the certificate is looked at with the first request, through the proxy", ""
        where = trusted(self.redcap)
        is_folder = os.path.isdir(where)
        try:
            context = ssl.create_default_context(
                cafile=None if is_folder else where, capath=where if is_folder else None
            )
        except (ssl.SSLError, OSError):
            raise TlsFailed(f"{where} holds no certificates: look at REDCAP_CA_BUNDLE") from None
        try:
            with (
                socket.create_connection((host, port), self.redcap.timeout[0]) as plain,
                context.wrap_socket(plain, server_hostname=host) as secure,
            ):
                ends = ssl.cert_time_to_seconds(str((secure.getpeercert() or {})["notAfter"]))
                version = secure.version()
        except ssl.SSLCertVerificationError as error:
            raise TlsFailed(f"the certificate of {host} is not accepted ({error.verify_message})") from None
        except ssl.SSLError as error:
            raise TlsFailed(
                f"{host} port {port} does not speak TLS with us ({error.reason}): is it the right port?"
            ) from None
        except OSError as error:
            raise ServerUnreachable(
                f"no connection to {host} port {port} ({error.strerror or 'timed out'}): look at the network and the firewall"
            ) from None
        left = timedelta(seconds=ends - time.time()).days
        if left < CERTIFICATE_DAYS:
            return "note", f"{version}; the certificate ends in {left} days", "tell the server's administrator"
        return "ok", f"{version}; the certificate is good for {left} days more", ""

    def server(self) -> Found:
        """Ask for REDCap's version."""
        started_s = time.monotonic()
        try:
            version = self.client.text("version")
        except TokenRefused:
            version = ""  # it answers: what of the token is at fault comes next
        took_ms = (time.monotonic() - started_s) * 1000
        if not re.fullmatch(r"\d+(\.\d+)+.*", version):
            return (
                "note",
                f"it answers in {took_ms:.0f} ms, and does not tell its version",
                "the next lines say why, or it is no REDCap",
            )
        return "ok", f"REDCap {version}, answers in {took_ms:.0f} ms", ""

    def token(self) -> Found:
        """Read the project."""
        wanted: dict[str, object] = {}
        self.structure = project.read(self.client, wanted, labels=self.redcap.raw_or_label == "label")
        return "ok", f"accepted, for project {self.structure.project_id}", ""

    def project(self) -> Found:
        """Count its fields, instruments, events and records."""
        reader = self._reader()
        reader.list_all()
        fields = len(self.structure.fields)
        instruments = len(self.structure.events)
        events = len({event for found in self.structure.events.values() for event in found})
        rows = self.ids.count("rows > 0")
        return "ok", f"{rows:,} records, {fields:,} fields in {instruments:,} instruments, {events:,} events", ""

    def _reader(self) -> Reader:
        return Reader(self.client, self.redcap, self.structure, self.ids, None, lambda *said: None)

    def export_right(self) -> Found:
        """See what the token may see of some records."""
        self.ids.want("rows > 0")
        some = list(self.ids.after("", LOOKED_AT))
        if not some:
            return "note", "there is no record yet to see it by", ""
        reader = self._reader()
        reader.look(some)
        if hidden := reader.hidden():
            of_people = len(self.structure.identifiers.intersection(hidden))
            found = f"{len(hidden):,} fields are hidden from the token, {of_people:,} of them marked as identifiers"
            return "note", found, "if they are wanted, give its user the right to export them (Full Data Set)"
        if not reader.sees_all_records():
            found = "its user is in a data access group, and sees the records of that group alone"
            return "note", found, "if all are wanted, take a token of a user in no group"
        identifiers = len(self.structure.identifiers)
        return "ok", f"all that is asked for, {identifiers:,} fields marked as identifiers among it", ""

    def logging_right(self) -> Found:
        """See whether the token may read the log."""
        now = self.client.server_time or datetime.now(UTC)
        seen = read_log(self.client, now.replace(tzinfo=None), self.structure.id_field, _pass_over)
        self.logging = seen is not None
        if self.logging:
            return "ok", "the log tells of deletions and renames", ""
        found = "the token may not read the log: deletions and renames are seen by the reconcile alone"
        return "note", found, "give its user the Logging right, or make REDCAP_RECONCILE_EVERY shorter"

    def clock(self) -> Found:
        """Compare the server's clock with this host's."""
        if self.client.server_time is None:
            return "note", "the server's answers have no Date", "ask its administrator, or a proxy's, for it"
        skew_s = (self.client.server_time - datetime.now(UTC)).total_seconds()
        found = f"the server is {abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} this machine"
        if abs(skew_s) > SKEW_S:
            return "note", f"{found}; windows go by its clock, so nothing is lost", "let both keep time by NTP"
        return "ok", found, ""

    def zone(self) -> Found:
        """Find the server's offset from UTC."""
        moment = self.client.server_time or datetime.now(UTC)
        seen_s = server_offset(self.client, None) if self.logging else None
        if self.redcap.timezone:
            offset = moment.astimezone(ZoneInfo(self.redcap.timezone)).utcoffset() or timedelta()
            set_s = int(offset.total_seconds())
            if seen_s is not None and seen_s != set_s:
                raise ZoneWrong(
                    f"REDCAP_TIMEZONE is {self.redcap.timezone} ({_utc(set_s)} now), the server's log has {_utc(seen_s)}"
                )
            return "ok", f"{self.redcap.timezone}, {_utc(set_s)} now (setting)", ""
        if seen_s is not None:
            return "ok", f"{_utc(seen_s)} (the server's log)", ""
        host = moment.astimezone().utcoffset() or timedelta()
        found = f"not to be seen: taken for this machine's, {_utc(int(host.total_seconds()))}; each cycle reads half a day more"
        return "note", found, "set REDCAP_TIMEZONE to the server's, as Europe/Berlin"


def _pass_over(_: str, ids: Iterable[str]) -> None:
    for _one in ids:
        pass  # an answer is read to its end


def _utc(offset_s: int) -> str:
    hours, minutes = divmod(abs(offset_s) // 60, 60)
    return f"UTC{'-' if offset_s < 0 else '+'}{hours}" + (f":{minutes:02}" if minutes else "")
