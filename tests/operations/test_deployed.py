"""What setting up and deploying leave on a real server, and what its forms refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from running import LIMIT, PAGE, POOL, ROOT, SCREENSHOTS, Prefect, wait_until

DEPLOYED = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


def named(each: dict) -> str:
    flow = each["entrypoint"].partition(":")[2].replace("_", "-")
    return f"{flow}/{each['name']}"


@pytest.mark.parametrize("wanted", DEPLOYED, ids=named)
def test_every_deployment_is_there_with_queue_tags_and_a_form(prefect, wanted):
    found = prefect.get(f"deployments/name/{named(wanted)}")
    assert found["work_pool_name"] == POOL
    assert found["work_queue_name"] == wanted["work_pool"]["work_queue_name"]
    assert set(found["tags"]) == set(wanted["tags"])
    assert found["description"] == wanted["description"]
    assert found["enforce_parameter_schema"] is True
    assert found["parameters"].keys() == wanted["parameters"].keys()
    for name, field in found["parameter_openapi_schema"]["properties"].items():
        shown = {**_definition(found, field), **field}
        assert shown.get("description"), f"{name} has no description"


def _definition(found: dict, field: dict) -> dict:
    name = field.get("$ref", "").rpartition("/")[2]
    return found["parameter_openapi_schema"].get("definitions", {}).get(name, {})


def test_the_nightly_build_is_scheduled(prefect):
    nightly = prefect.get("deployments/name/build-relevance/nightly")
    (schedule,) = nightly["schedules"]
    assert schedule["schedule"]["cron"] == "0 2 * * *"
    assert schedule["schedule"]["timezone"] == "Europe/Berlin"
    wanted = {"deployments": {"id": {"any_": [nightly["id"]]}}}

    def runs() -> list[dict]:
        return prefect.post("flow_runs/filter", **wanted, sort="EXPECTED_START_TIME_ASC", limit=5)

    wait_until(lambda: bool(runs()), "scheduled runs are there", 60, prefect.tail)
    assert runs()[0]["state_type"] == "SCHEDULED"
    assert runs()[0]["auto_scheduled"] is True


def _without_ids(value: object) -> object:
    """Return what a trigger says; its parts get new ids with every update."""
    if isinstance(value, dict):
        return {name: _without_ids(each) for name, each in value.items() if name != "id"}
    return [_without_ids(each) for each in value] if isinstance(value, list) else value


def test_setting_up_twice_changes_nothing(prefect, receiver):
    def everything() -> list[object]:
        pool = prefect.get(f"work_pools/{POOL}")
        queues = prefect.post(f"work_pools/{POOL}/queues/filter")
        limits = prefect.post("v2/concurrency_limits/filter")
        automations = prefect.post("automations/filter")
        kept = ("id", "name", "limit", "priority", "trigger", "actions", "base_job_template")
        found = sorted([pool, *queues, *limits, *automations], key=lambda each: each["name"])
        return [
            {name: each[name] if name == "id" else _without_ids(each[name]) for name in kept if name in each}
            for each in found
        ]

    before = everything()
    said = prefect.styleclip(
        "setup-server", "--unprotected", "--device-limit", LIMIT, "--results", "s3://results/prefect"
    )
    after = everything()
    assert said.count(": there\n") + said.count(": there,") == 4  # pool, queues and what ends runs
    names = {each["name"] for each in after}
    assert {POOL, "nightly", "bulk", LIMIT} <= names
    assert sum("styleclip: " in name for name in names) == 4
    assert said.count("': there") == 1  # without the webhook, what tells of runs is left alone
    assert after == before
    (pool,) = (each for each in after if each["name"] == POOL)
    environment = pool["base_job_template"]["variables"]["properties"]["env"]["default"]
    assert environment["PREFECT_DEFAULT_RESULT_STORAGE_BLOCK"] == "remote-file-system/styleclip-results"


def test_the_server_listens_on_loopback_alone(prefect):
    listening = []
    for table, loopback in (("tcp", "0100007F"), ("tcp6", "0" * 24 + "01000000")):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            address, port = line.split()[1].split(":")
            if int(port, 16) == prefect.port and line.split()[3] == "0A":
                listening.append(address == loopback)
    assert listening == [True]


def test_metrics_of_the_server_s_process_are_there(prefect):
    text = prefect.ask("GET", "metrics").text
    assert "process_resident_memory_bytes" in text


WRONG = [
    ("edit-images/on-demand", {"edits": []}, "edits"),
    ("edit-images/on-demand", {"edits": [{"target": "hat", "method": "magic"}]}, "magic"),
    ("edit-images/on-demand", {"edits": [{"target": "hat", "templates": "mine"}]}, "mine"),
    ("edit-images/on-demand", {"execution": {"shard_size": 0}}, "shard_size"),
    ("edit-images/on-demand", {"photos": "https://user:canary-userinfo@host/in"}, "photos"),
    ("edit-images/on-demand", {"photos": "s3://AKIAX:canary-userinfo@bucket/in"}, "photos"),
    ("build-relevance/nightly", {"relevance": {"batch_size": 33}}, "batch_size"),
    ("build-relevance/nightly", {"relevance": {"strenght": 2}}, "strenght"),
    ("build-relevance/nightly", {"nightly": {"time_zone": "Atlantis/Capital"}}, "Atlantis"),
    ("build-relevance/nightly", {"nightly": {"night": "tomorrow"}}, "tomorrow"),
    ("build-relevance/nightly", {"add_samples": -1}, "add_samples"),
    ("train-mapper/on-demand", {"targets": []}, "targets"),
    ("train-mapper/on-demand", {"training": {"decay": 2}}, "decay"),
    ("align-faces/on-demand", {"alignment": {"output_size": 1}}, "output_size"),
]  # fmt: skip


@pytest.mark.parametrize(("deployment", "wrong", "named"), WRONG, ids=str)
def test_a_wrong_value_is_refused_before_there_is_a_run(prefect, deployment, wrong, named):
    found = prefect.get(f"deployments/name/{deployment}")
    before = prefect.post("flow_runs/count")
    places = {"photos": "s3://in/", "out": "s3://out/", "workspace": "s3://work/"}
    known = found["parameter_openapi_schema"]["properties"]
    parameters = {k: v for k, v in places.items() if k in known} | wrong
    answer = prefect.ask("POST", f"deployments/{found['id']}/create_flow_run", {"parameters": parameters})
    assert answer.status_code == 409, answer.text
    assert named in answer.text
    assert prefect.post("flow_runs/count") == before


def test_the_form_shows_names_units_ranges_choices_and_defaults(prefect: Prefect, browser):
    found = prefect.get("deployments/name/build-relevance/nightly")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page = browser.new_page(viewport={"width": 1300, "height": 2600})
    page.set_default_timeout(PAGE)
    page.goto(f"{prefect.url}/v2/deployments/deployment/{found['id']}/run", wait_until="domcontentloaded")
    page.get_by_text("Truncation Psi").first.wait_for(timeout=PAGE)
    text = page.locator("body").inner_text()
    for wanted in (
        "Pull towards the average w; 1 for none", "Size of the move in standard deviations of the channel",
        "Style codes per channel that a night adds", "URI of the folder for artifacts",
    ):  # fmt: skip
        assert wanted in text
    page.screenshot(path=SCREENSHOTS / "form.png", full_page=True)
    page.goto(f"{prefect.url}/deployments/deployment/{found['id']}/run", wait_until="domcontentloaded")
    page.get_by_text("Truncation Psi").first.wait_for(timeout=PAGE)
    page.screenshot(path=SCREENSHOTS / "form-v1.png", full_page=True)
    page.close()
