"""Proof of exactness: whatever people, clocks, rights and kills do, a good cycle leaves what the server has.

MODEL_EXAMPLES and KILLS make it longer than what every run does: `MODEL_EXAMPLES=2000 KILLS=500
./ops/test tests/sync/test_model.py`; MODEL_SHRINK=1 looks for the shortest history that fails, which takes minutes.
"""

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from ops.sandbox import synthetic
from ops.sandbox.api import Api
from ops.sandbox.export import Rights
from ops.sandbox.project import Field
from ops.sandbox.server import running
from tests.sync.conftest import TOKEN, World
from tests.sync.zygote import Zygote

EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "12"))
KILLS = int(os.environ.get("KILLS", "40"))

ENROLLED = "enrolment_arm_1"
ZONES = ("UTC", "Europe/Berlin", "America/Chicago", "Asia/Kolkata", "Pacific/Auckland", "Australia/Lord_Howe")
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
names = st.sampled_from(["1", "2", "01", "a b", "a,b", "x'y", 'q"r', "Ä", "日本", "7 8", "1-1", "%", "\\", "z" * 100])


class Model(RuleBasedStateMachine):
    """A project that people work on, and cycles of the sync, some of which are killed."""

    zygote: Zygote
    database: str | None = None

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.now = datetime(2026, 10, 24, 22, 0, tzinfo=UTC)  # the night in which Europe's clocks go back comes
        project = synthetic.make(seed=5, records=8, fields=19)
        self.api = Api(project, TOKEN, utc_now=lambda: self.now)
        server = self.stack.enter_context(running(self.api))
        folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.world = World(self.api, server, folder)
        self.env = {"REDCAP_API_URL": server.url, "REDCAP_API_TOKEN": TOKEN, "REDCAP_RETRIES": "0"}
        self.env |= {"REDCAP_MAX_RATE": "600", "REDCAP_BATCH_SIZE": "3", "REDCAP_OVERLAP": "5m"}
        if self.database:
            with psycopg.connect(self.database.replace("+psycopg", "")) as connection:
                connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
            self.env["SYNC_SINK"] = self.database
        self.calls = 40_000

    def cycle(self, **about: Any) -> dict[str, Any]:
        """Run one on a host whose own clock is right."""
        return self.zygote.cycle(self.env, str(self.world.state_dir), now=self.now.isoformat(), **about)

    def teardown(self) -> None:
        try:
            self.a_good_cycle(full=False)
        finally:
            self.stack.close()

    def record(self, number: int) -> str | None:
        there = sorted(self.api.project.records)
        return there[number % len(there)] if there else None

    @initialize(zone=st.sampled_from(ZONES), known=st.booleans())
    def begin(self, zone: str, known: bool) -> None:
        self.api.timezone = ZoneInfo(zone)
        if known:
            self.env["REDCAP_TIMEZONE"] = zone
        self.known = known

    @rule(number=st.integers(0, 99), text=texts)
    def edit(self, number: int, text: str) -> None:
        if name := self.record(number):
            self.api.changes.put(
                [{"record_id": name, "redcap_event_name": ENROLLED, "first_name": text}], overwrite=True
            )

    @rule(name=names)
    def add(self, name: str) -> None:
        row = {"record_id": name, "redcap_event_name": "visit_1_arm_1", "redcap_repeat_instrument": "medication"}
        instances = self.api.project.records.get(name.strip())
        number = str(1 + len(instances.rows) if instances else 1)
        self.api.changes.put([row | {"redcap_repeat_instance": number, "drug": "2"}])

    @rule(number=st.integers(0, 99))
    def delete(self, number: int) -> None:
        if name := self.record(number):
            self.api.changes.delete([name])

    @rule(number=st.integers(0, 99), row=st.integers(0, 99))
    def delete_a_row(self, number: int, row: int) -> None:
        if (name := self.record(number)) and (rows := list(self.api.project.records[name].rows)):
            event, instrument, instance = rows[row % len(rows)]
            self.api.changes.delete_rows(name, event=event, instrument=instrument, instance=instance)

    @rule(number=st.integers(0, 99), new=names)
    def rename(self, number: int, new: str) -> None:
        there = {one.rstrip().casefold() for one in self.api.project.records}  # as MySQL compares
        if (name := self.record(number)) and new.rstrip().casefold() not in there:
            self.api.changes.rename(name, new)

    @rule(number=st.integers(0, 99))
    def change_the_dictionary(self, number: int) -> None:
        fields = self.api.project.fields
        if number % 2:
            fields.append(Field(name=f"new_{len(fields)}_{number}", form="visit"))
        elif len(fields) > 10:
            fields.pop()

    @rule(hidden=st.booleans())
    def change_rights(self, hidden: bool) -> None:
        self.api.rights = Rights(deidentified=hidden)

    @rule(number=st.integers(0, 99), sex=st.sampled_from("123"))
    def edit_what_the_filter_looks_at(self, number: int, sex: str) -> None:
        if name := self.record(number):
            self.api.changes.put([{"record_id": name, "redcap_event_name": ENROLLED, "sex": sex}], overwrite=True)

    @rule(logic=st.sampled_from(["", "[sex] = '1'", "[sex] <> '1'"]))
    def change_the_filter(self, logic: str) -> None:
        self.env["REDCAP_FILTER_LOGIC"] = logic

    @rule(number=st.integers(0, 99))
    def change_the_events(self, number: int) -> None:
        forms = self.api.project.events[1 + number % 2].forms
        if "adverse_event" in forms:
            forms.remove("adverse_event")
        else:
            forms.append("adverse_event")

    @rule(minutes=st.sampled_from([0, 1, 4, 20, 61, 180, 60 * 24, 60 * 24 * 45]))
    def time_passes(self, minutes: int) -> None:
        self.now += timedelta(minutes=minutes)

    @rule(skew_s=st.sampled_from([0, 30, -120, 1800, -1800, 7200, -7200]))
    def the_servers_clock_is_set(self, skew_s: int) -> None:
        self.api.skew_s = skew_s

    @rule(zone=st.sampled_from(ZONES))
    def the_server_moves_to_another_zone(self, zone: str) -> None:
        if not self.known:
            self.now += timedelta(minutes=20)  # such a move takes its time
            self.api.timezone = ZoneInfo(zone)

    @rule(share=st.floats(0, 1), full=st.booleans())
    def a_cycle_is_killed(self, share: float, full: bool) -> None:
        ended = self.cycle(full=full, kill_at_call=1 + int(share * self.calls))
        if "summary" in ended:  # it was done before
            self.calls = ended["calls"]

    @rule(records=st.integers(0, 6), full=st.booleans())
    def a_cycle_is_drained(self, records: int, full: bool) -> None:
        ended = self.cycle(full=full, stop_at=records)
        assert "summary" in ended or ended["error"].startswith("RecordsUnconfirmed"), ended

    @rule(full=st.booleans())
    def a_good_cycle(self, full: bool) -> None:
        logic = self.env.get("REDCAP_FILTER_LOGIC", "")
        ended = self.cycle(full=full)
        if logic and ended.get("error", "").startswith(
            "RecordsUnconfirmed"
        ):  # nothing passes it any more: somebody must vouch for that
            ended = self.cycle(full=True)
        assert "summary" in ended, ended
        with pytest.MonkeyPatch.context() as patch:
            if self.database:
                patch.setenv("SYNC_SINK", self.database)
            assert self.world.stored() == self.world.truth(**({"filterLogic": logic} if logic else {}))
        self.now += timedelta(seconds=1)

    @rule(minutes=st.sampled_from([1, 30, 61]), number=st.integers(0, 99), text=texts)
    def a_service_goes_on(self, minutes: int, number: int, text: str) -> None:
        self.edit(number, text)
        self.now += timedelta(minutes=minutes)
        self.a_good_cycle(full=False)


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as running_one:
        yield running_one


@pytest.fixture(params=["sqlite", "postgresql"])
def sink(request: pytest.FixtureRequest) -> str | None:
    return request.getfixturevalue("postgres_url") if request.param == "postgresql" else None


@pytest.mark.timeout(3600)
def test_the_database_is_what_the_server_has_after_every_good_cycle(zygote, sink):
    class Here(Model):
        pass

    Here.zygote, Here.database = zygote, sink
    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=30,
            deadline=None,
            derandomize=EXAMPLES == 12,
            phases=[Phase.generate, Phase.shrink] if os.environ.get("MODEL_SHRINK") else [Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mode", ["backfill", "incremental"])
def test_a_kill_at_any_instant_loses_nothing_and_doubles_nothing(world, zygote, sink, mode, monkeypatch, tmp_path):
    """SIGKILL at seeded instants, spread over the length of the cycle; then one good cycle."""
    if sink:
        monkeypatch.setenv("SYNC_SINK", sink)
    monkeypatch.setenv("REDCAP_BATCH_SIZE", "10")
    env = {name: value for name, value in os.environ.items() if name.startswith(("REDCAP_", "SYNC_"))}
    before = tmp_path / "before"
    chance = random.Random(17)

    def prepare() -> None:
        """Put the database back to what it was before the cycle that is to be killed."""
        if mode == "backfill" and sink:
            world.query("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        elif mode == "backfill":
            shutil.rmtree(world.state_dir)
            world.state_dir.mkdir()
        elif not sink:
            shutil.rmtree(world.state_dir)
            shutil.copytree(before, world.state_dir)

    def change() -> None:
        for _ in range(25):
            world.api.changes.churn(chance)

    world.sync()
    shutil.copytree(world.state_dir, before)
    change()
    prepare()
    whole = zygote.cycle(env, str(world.state_dir))
    assert whole["summary"]["batches"] > 2
    killed = 0
    for number in range(KILLS):
        prepare()
        if mode == "incremental" and sink:
            change()  # there the database goes on from where it is
        after_s = whole["took_s"] * 1.1 * (number + chance.random()) / KILLS
        killed += zygote.cycle(env, str(world.state_dir), kill_after_s=after_s).get("killed", False)
        ended = zygote.cycle(env, str(world.state_dir))
        assert "summary" in ended, ended
        world.assert_exact()
    assert killed > KILLS // 2
