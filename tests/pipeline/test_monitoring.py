"""Rules and dashboard ask for metrics that exist, the server's are told, and cron's command works."""

import json
import re
import subprocess
import sys
from pathlib import Path

import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.states import Completed, Running

from styleclip.flows.server_metrics import METRICS, server_metrics

ROOT = Path(__file__).parents[2]
PLACE = ROOT / "docs" / "monitoring"
RULES = yaml.safe_load((PLACE / "styleclip.rules.yml").read_text())["groups"][0]["rules"]
PANELS = json.loads((PLACE / "styleclip.dashboard.json").read_text())["panels"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]


def named(queries: list[str]) -> set[str]:
    return {name for query in queries for name in re.findall(r"styleclip_\w+", query)}


def labels(queries: list[str]) -> set[str]:
    found = re.findall(r"(?:by|on) \(([^)]*)\)|\{(\w+)=", " ".join(queries))
    return {label.strip() for group in found for part in group for label in part.split(",") if label.strip()}


def test_rules_and_dashboard_ask_for_metrics_that_exist_and_show_them_all():
    rules = [rule["expr"] for rule in RULES]
    assert named(rules) <= set(METRICS)
    assert named(QUERIES) == set(METRICS)
    assert labels(rules + QUERIES) <= {label for _, known in METRICS.values() for label in known}


def values(text: str) -> dict[str, str]:
    return dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))


def test_the_table_and_the_devices_are_told(prefect_server):
    size = json.dumps([{"samples": 300, "channels": 6048}])
    with get_client(sync_client=True) as client:
        client.create_artifact(ArtifactCreate(key="relevance-table", type="table", data=size))
        client.upsert_global_concurrency_limit_by_name("a-gpu-7", 1)
        client.upsert_global_concurrency_limit_by_name("tag:not-a-device", 4)
    found = values(server_metrics())
    assert found["styleclip_table_samples"] == "300.0"
    assert found["styleclip_table_channels"] == "6048.0"
    assert found['styleclip_device_slots{device="a-gpu-7"}'] == "1.0"
    assert found['styleclip_device_slots_held{device="a-gpu-7"}'] == "0.0"
    assert not any("not-a-device" in name for name in found)
    age = float(found["styleclip_metrics_timestamp_seconds"]) - float(
        found["styleclip_table_timestamp_seconds"]
    )
    assert 0 <= age < 600


def test_a_dry_run_is_no_completed_run(prefect_server):
    with get_client(sync_client=True) as client:
        flow = client.create_flow_from_name("told-and-done")
        deployment = client.create_deployment(flow, "for-the-metrics")
        metric = 'styleclip_last_completed_timestamp_seconds{deployment="told-and-done/for-the-metrics"}'
        for state, counted in ((Completed(name="DryRun"), False), (Completed(), True)):
            run = client.create_flow_run_from_deployment(deployment)
            client.set_flow_run_state(run.id, Running(), force=True)
            client.set_flow_run_state(run.id, state, force=True)
            assert (metric in values(server_metrics())) == counted


def from_cron(tmp_path: Path, address: str) -> subprocess.CompletedProcess:
    """Run the command as cron does: with a file of its environment and none of a shell's."""
    file, out = tmp_path / "client.env", tmp_path / "styleclip.prom"
    file.write_text(f"# for metrics\nPREFECT_API_URL={address}\nPREFECT_API_AUTH_STRING='operator:canary'\n")
    command = ["server-metrics", "--env-file", str(file), "--out", str(out)]
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "styleclip_cli.main", *command],
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_cron_s_command_writes_whole_files_or_says_what_is_wrong(prefect_server, tmp_path):
    done = from_cron(tmp_path, prefect_server)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    written = (tmp_path / "styleclip.prom").read_text()
    assert float(values(written)["styleclip_metrics_timestamp_seconds"]) > 0

    away = from_cron(tmp_path, "http://127.0.0.1:9/api")
    assert away.returncode == 2
    assert away.stderr.startswith(
        "error: the Prefect server at http://127.0.0.1:9/api, which PREFECT_API_URL"
    )
    assert "canary" not in away.stderr
    assert (tmp_path / "styleclip.prom").read_text() == written  # and by its time one sees how old it is
    assert sorted(path.name for path in tmp_path.glob("*.prom*")) == ["styleclip.prom"]
