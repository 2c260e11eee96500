"""The sync into a real PostgreSQL."""

import random

import psycopg
import pytest
from sqlalchemy.engine import make_url

from tests.sync import postgres
from worker import errors


@pytest.fixture
def database(world, monkeypatch):
    with postgres.server() as url:
        monkeypatch.setenv("SYNC_SINK", url)
        with psycopg.connect(host=make_url(url).query["host"], user="postgres", dbname="postgres") as connection:
            connection.autocommit = True
            yield connection


def stored(connection):
    rows = connection.execute(
        "SELECT record_id, event, repeat_instrument, repeat_instance, data FROM records WHERE deleted_at IS NULL"
    )
    return {row[:4]: row[4] for row in rows}


def test_exact_through_changes_deletions_and_renames(world, database):
    world.sync()
    assert stored(database) == world.truth()
    chance = random.Random(9)
    for _ in range(4):
        for _ in range(25):
            world.api.changes.churn(chance)
        world.sync()
        assert stored(database) == world.truth()
    (types,) = database.execute("SELECT pg_typeof(data)::text, pg_typeof(changed_at)::text FROM records LIMIT 1")
    assert types == ("jsonb", "timestamp with time zone")
    assert database.execute("SELECT COUNT(*) FROM cycles").fetchone() == (5,)


def test_a_refusal_names_the_database_and_no_value(world, database):
    world.sync()
    database.execute("ALTER TABLE records ADD CHECK (data->>'first_name' IS DISTINCT FROM 'Canary')")
    world.api.changes.put([{"record_id": "7", "redcap_event_name": "enrolment_arm_1", "first_name": "Canary"}])
    with pytest.raises(errors.SinkFailed, match="CheckViolation 23514") as caught:
        world.sync()
    assert "Canary" not in str(caught.value)


def test_a_database_that_is_not_there(world, monkeypatch):
    monkeypatch.setenv("SYNC_SINK", "postgresql+psycopg://me:hunter2@/none?host=/nowhere")
    with pytest.raises(errors.SinkFailed) as caught:
        world.sync()
    assert "hunter2" not in str(caught.value)
