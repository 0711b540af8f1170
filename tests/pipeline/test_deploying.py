"""Deploying leaves alone what people have paused or scheduled, and empties nothing that a schedule needs."""

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule, RRuleSchedule

from styleclip.flows import deployments
from styleclip.flows.deployments import DeployError, deploy, read_environment
from styleclip.flows.forms import flow_of, form_of
from styleclip.flows.server_setup import POOL, ServerSetup, set_up

ROOT = Path(__file__).parents[2]
NAMES = ("STYLECLIP_GENERATOR", "STYLECLIP_CLIP", "STYLECLIP_WORKSPACE")
VALUES = dict(zip(NAMES, ("s3://models/g.pkl", "ViT-B/32", "s3://results/w"), strict=True))
NIGHTLY, PROMPTS = "build-relevance/nightly", "inspect-prompts/check-prompts"


@pytest.fixture(autouse=True)
def fresh_shell(prefect_server, monkeypatch):
    """A shell that knows the server and nothing else."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def file(tmp_path) -> Path:
    """Two of the deployments, the scheduled one and another."""
    content = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    content["deployments"] = [
        each for each in content["deployments"]
        if each["entrypoint"].endswith((":build_relevance", ":inspect_prompts"))
    ]  # fmt: skip
    content.pop("definitions")
    path = tmp_path / "prefect.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def client():
    with get_client(sync_client=True) as found:
        yield found


def test_a_schedule_without_its_values_is_refused_before_anything_is_deployed(file, client):
    before = {each.id for each in client.read_deployments()}
    with pytest.raises(DeployError) as refused:
        deploy(file, {"STYLECLIP_CLIP": "ViT-B/32", "STYLECLIP_WORKSPACE": ""})
    assert str(refused.value) == (
        "build-relevance/nightly has a schedule and would lack STYLECLIP_GENERATOR, STYLECLIP_WORKSPACE; "
        "give them in the environment file or the shell; nothing was deployed"
    )
    assert {each.id for each in client.read_deployments()} == before


def states(deployment) -> dict[object, tuple[object, bool]]:
    return {
        each.slug or type(each.schedule).__name__: (each.schedule.model_dump(exclude_unset=True), each.active)
        for each in deployment.schedules
    }


def test_what_people_paused_and_scheduled_stays_and_the_rest_is_as_in_the_file(file, client):
    set_up(ServerSetup(unprotected=True))
    assert deploy(file, VALUES) == [f"{NIGHTLY}: made", f"{PROMPTS}: made"]
    nightly, prompts = (client.read_deployment_by_name(name) for name in (NIGHTLY, PROMPTS))
    assert nightly.parameters["models"] == {"generator": "s3://models/g.pkl", "clip": "ViT-B/32"}
    assert nightly.parameters["workspace"] == "s3://results/w"
    assert [(each.slug, each.active) for each in nightly.schedules] == [("nightly", True)]

    # what people do in the UI: pause, change, add
    (schedule,) = nightly.schedules
    changed = CronSchedule(cron="0 5 * * *", timezone="UTC")
    client.update_deployment_schedule(nightly.id, schedule.id, active=False, schedule=changed)
    added = [
        (CronSchedule(cron="30 14 * * 1", timezone="Africa/Cairo"), True),
        (IntervalSchedule(interval=timedelta(hours=36), timezone="Europe/Berlin"), False),
        (RRuleSchedule(rrule="FREQ=WEEKLY;BYDAY=SU", timezone="Asia/Tokyo"), True),
    ]
    client.create_deployment_schedules(nightly.id, added)
    client.create_deployment_schedules(prompts.id, added[:1])
    client.update_deployment(prompts.id, DeploymentUpdate(paused=True))
    client.update_deployment(nightly.id, DeploymentUpdate(parameters={"workspace": "elsewhere"}))
    before = [states(client.read_deployment_by_name(name)) for name in (NIGHTLY, PROMPTS)]

    for _ in range(2):  # the second time changes nothing
        told = deploy(file, VALUES)
        assert told == [
            f"{name}: brought up to date, what was paused stays paused" for name in (NIGHTLY, PROMPTS)
        ]
        nightly, prompts = (client.read_deployment_by_name(name) for name in (NIGHTLY, PROMPTS))
        after = [states(each) for each in (nightly, prompts)]
        cron, active = after[0].pop("nightly")
        assert (cron["cron"], cron["timezone"], active) == ("0 2 * * *", "Europe/Berlin", False)
        assert after[0] == {name: state for name, state in before[0].items() if name != "nightly"}
        assert after[1] == before[1]
        assert prompts.paused
        assert not nightly.paused
        assert nightly.parameters["workspace"] == "s3://results/w"

    # a schedule of the UI counts as one: what it has now may not be emptied
    with pytest.raises(DeployError, match="inspect-prompts/check-prompts has a schedule and would lack"):
        deploy(file, {})


def test_a_schedule_that_waits_to_be_switched_on_may_lack_values(file):
    content = yaml.safe_load(file.read_text())
    nightly, prompts = content["deployments"]
    nightly["schedules"][0]["active"] = False
    lacking = deployments._lacks
    assert list(lacking(nightly, None, {})) == list(lacking(prompts, None, {})) == []
    nightly["schedules"].append({"cron": "0 4 * * *", "slug": "more"})
    assert len(list(lacking(nightly, None, {}))) == 1


def test_prefect_s_own_refusal_is_one_line(file):
    broken = file.read_text().replace("0 2 * * *", "0 25 * * *")
    file.write_text(broken)
    with pytest.raises(DeployError, match=r"prefect deploy ended with 1, some may be deployed: .*cron"):
        deploy(file, VALUES)


WORD = st.text("abcXYZ0123456789/:.-_ #;=", max_size=12).map(str.strip)


@given(
    values=st.dictionaries(st.from_regex(r"[A-Z_][A-Z0-9_]{0,8}", fullmatch=True), WORD, max_size=5),
    quote=st.sampled_from(["", '"', "'"]),
    between=st.sampled_from(["", "# a comment\n", "; another=one\n", "\n"]),
)  # fmt: skip
def test_an_environment_file_is_read_as_systemd_reads_it(tmp_path_factory, values, quote, between):
    path = tmp_path_factory.mktemp("environment") / "deploy.env"
    path.write_text("".join(f"{between}{name}={quote}{value}{quote}\n" for name, value in values.items()))
    assert read_environment(path) == values


def test_a_line_of_another_kind_is_named_and_not_shown(tmp_path):
    path = tmp_path / "deploy.env"
    path.write_text("A=1\nexport SECRET=canary\n")
    with pytest.raises(DeployError, match=r"deploy\.env:2 is no KEY=VALUE") as refused:
        read_environment(path)
    assert "canary" not in str(refused.value)
    with pytest.raises(DeployError, match=r"cannot read the environment file .*none\.env"):
        read_environment(tmp_path / "none.env")


def test_the_guide_s_environment_files_are_such_files(tmp_path):
    guide = (ROOT / "docs" / "operations.md").read_text()
    blocks = [
        block for block in guide.split("\n\n") if block.startswith("    ") and "=" in block.split("\n")[0]
    ]
    files = [block for block in blocks if all("=" in line.split()[0] or line.lstrip().startswith("#")
                                              for line in block.splitlines())]  # fmt: skip
    assert len(files) >= 3
    for block in files:
        path = tmp_path / "guide.env"
        path.write_text(block)
        assert all("  #" not in value for value in read_environment(path).values()), block
    assert any(set(NAMES) <= set(read_environment(_written(tmp_path, block))) for block in files)


def _written(folder: Path, block: str) -> Path:
    path = folder / "block.env"
    path.write_text(block)
    return path


def test_the_pool_limits_runs_and_its_workers_do_not(client):
    set_up(ServerSetup(device_limits=("a-gpu-0", "a-gpu-1"), runs_per_device=3, unprotected=True))
    assert client.read_work_pool(POOL).concurrency_limit == 6
    set_up(ServerSetup(unprotected=True))  # says nothing of devices, and changes nothing of them
    assert client.read_work_pool(POOL).concurrency_limit == 6
    unit = (ROOT / "docs" / "systemd" / "styleclip-worker@.service").read_text()
    (command,) = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    assert "--limit" not in command


def test_without_a_server_the_command_says_what_is_missing(monkeypatch, tmp_path):
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "PREFECT_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "styleclip_cli.main", "deploy"],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no Prefect server: start one and give its address")


def test_what_is_no_longer_in_the_file_is_named_and_left_alone(file, client):
    set_up(ServerSetup(unprotected=True))
    content = yaml.safe_load(file.read_text())
    _nightly, prompts = content["deployments"]
    others = [
        {**prompts, "name": "retired", "schedules": [{"cron": "0 3 * * *", "timezone": "UTC"}]},
        {**prompts, "name": "of-somebody-else", "tags": [], "work_pool": {"name": "theirs"}},
    ]
    client.create_work_pool(WorkPoolCreate(name="theirs", type="process"))
    before = file.with_name("before.yaml")
    before.write_text(yaml.safe_dump({**content, "deployments": [*content["deployments"], *others]}))
    deploy(before, VALUES)

    told = deploy(file, VALUES)
    (line,) = [line for line in told if "brought up to date" not in line]
    assert line == (
        "inspect-prompts/retired: is on the server and not in the file; if nobody needs it, remove it with "
        "`prefect deployment delete inspect-prompts/retired`; its schedule goes on starting runs until then"
    )
    there = {each.name for each in client.read_deployments()}
    assert {"nightly", "check-prompts", "retired", "of-somebody-else"} <= there

    # the form is ours, not what Prefect makes of a signature
    found = client.read_deployment_by_name(PROMPTS)
    assert found.parameter_openapi_schema == form_of(flow_of(prompts["entrypoint"]))
    client.delete_deployment(client.read_deployment_by_name("inspect-prompts/retired").id)
