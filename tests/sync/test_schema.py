"""Our own tables: each older version becomes this one, a newer one is refused."""

import pathlib
import sqlite3

import pytest

from worker import errors
from worker.sink import schema

OLDER = sorted(pathlib.Path(__file__).parent.glob("schema_*.sql"))


def test_there_is_a_script_of_each_older_version():
    assert [path.stem for path in OLDER] == [f"schema_{version}" for version in range(1, schema.VERSION)]


def columns(world):
    if world.dialect == "sqlite":
        tables = world.query("SELECT name FROM sqlite_master WHERE type = 'table'")
        return {(t, c) for (t,) in tables for (c,) in world.query(f"SELECT name FROM pragma_table_info('{t}')")}
    return set(
        world.query(
            "SELECT c.table_name, c.column_name FROM information_schema.columns c JOIN information_schema.tables t "
            "USING (table_schema, table_name) WHERE table_schema = 'public' AND table_type = 'BASE TABLE'"
        )
    )


@pytest.mark.parametrize("path", OLDER, ids=lambda path: path.stem)
def test_an_older_version_becomes_this_one_with_its_rows(either, path):
    script = path.read_text()
    if either.dialect == "sqlite":
        connection = sqlite3.connect(either.state_dir / "redcap.db")
        connection.executescript(script)
        connection.close()
    else:
        script = script.replace("DATETIME", "TIMESTAMP WITH TIME ZONE").replace(" JSON ", " JSONB ")
        for statement in script.split(";\n"):
            either.query(statement)
    summary = either.sync()
    # The row of record 1 was there, with another content; that of record "gone" is not on the server.
    assert (summary["mode"], summary["updated"], summary["deleted"]) == ("full", 1, 1)
    either.assert_exact()
    assert either.query("SELECT version FROM schema_version") == [(schema.VERSION,)]
    migrated = columns(either)
    assert migrated == {
        (table.name, column.name) for table in schema.metadata.sorted_tables for column in table.columns
    }
    first_seen = either.query("SELECT first_seen_at FROM records WHERE record_id = '1' AND event = 'enrolment_arm_1'")
    assert str(first_seen[0][0]).startswith("2026-01-01")
    assert either.query("SELECT COUNT(*) FROM cycles") == [(2,)]
    assert either.sync()["mode"] == "incremental"


def test_a_newer_version_is_refused_and_left_as_it_is(either):
    either.sync()
    either.query("UPDATE schema_version SET version = 99")
    with pytest.raises(errors.SinkNewer, match="version 99"):
        either.sync()
    assert either.query("SELECT version FROM schema_version") == [(99,)]
