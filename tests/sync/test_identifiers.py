"""SYNC_DROP_IDENTIFIERS: no way in for what may be an identifier, and none of it left."""

import json
from urllib.parse import parse_qs

from ops.sandbox.export import Rights
from ops.sandbox.project import Field

ENROLLED = "enrolment_arm_1"


def columns_with(world, *starts):
    """Return the columns that begin so, of all rows, deleted ones too."""
    rows = [json.loads(data) if isinstance(data, str) else data for (data,) in world.query("SELECT data FROM records")]
    return sorted({name for row in rows for name in row if name.startswith(starts)})


def test_check_boxes_with_underscores_in_their_names(world, monkeypatch):
    monkeypatch.setenv("SYNC_DROP_IDENTIFIERS", "1")
    for name in ("id___doc", "kin_", "kin"):
        about = {"kind": "checkbox", "choices": "1, Passport | 2, Card", "identifier": name != "kin"}
        world.api.project.fields.insert(3, Field(name=name, form="enrolment", **about))
    world.sync()
    assert columns_with(world, "id___", "kin____") == []
    assert {"kin___1", "kin___2"} <= set(columns_with(world, "kin"))


def test_a_field_that_is_added_in_mid_cycle_is_not_stored_before_it_is_known(world, monkeypatch):
    monkeypatch.setenv("SYNC_DROP_IDENTIFIERS", "1")
    world.sync()
    answer = world.api.answer

    def answered(body):
        if parse_qs(body)["content"] == ["record"] and not any(one.name == "ssn" for one in world.api.project.fields):
            world.api.project.fields.insert(3, Field(name="ssn", form="enrolment", identifier=True))
            world.api.changes.put([{"record_id": "1", "redcap_event_name": ENROLLED, "ssn": "078-05-1120"}])
        return answer(body)

    monkeypatch.setattr(world.api, "answer", answered)
    for _ in range(2):
        world.sync()
        assert columns_with(world, "ssn") == []


def test_nothing_of_them_is_left_in_any_row(either, monkeypatch):
    """Not in deleted ones, of fields that are gone from the dictionary, nor in those that the token can't see any more."""
    for number, record in enumerate(either.api.project.records.values()):
        record.group = "north" if number % 2 else "south"
    either.sync()
    either.api.changes.delete(["7"])
    either.sync()
    before = dict(either.query("SELECT record_id, data_hash FROM records WHERE record_id = '7'"))
    either.api.project.fields[:] = [one for one in either.api.project.fields if one.name != "family_name"]
    either.api.rights = Rights(group="north")
    monkeypatch.setenv("SYNC_DROP_IDENTIFIERS", "1")
    either.sync()
    assert columns_with(either, "first_name", "family_name", "born_on") == []
    assert dict(either.query("SELECT record_id, data_hash FROM records WHERE record_id = '7'")) != before
    rows = len(either.stored())
    assert (either.sync()["updated"], len(either.stored())) == (0, rows)


def test_a_handlers_own_columns_stay(either, monkeypatch, tmp_path):
    """They are in no dictionary, and a full cycle looks through what is stored."""
    (tmp_path / "adds_a_column.py").write_text(
        "def handle(record_id, rows, _):\n    return [row | {'of_ours': 'x'} for row in rows]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("SYNC_HANDLER", "adds_a_column:handle")
    monkeypatch.setenv("SYNC_DROP_IDENTIFIERS", "1")
    for _ in range(2):
        either.sync(full=True)
        assert {row["of_ours"] for row in either.stored().values()} == {"x"}
        assert columns_with(either, "first_name") == []
    assert either.sync(full=True)["updated"] == 0
