"""What stands in ops/examples runs under the supervisor as it is, against a server."""

import json
import sqlite3
from contextlib import closing

import pytest

TOKEN = "0123456789ABCDEF" * 2


@pytest.fixture
def database(world, cli, tmp_path):
    cli.env |= {"REDCAP_API_URL": world.server.url, "REDCAP_API_TOKEN": TOKEN, "DATABASE": str(tmp_path / "my.db")}
    return tmp_path / "my.db"


def rows(database, sql):
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(sql).fetchall()


def test_pycap_and_pandas_unchanged(world, cli, database):
    for cycle in (1, 2):
        world.api.changes.put(
            [{"record_id": f"new-{cycle}", "redcap_event_name": "enrolment_arm_1", "first_name": "007"}]
        )
        done = cli.run("once", SUPERVISOR_JOB="ops.examples.pycap_frame:sync")
        assert done.code == 0, done.err
        assert done.report["summary"]["rows"] == len(world.truth())
    columns = "record_id, redcap_event_name, redcap_repeat_instrument, redcap_repeat_instance, first_name"
    stored = {(a, b, c, int(d or 0)): name for a, b, c, d, name in rows(database, f"SELECT {columns} FROM records")}
    assert stored == {key: row["first_name"] for key, row in world.truth().items()}
    assert stored[("new-2", "enrolment_arm_1", "", 0)] == "007"
    assert done.report["recycled"] == "fresh"


def test_pycap_and_plain_dicts_with_a_cycle(world, cli, database):
    for _ in range(2):
        done = cli.run("once", SUPERVISOR_JOB="ops.examples.pycap_dicts:sync")
        assert done.code == 0, done.err
    stored = [json.loads(row) for (row,) in rows(database, "SELECT row FROM record_rows")]
    truth = list(world.truth().values())
    key = json.dumps
    assert sorted(map(key, stored)) == sorted(map(key, truth))
    assert done.report["summary"] == {"records": len({row["record_id"] for row in truth}), "rows": len(truth)}
