"""What people would install: the wheel and the source archive, their bill of materials."""

import email
import json
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest

from supervisor import __version__
from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [ROOT / "ops" / "release", "--out", folder], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def test_two_builds_of_one_source_are_the_same(release):
    _, said = release
    assert "built twice, the same byte for byte" in said
    assert re.search(r"pip-audit (knows of no vulnerability|could not ask)", said)


def test_the_wheel_has_the_program_and_nothing_else(release):
    (path,) = release[0].glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        info = f"redcap_sync_supervisor-{__version__}.dist-info"
        metadata = email.message_from_bytes(wheel.read(f"{info}/METADATA"))
        entry_points = wheel.read(f"{info}/entry_points.txt").decode()
    assert {name.partition("/")[0] for name in names} == {"supervisor", "worker", info}
    for name in ("supervisor/py.typed", "worker/py.typed", "supervisor/page/page.html", "supervisor/page/page.js"):
        assert name in names
    assert "redcap-sync = supervisor.cli:main" in entry_points
    assert f"{info}/licenses/LICENSE" in names
    for field in (
        "Name",
        "Version",
        "Summary",
        "License-Expression",
        "Requires-Python",
        "Keywords",
        "Author",
        "Description",
    ):
        assert metadata[field] or metadata.get_payload(), field
    assert metadata["License-Expression"] == "MIT"
    assert set(metadata.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])
    assert metadata.get_payload().startswith("# REDCap sync supervisor")


def test_the_source_archive_builds_the_same_wheel(release, tmp_path):
    (path,) = release[0].glob("*.tar.gz")
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        tmp_path / "again",
    ]
    subprocess.run([*command, source], check=True, capture_output=True)
    (again,) = (tmp_path / "again").iterdir()
    (wheel,) = release[0].glob("*.whl")
    with zipfile.ZipFile(again) as one, zipfile.ZipFile(wheel) as other:
        assert {name: one.read(name) for name in one.namelist() if "RECORD" not in name} == {
            name: other.read(name) for name in other.namelist() if "RECORD" not in name
        }


def test_it_is_installed_and_runs_outside_the_repository(release, tmp_path, cli):
    (wheel,) = release[0].glob("*.whl")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        tmp_path / "there",
        wheel,
    ]
    subprocess.run(command, check=True, capture_output=True)
    env = cli.env | {"PYTHONPATH": str(tmp_path / "there"), "SUPERVISOR_JOB": "builtins:dict"}
    where = "import supervisor, worker; print(supervisor.__file__, worker.__file__)"
    done = subprocess.run([sys.executable, "-c", where], cwd="/", env=env, capture_output=True, text=True, check=True)
    assert done.stdout.count(str(tmp_path / "there")) == 2
    for arguments in (["-m", "supervisor", "once"], [tmp_path / "there" / "bin" / "redcap-sync", "report"]):
        done = subprocess.run(
            [sys.executable, *arguments], cwd="/", env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_the_bill_of_materials_has_what_the_lock_has(release):
    bill = json.loads((release[0] / "sbom.cdx.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    listed = {(one["name"], one["version"]) for one in bill["components"]}
    locked = set(re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / "ops/lock/start.txt").read_text(), re.MULTILINE))
    assert listed == locked


def test_supported_pythons_are_said_the_same_everywhere():
    classifiers = [one.rpartition(" ")[2] for one in PROJECT["classifiers"] if one.startswith("Programming Language")]
    loop = re.search(r"VERSIONS:-([\d. ]+)\}", (ROOT / "ops/pythons").read_text())[1].split()
    assert classifiers == loop == ["3.11", "3.12", "3.13"]
    assert PROJECT["requires-python"] == ">=3.11"
