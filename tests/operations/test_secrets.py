"""Canaries: the secrets of a real run are looked for in everything that it and its server leave behind."""

from __future__ import annotations

import base64
import io
import json
import os
from datetime import datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import s3fs
from running import PAGE, SCREENSHOTS, Prefect, free_port, patiently

from styleclip.flows.doors import open_doors
from tests.pipeline.test_flows import encoded, portrait


@pytest.fixture(scope="module")
def bucket(prefect) -> s3fs.S3FileSystem:
    """The object store as its administrator sees it."""
    environment = prefect.environment
    return s3fs.S3FileSystem(
        key=environment["AWS_ACCESS_KEY_ID"], secret=environment["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=environment["AWS_ENDPOINT_URL"], skip_instance_cache=True, use_listings_cache=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def edited(prefect, bucket) -> str:
    """A run of the deployed bulk edit on a bucket, with one broken image."""
    for number in range(4):
        bucket.pipe_file(f"photographs/in/p{number}.png", encoded(portrait(number)))
    bucket.pipe_file("photographs/in/broken.png", b"no image")
    run = prefect.start_run("edit-images/edit-photographs", _parameters("s3://photographs/in"))
    prefect.wait_for(run, "Completed", "Failed", "Crashed")
    assert prefect.state(run) == "Completed", prefect.tail()
    return run


def _parameters(photos: str) -> dict:
    return {
        "photos": photos, "out": "s3://results/out", "workspace": "",
        "edits": [{"target": "hat", "beta": 0, "templates": "none"}],
        "sampling": {"statistics": 20, "codes": 2}, "relevance": {"samples": 2, "channels_per_shard": 50},
        "inversion": {"steps": 1}, "execution": {"device": "cpu", "shard_size": 3},
    }  # fmt: skip


def _failed_run(prefect: Prefect) -> str:
    run = prefect.start_run("edit-images/edit-photographs", _parameters("s3://nowhere/in"))
    prefect.wait_for(run, "Failed", "Completed", "Crashed")
    assert prefect.state(run) == "Failed"
    assert any("no such object or bucket" in line for line in prefect.logs(run))
    return run


def _strings(name: str, content: bytes) -> bytes:
    """Return what a file says: decompressed where it is Parquet, unwrapped where it is a task's result."""
    if "/prefect/" in name:
        return base64.b64decode(json.loads(content)["result"] if content.startswith(b"{") else content)
    if not name.endswith(".parquet"):
        return content
    table = pq.read_table(io.BytesIO(content))
    return repr(table.schema.metadata).encode() + repr(table.to_pylist()).encode()


def test_no_secret_is_left_anywhere(prefect, bucket, edited):
    _failed_run(prefect)
    deployment = prefect.get("deployments/name/edit-images/edit-photographs")["id"]
    parameters = _parameters("https://user:canary-userinfo@example.org/in")
    refused = prefect.ask("POST", f"deployments/{deployment}/create_flow_run", {"parameters": parameters})
    assert refused.status_code == 409
    canaries = {name: value.encode() for name, value in prefect.secrets.items()}
    assert len(canaries) >= 6
    searched: dict[str, bytes] = {}
    for key in bucket.find("results"):
        content = bucket.cat_file(key)
        searched[f"s3://{key}"] = content + _strings(key, content)
    for path in [*prefect.home.rglob("*"), *Path(prefect.environment["STYLECLIP_WORKSPACE"]).rglob("*")]:
        if path.is_file():
            searched[str(path)] = path.read_bytes()
    for what in (
        "flow_runs",
        "task_runs",
        "artifacts",
        "logs",
        "block_documents",
        "deployments",
        "automations",
    ):
        found = prefect.ask("POST", f"{what}/filter", {"limit": 200})
        assert found.status_code == 200, found.text
        assert len(found.json()) > 0
        searched[f"api/{what}"] = found.content
    assert any(name.endswith("prefect.db") for name in searched)
    assert any(name.endswith("server.log") for name in searched)
    assert any(name.endswith("worker.log") for name in searched)
    for ending in ("manifest.parquet", "index.html", "contact-sheet.png", ".png"):
        assert any(name.startswith("s3://results/out/") and name.endswith(ending) for name in searched)
    assert any(name.startswith("s3://results/prefect/") for name in searched)  # results of tasks
    found = [
        (name, place)
        for place, text in searched.items()
        for name, canary in canaries.items()
        if canary in text
    ]
    assert found == []
    assert any(b"edit-images" in text for text in searched.values())  # what is there is found


def test_metrics_for_grafana_are_those_of_the_runs(prefect, edited):
    text = prefect.styleclip("server-metrics")
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(lines['styleclip_runs{deployment="edit-images/edit-photographs",state="COMPLETED"}']) == 1
    assert lines['styleclip_step_rows{step="invert-images"}'] == "5.0"
    assert lines['styleclip_step_failed_items{step="invert-images"}'] == "1.0"
    assert float(lines['styleclip_step_rows_per_second{step="edit-images"}']) > 0
    ended = prefect.get(f"flow_runs/{edited}")["end_time"]
    last = float(
        lines['styleclip_last_completed_timestamp_seconds{deployment="edit-images/edit-photographs"}']
    )
    assert last == pytest.approx(datetime.fromisoformat(ended).timestamp(), abs=0.01)


def test_the_contact_sheet_and_the_summary_are_shown(prefect, browser, edited):
    artifacts = prefect.artifacts(edited)
    assert {"edit-images-contact-sheet", "edit-images-report", "edit-images-page", "invert-images"} <= set(
        artifacts
    )
    report = artifacts["edit-images-report"]["data"]
    assert "5 images, 1 failed or skipped" in report
    assert "broken.png" in report
    assert "| invert-images |" in report
    assert artifacts["invert-images"]["data"] == 100
    assert sum(line.startswith("invert-images ") for line in prefect.logs(edited)) >= 2  # a line per shard
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    page.set_default_timeout(PAGE)
    for key, name in (("edit-images-contact-sheet", "contact-sheet"), ("edit-images-report", "summary")):
        page.goto(
            f"{prefect.url}/v2/artifacts/artifact/{artifacts[key]['id']}", wait_until="domcontentloaded"
        )
        if name == "contact-sheet":
            picture = page.locator('img[src^="data:image/jpeg"]').first
            picture.wait_for(timeout=PAGE)
            assert picture.evaluate("image => image.naturalWidth") > 300
        else:
            page.get_by_text("broken.png").first.wait_for(timeout=PAGE)
        page.screenshot(path=SCREENSHOTS / f"artifact-{name}.png")
    page.close()


def test_a_server_that_lets_anybody_in_is_not_set_up(prefect):
    assert open_doors(f"{prefect.url}/api") == [
        "it answers without a password: set PREFECT_SERVER_API_AUTH_STRING",
        "pages of every origin may ask it: set PREFECT_SERVER_CORS_ALLOWED_ORIGINS",
    ]
    with pytest.raises(AssertionError, match="lets anybody in") as refused:
        prefect.styleclip("setup-server")
    assert "PREFECT_SERVER_API_AUTH_STRING" in str(refused.value)


def test_with_a_password_nobody_else_is_served(prefect, tmp_path):
    port = free_port()
    locked = Prefect(tmp_path, port, {
        **{k: v for k, v in prefect.environment.items() if not k.startswith(("PREFECT_", "AWS_"))},
        "PREFECT_HOME": str(tmp_path), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_API_AUTH_STRING": "operator:canary-password",
        "PREFECT_SERVER_METRICS_ENABLED": "true", "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://127.0.0.1:{port}",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1",
    })  # fmt: skip
    try:
        locked.serve()
        for path in ("flow_runs/filter", "deployments/filter", "block_documents/filter"):
            url = f"{locked.url}/api/{path}"
            assert patiently("POST", url, json={}).status_code in (401, 403)
            # what a browser sends along by itself is not enough
            signed = patiently("POST", url, json={}, auth=("operator", "canary-password"))
            assert signed.status_code == 403
        for password, status in (("guess", 401), ("canary-password", 200)):
            auth = ("operator", password)
            pools = patiently("GET", f"{locked.url}/api/admin/version", auth=auth)
            assert pools.status_code == status
        assert patiently("GET", f"{locked.url}/api/metrics").status_code == 401
        assert patiently("GET", f"{locked.url}/api/health").status_code == 200  # for load balancers
        locked.environment["PREFECT_API_AUTH_STRING"] = "operator:canary-password"
        assert "made" in locked.styleclip("setup-server")

        # nobody who may start a run can say what is executed
        pool = patiently("GET", f"{locked.url}/api/work_pools/styleclip-gpu", auth=auth).json()
        template = pool["base_job_template"]
        for part in (template["job_configuration"], template["variables"]["properties"]):
            assert "env" in part
            assert not {"command", "working_dir"} & set(part)
        log = (tmp_path / "server.log").read_text()
        assert "canary-password" not in log
    finally:
        locked.stop()
    assert os.environ.get("PREFECT_API_AUTH_STRING") is None
