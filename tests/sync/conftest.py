"""A sandbox server, and the sync run in the test's own process against it."""

import itertools
import json
import os
import sqlite3
import uuid
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest

from ops.sandbox import synthetic
from ops.sandbox.api import Api
from ops.sandbox.server import running
from tests.sync import postgres
from worker.job import sync

TOKEN = "0123456789ABCDEF" * 2


@dataclass
class Alone:
    """A cycle without a supervisor: all that the job asks of one."""

    state_dir: str
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    full: bool = False
    stopping: bool = False
    left_s: float = 60.0
    said: list[tuple[int, int | None, str]] = field(default_factory=list)

    def progress(self, done: int, total: int | None = None, unit: str = "") -> None:
        self.said.append((done, total, unit))

    def remaining_s(self) -> float:
        return self.left_s


class World:
    """A server with a project, and a database beside it."""

    def __init__(self, api: Api, server: Any, tmp_path: Any) -> None:
        self.api = api
        self.server = server
        self.state_dir = tmp_path / "state"
        self.state_dir.mkdir()
        self.cycles = 0

    def sync(self, **about: Any) -> dict[str, Any]:
        """Run one cycle."""
        self.cycles += 1
        return sync(Alone(str(self.state_dir), id=f"cycle-{self.cycles}", **about))

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Ask the database."""
        if url := os.environ.get("SYNC_SINK", "").replace("+psycopg", ""):
            with psycopg.connect(url) as server:
                asked = server.execute(sql)
                return asked.fetchall() if asked.description else []
        with closing(sqlite3.connect(self.state_dir / "redcap.db")) as connection, connection:
            return connection.execute(sql).fetchall()

    def stored(self) -> dict[tuple[Any, ...], dict[str, Any]]:
        """Return the rows that are not deleted, by key."""
        rows = self.query(
            "SELECT record_id, event, repeat_instrument, repeat_instance, data FROM records WHERE deleted_at IS NULL"
        )
        return {row[:4]: json.loads(row[4]) if isinstance(row[4], str) else row[4] for row in rows}

    def truth(self, **limits: str) -> dict[tuple[Any, ...], dict[str, Any]]:
        """Return what the server exports, by key; `limits` are parameters of the export."""
        from urllib.parse import urlencode

        body = urlencode({"token": TOKEN, "content": "record", "format": "json", **limits})
        id_field = self.api.project.id_field
        return {
            (
                row[id_field],
                row.get("redcap_event_name", ""),
                row.get("redcap_repeat_instrument", ""),
                row.get("redcap_repeat_instance") or 0,
            ): row
            for row in json.loads(self.api.answer(body).body)
        }

    def assert_exact(self) -> None:
        """Compare the database with the server, cell for cell."""
        assert self.stored() == self.truth()


@pytest.fixture
def world(tmp_path, monkeypatch):
    api = Api(synthetic.make(seed=11, records=60, fields=24), TOKEN)
    with running(api) as server:
        monkeypatch.setenv("REDCAP_API_URL", server.url)
        monkeypatch.setenv("REDCAP_API_TOKEN", TOKEN)
        monkeypatch.setenv("REDCAP_MAX_RATE", "600")
        monkeypatch.setenv("REDCAP_RETRIES", "0")
        yield World(api, server, tmp_path)


@pytest.fixture(scope="session")
def postgres_server():
    with postgres.server() as url:
        yield url


_databases = itertools.count()


@pytest.fixture
def postgres_url(postgres_server):
    """A database of the test's own on a real server."""
    name = f"test_{next(_databases)}"
    with psycopg.connect(postgres_server.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield postgres_server.replace("/postgres?", f"/{name}?")
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgresql"])
def either(request, world, monkeypatch):
    """A world with the database in SQLite, and one with it in PostgreSQL."""
    if request.param == "postgresql":
        monkeypatch.setenv("SYNC_SINK", request.getfixturevalue("postgres_url"))
    world.dialect = request.param
    return world
