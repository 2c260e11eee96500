"""The units, as far as a machine can tell that does not run systemd; the installer, in a root folder of its own."""

import os
import re
import shutil
import stat
import subprocess
import sys

import pytest

from supervisor.settings import Settings, duration_s
from tests.conftest import ROOT

UNITS = ROOT / "ops" / "systemd"
NAMES = ("redcap-sync.service", "redcap-sync@.service")
EXPOSURE_MAX = 1.5
needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")


def settings_of(name):
    return dict(re.findall(r"^(\w+)=(.*)$", (UNITS / name).read_text(), re.MULTILINE))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A root folder into which it was installed; not by `nothing_left`'s leave, as pip starts a lot."""
    folder = tmp_path_factory.mktemp("root")
    install(folder)
    return folder


def install(folder, command="install"):
    done = subprocess.run(
        [ROOT / "ops" / command, "--root", folder],
        env={name: value for name, value in os.environ.items() if not name.startswith(("SUPERVISOR_", "REDCAP_"))},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_systemd
@pytest.mark.parametrize("name", NAMES)
def test_systemd_finds_nothing_to_complain_of(root, name):
    path = root / "etc/systemd/system" / name.replace("@", "@north")
    if "@" in name:
        shutil.copy(UNITS / name, path)
    text = path.read_text().replace("/opt/", f"{root}/opt/")  # it looks whether the program is there
    checked = root / path.name
    checked.write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", checked], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
@pytest.mark.parametrize("name", NAMES)
def test_it_is_exposed_as_little_as_a_network_client_can_be(name):
    command = ["systemd-analyze", "security", "--offline=true", UNITS / name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    level = float(re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)[1])
    assert level <= EXPOSURE_MAX


@pytest.mark.parametrize("name", NAMES)
def test_its_bounds_fit_ours(name):
    unit = settings_of(name)
    default = {field: about.default for field, about in Settings.model_fields.items()}
    assert duration_s(unit["TimeoutStopSec"]) > 2 * default["grace"] + 10
    assert duration_s(unit["WatchdogSec"].replace("min", "m")) > 2 * 60  # the loop wakes once a minute at least
    memory_max = int(unit["MemoryMax"].removesuffix("M")) << 20
    assert memory_max > default["rss_ceiling"] + 150_000_000  # the supervisor, settings that are read, page cache
    assert (unit["OOMPolicy"], unit["KillMode"], unit["Type"]) == ("continue", "mixed", "notify")


def test_the_template_is_the_unit_but_for_its_name():
    one, other = ((UNITS / name).read_text().splitlines()[1:] for name in NAMES)
    different = [line for line in other if line not in one]
    assert len(one) + 1 == len(other)  # the job has the instance's name
    assert len(different) == 5
    assert all("%i" in line for line in different)


def test_it_says_what_it_does_and_does_it_once(root):
    program = root / "opt/redcap-sync/bin/redcap-sync"
    done = subprocess.run([program, "--version"], capture_output=True, text=True, cwd="/", check=True)
    assert done.stdout.startswith("redcap-sync ")
    settings = root / "etc/redcap-sync/redcap-sync.env"
    assert stat.S_IMODE(settings.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(settings.stat().st_mode) == 0o600
    assert "#REDCAP_API_URL=" in settings.read_text()
    settings.write_text("REDCAP_API_URL=https://redcap.example.org/api/\n")
    before = {path: path.stat().st_mtime_ns for path in (root / "etc").rglob("*") if path.is_file()}
    said = install(root)
    assert "wrote" not in said
    assert "made" not in said
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_it_runs_from_there_and_nothing_of_the_source_is_needed(root, cli):
    for name in ("supervisor", "worker"):
        installed = list((root / "opt/redcap-sync/lib").glob(f"python*/site-packages/{name}"))
        assert len(installed) == 1
    env = {name: value for name, value in cli.env.items() if name != "PYTHONPATH"} | {"SUPERVISOR_JOB": "builtins:dict"}
    program = root / "opt/redcap-sync/bin/redcap-sync"
    done = subprocess.run([program, "once"], capture_output=True, text=True, cwd="/", env=env, check=False)
    assert done.returncode == 0, done.stderr
    assert not list((root / "opt/redcap-sync/lib").glob("python*/site-packages/tests"))


def test_uninstalling_leaves_data_alone_and_can_be_done_twice(tmp_path):
    for path in ("opt/redcap-sync/bin", "etc/redcap-sync", "etc/systemd/system", "var/lib/redcap-sync"):
        (tmp_path / path).mkdir(parents=True)
    kept = [tmp_path / "etc/redcap-sync/redcap_api_token", tmp_path / "var/lib/redcap-sync/redcap.db"]
    wants = tmp_path / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir()
    for name in ("redcap-sync.service", "redcap-sync@north.service", "others.service"):
        (wants / name).symlink_to(f"../{name}")
    for path in (
        *kept,
        tmp_path / "etc/systemd/system/redcap-sync.service",
        tmp_path / "etc/systemd/system/others.service",
    ):
        path.write_text("x")
    said = install(tmp_path, "uninstall")
    assert f"left alone: {tmp_path}/var/lib/redcap-sync" in said
    assert f"removed {tmp_path}/opt/redcap-sync" in said
    assert "disabled redcap-sync@north.service" in said
    assert [link.name for link in wants.iterdir()] == ["others.service"]
    assert "removed" not in install(tmp_path, "uninstall")
    assert all(path.exists() for path in (*kept, tmp_path / "etc/systemd/system/others.service"))
    assert not (tmp_path / "opt/redcap-sync").exists()


def _may_unshare():
    done = subprocess.run(["unshare", "--pid", "--fork", "--mount", "true"], capture_output=True, check=False)
    return done.returncode == 0


@pytest.mark.skipif(not _may_unshare(), reason="namespaces are not allowed here")
@pytest.mark.parametrize(("options", "code"), [("subset=pid", 0), ("subset=pid,hidepid=invisible", 1)])
def test_a_proc_that_shows_processes_alone_is_enough_and_one_that_hides_workers_is_found(cli, options, code):
    """A worker can't be read by its own user, so it is hidden: the ceiling would not see its children."""
    redcap_sync = f"{sys.executable} -m supervisor"
    script = f"mount -t proc -o {options} proc /proc && {redcap_sync} once && {redcap_sync} check --json"
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount", "timeout", "60", "sh", "-c", script],
        env=cli.env | {"SUPERVISOR_JOB": "jobs:ok"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert '"outcome":"ok"' in done.stderr
    assert ("hidepid=invisible" in done.stdout) == bool(code)


def test_units_hide_no_worker_from_its_supervisor():
    for name in NAMES:
        assert settings_of(name)["ProtectProc"] == "default"


def test_a_strict_umask_and_a_half_made_environment_are_no_hindrance(tmp_path):
    """The service's user must reach the program; what an interrupted install left is made anew."""
    (tmp_path / "opt/redcap-sync/bin").mkdir(parents=True)
    (tmp_path / "opt/redcap-sync/bin/python").symlink_to("/bin/false")
    before = os.umask(0o077)
    try:
        install(tmp_path)
    finally:
        os.umask(before)
    for path in ("opt/redcap-sync/bin/redcap-sync", "etc/systemd/system"):
        assert (tmp_path / path).stat().st_mode & 0o005 == 0o005, path
    settings = tmp_path / "etc/redcap-sync/redcap-sync.env"
    assert settings.stat().st_mode & 0o777 == 0o600
    settings.chmod(0o644)
    assert "WARNING" in install(tmp_path)
