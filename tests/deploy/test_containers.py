"""The container files: what of them can be checked without an engine, and with one where there is one."""

import json
import re
import shutil
import subprocess

import kubernetes_validate
import pytest
import yaml

from supervisor import __version__
from supervisor.settings import Settings, duration_s
from tests.conftest import ROOT

KUBERNETES = ROOT / "ops" / "kubernetes"
DOCKER = ROOT / "ops" / "docker"
VERSIONS = ("1.28", "1.31", "1.33")
DEFAULTS = {name: about.default for name, about in Settings.model_fields.items()}


def documents(name):
    return list(yaml.safe_load_all((KUBERNETES / name).read_text()))


def pod(name):
    last = documents(name)[-1]["spec"]
    return (last["jobTemplate"]["spec"] if "jobTemplate" in last else last)["template"]["spec"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["deployment.yaml", "cronjob.yaml"])
def test_the_cluster_s_schema_takes_it(name, version):
    for one in documents(name):
        kubernetes_validate.validate(one, version, strict=True)


def test_the_schema_would_find_a_misspelt_key():
    (*_, deployment) = documents("deployment.yaml")
    deployment["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("name", ["deployment.yaml", "cronjob.yaml"])
def test_a_pod_is_restricted_and_its_bounds_fit_ours(name):
    """As the Pod Security Standard `restricted` wants it."""
    spec = pod(name)
    (container,) = spec["containers"]
    own = container["securityContext"]
    assert own == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    settings = documents("deployment.yaml")[1]["data"]
    assert spec["terminationGracePeriodSeconds"] > duration_s(settings["SUPERVISOR_GRACE"]) + 10
    ceiling = int(settings["SUPERVISOR_RSS_CEILING"].removesuffix("MB")) * 1_000_000
    assert int(container["resources"]["limits"]["memory"].removesuffix("Mi")) << 20 > ceiling + 150_000_000
    assert container["image"].endswith(f":{__version__}")
    assert "REDCAP_API_TOKEN" not in json.dumps(spec)  # it is a file
    claimed = {volume["name"] for volume in spec["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == claimed


def test_one_instance_and_no_second_beside_it():
    deployment = documents("deployment.yaml")[-1]["spec"]
    assert (deployment["replicas"], deployment["strategy"]) == (1, {"type": "Recreate"})
    job = documents("cronjob.yaml")[-1]["spec"]
    assert job["concurrencyPolicy"] == "Forbid"
    assert job["jobTemplate"]["spec"]["activeDeadlineSeconds"] > DEFAULTS["cycle_timeout"] + DEFAULTS["grace"]


def test_what_the_probes_run_is_a_command_of_ours(cli):
    commands = re.findall(r"exec: \{command: \[redcap-sync, ([^]]+)\]\}", (KUBERNETES / "deployment.yaml").read_text())
    assert len(commands) == 3
    for command in commands:
        assert cli.run(*command.split(", ")).code == 3
    assert sum("--alive" in command for command in commands) == 2


def test_the_image_is_made_of_what_is_there():
    text = (DOCKER / "Dockerfile").read_text()
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        for path in source.split():
            assert (ROOT / path).exists(), path
    assert "--require-hashes" in text
    assert re.search(r"^USER 10001", text, re.MULTILINE)
    assert '["redcap-sync", "status"]' in text
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    assert set(compose["services"]) == {"sandbox", "database", "sync"}
    assert compose["services"]["sync"]["read_only"] is True


def _engine():
    for name in ("docker", "podman"):
        if shutil.which(name) and subprocess.run([name, "info"], capture_output=True, check=False).returncode == 0:
            return name
    return None


@pytest.mark.skipif(_engine() is None, reason="no container engine runs here")
def test_the_image_is_built_and_runs():
    engine = _engine()
    subprocess.run([engine, "build", "-q", "-f", DOCKER / "Dockerfile", "-t", "redcap-sync:test", ROOT], check=True)
    run = [
        engine,
        "run",
        "--rm",
        "--read-only",
        "--tmpfs",
        "/tmp",
        "--cap-drop",
        "ALL",
        "-e",
        "SUPERVISOR_JOB=builtins:dict",
    ]
    done = subprocess.run([*run, "redcap-sync:test", "once"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"outcome":"ok"' in done.stderr
