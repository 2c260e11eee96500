"""The README says what the code does."""

import re

from ops import readme
from supervisor.errors import CATALOGUE
from supervisor.settings import Settings
from tests.conftest import ROOT
from worker.settings import RedcapSettings, SyncSettings

README = (ROOT / "README.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| (`(?:SUPERVISOR|REDCAP|SYNC)_[^|]+?) \|([^|]*)\|", README, re.MULTILINE))
DEFAULTS = {name: default for cell, default in ROWS.items() for name in re.findall(r"`([A-Z_]+)`", cell)}
MODELS = (("SUPERVISOR_", Settings), ("REDCAP_", RedcapSettings), ("SYNC_", SyncSettings))
FIELDS = {prefix + name.upper(): info for prefix, model in MODELS for name, info in model.model_fields.items()}


def test_every_setting_is_in_the_table_and_nothing_else():
    assert set(DEFAULTS) == set(FIELDS)


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


def test_the_tables_are_as_the_code_has_them():
    assert readme.made(README) == README, "run: python -m ops.readme"


def test_a_table_that_differs_is_found(monkeypatch):
    monkeypatch.setitem(CATALOGUE, "NoWorker", ("Another meaning.", "Another remedy."))
    assert "Another remedy." in readme.made(README) != README
    monkeypatch.undo()
    monkeypatch.setattr(Settings.model_fields["interval"], "default", 3600.0)
    assert "| `1h` |" in readme.made(README)


def test_every_link_inside_leads_somewhere():
    slugs = {
        re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    }
    links = set(re.findall(r"\]\(#([^)]+)\)", README))
    assert len(links) > 5
    assert links <= slugs
    for path in re.findall(r"\]\((?!#|https?:)([^)]+)\)", README):
        assert (ROOT / path).exists(), path
