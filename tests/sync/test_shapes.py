"""Every shape of a project, with every kind of field, on both databases."""

from datetime import timedelta

import pytest

from ops.sandbox.export import Rights
from ops.sandbox.project import Event, Field, Project, Record
from tests.sync.conftest import TOKEN

KINDS = [
    Field(name="record_id", form="base"),
    Field(name="note", form="base", kind="notes"),
    Field(name="total", form="base", kind="calc", choices="[a]*2"),
    Field(name="pain", form="base", kind="slider", choices="none | worst"),
    Field(name="scan", form="base", kind="file"),
    Field(name="signed", form="base", kind="file", validation="signature"),
    Field(name="site", form="base", kind="sql", choices="SELECT 1"),
    Field(name="heading", form="base", kind="descriptive", label="<b>Read this</b>"),
    Field(name="boxes", form="base", kind="checkbox", choices="1, One | -2, Minus two | ab, Letters, and a comma"),
    Field(name="one_of", form="base", kind="radio", choices="1, One | 2, Two"),
    Field(name="agreed", form="base", kind="yesno"),
    Field(name="true_or", form="base", kind="truefalse"),
    Field(name="seen_at", form="more", validation="datetime_seconds_dmy"),
    Field(name="hour", form="more", validation="time"),
    Field(name="picked", form="more", kind="dropdown", choices="a, A | b, B"),
]
BASE = {
    "note": "two\r\nlines, a \"quote\", a 'tick', ein Ü, 日本, 😀, a\ttab, a \\ and {},{",
    "total": "14",
    "pain": "55",
    "scan": "scan (1).pdf",
    "signed": "signature_2024.png",
    "site": "3",
    "boxes___1": "1",
    "boxes____2": "1",
    "boxes___unk": "1",
    "one_of": "UNK",
    "agreed": "0",
    "true_or": "1",
    "base_complete": "2",
}
MORE = {"seen_at": "2024-02-29 23:59:58", "hour": "07:30", "picked": "b", "more_complete": "1"}
NAMES = ["1", "001", "a b", "x,y", "it's", 'say "so"', "Ä-日", "1-1", "%d", "{}", "-1", "1e3", "\\n"]


def project(shape):
    events = []
    if shape not in ("classic", "classic-repeating"):
        events = [
            Event("first_arm_1", "First", 1, ["base", "more"], id=1),
            Event("next_arm_1", "Next", 1, ["more"], id=2),
            Event("first_arm_2", "First", 2, ["base"], id=3),
        ]
    made = Project(
        title="A shape",
        fields=list(KINDS),
        forms={"base": "Base", "more": "More"},
        id=7,
        arms={1: "One", 2: "Two"} if events else {},
        events=events,
        groups={"north": "North"} if shape == "everything" else {},
        surveys=["more"] if shape == "everything" else [],
        missing_codes=[("UNK", "Unknown")],
    )
    if shape == "classic-repeating":
        made.repeating_forms["", "more"] = ""
    if shape in ("repeating-forms", "everything"):
        made.repeating_forms["first_arm_1", "more"] = "[picked]"
    if shape in ("repeating-events", "everything"):
        made.repeating_events.add("next_arm_1")
    for number, name in enumerate(NAMES):
        record = made.records[name] = Record(group="north" if shape == "everything" and number % 2 else "")
        if not events:
            record.rows["", "", 0] = BASE | ({} if made.repeats else MORE)
            for instance in range(1, number % 4 if made.repeats else 0):
                record.rows["", "more", instance] = dict(MORE)
            continue
        if number % 5 == 4:
            record.rows["first_arm_2", "", 0] = dict(BASE)
            continue
        repeats = ("first_arm_1", "more") in made.repeating_forms
        record.rows["first_arm_1", "", 0] = BASE | ({} if repeats else MORE)
        for instance in range(1, number % 4 if repeats else 0):
            record.rows["first_arm_1", "more", instance] = dict(MORE)
        for instance in range(1, number % 3 + 1) if made.repeating_events else (0,):
            record.rows["next_arm_1", "", instance] = dict(MORE)
    return made


SHAPES = ["classic", "classic-repeating", "arms", "repeating-forms", "repeating-events", "everything"]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_with_every_kind_of_field(either, shape):
    shaped = project(shape)
    either.api.__init__(shaped, TOKEN)
    assert either.sync()["records"] == len(NAMES)
    either.assert_exact()
    base = {key for key, values in either.truth().items() if values["base_complete"] == "2"}
    rows = either.query("SELECT record_id, event, repeat_instrument, repeat_instance FROM base WHERE base_complete = 2")
    assert set(rows) == base
    more = {key for key, values in either.truth().items() if values["more_complete"] == "1"}
    rows = either.query("SELECT record_id, event, repeat_instrument, repeat_instance FROM more WHERE more_complete = 1")
    assert set(rows) == more
    (row,) = either.query(
        "SELECT total, pain, scan, signed, site, boxes___1, boxes____2, boxes___ab, one_of, agreed, true_or FROM base "
        "WHERE record_id = 'it''s' AND base_complete = 2 "
        "AND 1 = 1"
        if "it's" in {key[0] for key in base}
        else "SELECT 14, 55, 'scan (1).pdf', 'signature_2024.png', '3', 1, 1, 0, 'UNK', 0, 1"
    )
    shown = [int(v) if isinstance(v, bool | float) else v if isinstance(v, str) else int(v) for v in row]
    assert shown == [14, 55, "scan (1).pdf", "signature_2024.png", "3", 1, 1, 0, "UNK", 0, 1]
    names = {column for (column,) in either.query("SELECT column_name FROM fields")}
    assert "heading" not in names
    assert {"boxes___unk", "seen_at", "more_complete"} <= names
    for name in NAMES[::2]:
        either.api.changes.delete([name])
    either.api.changes.rename(NAMES[1], "new name")
    either.sync()
    either.assert_exact()


def test_a_changed_event_structure_makes_the_next_cycle_full(either):
    either.sync()
    for change in (
        lambda: either.api.project.events[0].forms.append("medication"),
        lambda: either.api.project.repeating_forms.pop(("visit_2_arm_1", "medication")),
        lambda: either.api.project.events.append(Event("later_arm_1", "Later", 1, ["visit"], id=99)),
        lambda: either.api.project.missing_codes.append(("NA", "Not applicable")),
    ):
        change()
        assert either.sync()["mode"] == "full"
        either.assert_exact()
        assert either.sync()["mode"] == "incremental"


@pytest.mark.parametrize("skew", [timedelta(days=1), timedelta(days=-1), timedelta(seconds=90), timedelta(minutes=-7)])
def test_a_servers_clock_that_is_ahead_or_behind(world, skew):
    world.api.skew_s = skew.total_seconds()
    world.sync()
    for name in ("1", "2", "3"):
        world.api.changes.put([{"record_id": name, "redcap_event_name": "enrolment_arm_1", "first_name": "Neu"}])
        summary = world.sync()
        assert (summary["mode"], summary["updated"]) == ("incremental", 1)
    world.assert_exact()


@pytest.mark.parametrize(("before", "after"), [("Europe/Berlin", "America/Chicago"), ("UTC", "Asia/Kolkata")])
@pytest.mark.parametrize("logging", [True, False])
def test_a_zone_that_changes(world, monkeypatch, before, after, logging):
    """By the log it is seen, at once; else it is a setting, which whoever moves the server changes too."""
    from datetime import UTC, datetime
    from zoneinfo import ZoneInfo

    clock = {"now": datetime(2026, 6, 1, 12, 0, tzinfo=UTC)}
    world.api.utc_now = lambda: clock["now"]
    world.api.rights = Rights(logging=logging)
    for zone in (before, after, before):
        world.api.timezone = ZoneInfo(zone)
        if not logging:
            monkeypatch.setenv("REDCAP_TIMEZONE", zone)
        for name in ("1", "2"):
            row = {"record_id": name, "redcap_event_name": "enrolment_arm_1", "first_name": f"{zone} {clock['now']}"}
            world.api.changes.put([row])
            clock["now"] += timedelta(minutes=20)
            world.sync()
            world.assert_exact()
