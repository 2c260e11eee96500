"""The README says what the code does."""

import re

import pytest

from supervisor.settings import Settings, duration_s
from tests.conftest import ROOT
from worker.settings import RedcapSettings, SyncSettings, seconds

README = (ROOT / "README.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| (`(?:SUPERVISOR|REDCAP|SYNC)_[^|]+?) \|([^|]*)\|", README, re.MULTILINE))
DEFAULTS = {name: default for cell, default in ROWS.items() for name in re.findall(r"`([A-Z_]+)`", cell)}
MODELS = (("SUPERVISOR_", Settings), ("REDCAP_", RedcapSettings), ("SYNC_", SyncSettings))
FIELDS = {prefix + name.upper(): info for prefix, model in MODELS for name, info in model.model_fields.items()}


def test_every_setting_is_in_the_table_and_nothing_else():
    assert set(DEFAULTS) == set(FIELDS)


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_the_default_in_the_table_is_the_default(name):
    shown = DEFAULTS[name].strip(" `")
    default = FIELDS[name].get_default()
    if isinstance(default, bool | str) and default != "":
        assert shown == str(default).lower() or shown == default
    elif isinstance(default, tuple):
        assert tuple(map(seconds, shown.split(","))) == default
    elif isinstance(default, float):
        assert duration_s(shown) == default
    elif name == "SUPERVISOR_RSS_CEILING":
        assert (shown, default) == ("512MB", 512_000_000)
    elif isinstance(default, int):
        assert int(shown) == default


def test_the_commands_of_a_newcomer_are_there():
    for command in ("./ops/start --demo", "./ops/test", "./ops/start sandbox"):
        assert command in README


def test_every_metric_is_in_the_table():
    from supervisor import metrics as ours
    from worker.metrics import METRICS

    exposed = {family.name for family in ours._Families(ours.Totals(), [], {}).collect()}
    counters = {f"{name}_total" for name in exposed if f"`{name}_total`" in README}
    assert {f"`{name}`" for name in METRICS} <= set(re.findall(r"`redcap_sync_[a-z_]+`", README))
    assert {name for name in exposed if f"`{name}`" not in README} == {name.removesuffix("_total") for name in counters}
