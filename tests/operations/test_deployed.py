"""What setting up and deploying leave on a real server, and what its forms refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from running import LIMIT, PAGE, POOL, ROOT, SCREENSHOTS, Prefect, wait_until

from styleclip.flows.forms import flow_of, form_of

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
    assert found["parameter_openapi_schema"] == form_of(flow_of(wanted["entrypoint"]))


def test_the_nightly_build_is_scheduled(prefect):
    nightly = prefect.get("deployments/name/build-relevance/nightly")
    (schedule,) = nightly["schedules"]
    assert schedule["schedule"]["cron"] == "0 2 * * *"
    assert schedule["schedule"]["timezone"] == "Europe/Berlin"
    wanted = {
        "deployments": {"id": {"any_": [nightly["id"]]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
    }  # fmt: skip

    def runs() -> list[dict]:
        return prefect.post("flow_runs/filter", **wanted, sort="EXPECTED_START_TIME_ASC", limit=5)

    wait_until(lambda: bool(runs()), "scheduled runs are there", 60, prefect.tail)
    assert {run["auto_scheduled"] for run in runs()} == {True}


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


EDIT, NIGHTLY = "edit-images/edit-photographs", "build-relevance/nightly"
WRONG = [
    (EDIT, {"edits": []}, "edits"),
    (EDIT, {"edits": [{"target": "hat", "method": "magic"}]}, "magic"),
    (EDIT, {"edits": [{"target": "hat", "templates": "mine"}]}, "mine"),
    (EDIT, {"edits": [{"target": "hat", "advanced": {"templates": "mine"}}]}, "mine"),
    (EDIT, {"edits": [{"target": "hat", "tarrget": "cap"}]}, "tarrget"),
    (EDIT, {"edits": [{"target": " "}]}, "target"),
    (EDIT, {"edits": [{"target": "hat", "beta": 1.5}]}, "1.5"),
    (EDIT, {"edits": [{"target": "hat", "beta": 0.1, "top_k": 3}]}, "give beta or top_k, one of them"),
    (EDIT, {"edits": [{"target": "hat", "beta": 0.1, "advanced": {"top_k": 3}}]}, "give beta or top_k"),
    (EDIT, {"edits": [{"target": "hat", "method": "mapper"}]}, "with its weights as advanced.mapper"),
    (EDIT, {"edits": [{"target": "hat", "alpha": [each / 100 for each in range(2001)]}]}, "edits[0].alpha"),
    (EDIT, {"photo": "s3://in/"}, "photo"),
    (EDIT, {"execution": {"shard_size": 0}}, "shard_size"),
    (EDIT, {"photos": "https://user:canary-userinfo@host/in"}, "photos"),
    (EDIT, {"photos": "s3://AKIAX:canary-userinfo@bucket/in"}, "photos"),
    (EDIT, {"photos": "https://host/in?X-Amz-Signature=canary-userinfo"}, "photos"),
    ("evaluate-edits/score-edits", {"judges": {"clip": "https://host/c.pt?sig=canary-userinfo"}}, "clip"),
    ("report-batch/write-batch-page", {"evaluations": ["s3://b:canary-userinfo@c/e"]}, "evaluations"),
    (NIGHTLY, {"relevance": {"batch_size": 33}}, "batch_size"),
    (NIGHTLY, {"relevance": {"strenght": 2}}, "strenght"),
    (NIGHTLY, {"nightly": {"time_zone": "Atlantis/Capital"}}, "Atlantis"),
    (NIGHTLY, {"nightly": {"night": "tomorrow"}}, "tomorrow"),
    (NIGHTLY, {"add_samples": -1}, "add_samples"),
    ("train-mapper/train-mappers", {"targets": []}, "targets"),
    ("train-mapper/train-mappers", {"targets": [""]}, "targets"),
    ("train-mapper/train-mappers", {"training": {"decay": 2}}, "decay"),
    ("align-faces/cut-out-faces", {"alignment": {"output_size": 1}}, "output_size"),
]


@pytest.mark.parametrize(("deployment", "wrong", "named"), WRONG, ids=lambda each: str(each)[:60])
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


TALLEST = 3500  # pixels of a form with one edit, in a window 1300 wide
TABS = {"/v2": "change", "": "Relevance"}  # what opens a group: the one UI says its title, the other its kind


@pytest.mark.parametrize("ui", TABS)
def test_the_form_fits_on_a_few_screens_and_opens_what_experts_want(prefect: Prefect, browser, ui):
    found = prefect.get(f"deployments/name/{EDIT}")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    page.set_default_timeout(PAGE)
    page.goto(f"{prefect.url}{ui}/deployments/deployment/{found['id']}/run", wait_until="domcontentloaded")
    page.get_by_text("How photographs become latents.").first.wait_for(timeout=PAGE)
    height = "Math.max(...[...document.querySelectorAll('*')].map(each => each.scrollHeight))"
    tall = page.evaluate(height)
    page.set_viewport_size({"width": 1300, "height": tall})
    name = "v2" if ui else "v1"
    page.screenshot(path=SCREENSHOTS / f"form-{name}.png", full_page=True)
    assert ui != "/v2" or tall < TALLEST

    # everyday fields stand there, in the order in which one thinks of them; the rest is folded away
    text = page.locator("body").inner_text()
    assert text.index("photos\n") < text.index("edits\n") < text.index("Target\n") < text.index("out\n")
    assert "Field\n" not in text
    assert "Channels Per Shard" not in text

    page.get_by_text(TABS[ui], exact=True).nth(2 if ui else 0).click()
    page.get_by_text("Size of the move in standard deviations of the channel").wait_for(timeout=PAGE)
    page.screenshot(path=SCREENSHOTS / f"form-open-{name}.png", full_page=True)
    page.close()
