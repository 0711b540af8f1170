"""The operator's path by the guide alone: from nothing to a table, a message, an upgrade, and back."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from guide import PASSWORD, Machine
from running import wait_until

NIGHTLY = "build-relevance/nightly"
PROMPT = 120  # seconds within which a message must be there
FAILING = """
import sys
from prefect.client.orchestration import get_client

with get_client(sync_client=True) as client:
    found = client.read_deployment_by_name("build-relevance/nightly")
    place = f"/deployments/{found.id}/schedules"
    if sys.argv[1:]:
        client.request("DELETE", f"{place}/{sys.argv[1]}")
    else:
        schedule = {"schedule": {"interval": 30}, "parameters": {"workspace": "/proc/nowhere"}}
        print(client.request("POST", place, json=[schedule]).json()[0]["id"])
"""


@pytest.fixture(scope="module")
def tried(machine: Machine) -> Path:
    """The workspace of step 6, with its table."""
    machine.run("try")
    return machine.root / "results" / "try"


def tables(workspace: Path) -> dict[str, bytes]:
    found = sorted(workspace.glob("relevance/*/relevance.parquet"))
    return {str(path.relative_to(workspace)): path.read_bytes() for path in found}


def runs(machine: Machine, *types: str) -> int:
    """Return how many builds the server remembers that are in some states."""
    wanted = " ".join(f"--state-type {each}" for each in types)
    return len(json.loads(machine.shell(f".venv/bin/prefect flow-run ls {wanted} --output json --limit 50")))


def history(machine: Machine) -> int:
    """Return how many runs the server remembers that ended well."""
    return runs(machine, "COMPLETED")


def test_the_steps_end_in_a_table_that_metrics_show(machine, tried):
    assert len(tables(tried)) == 1
    machine.run("watch")
    written = (machine.root / "var/lib/styleclip-metrics/styleclip.prom").read_text()
    assert "styleclip_table_samples 2.0" in written
    assert f'styleclip_runs{{deployment="{NIGHTLY}",state="COMPLETED"}}' in written


def test_a_scheduled_night_that_fails_at_once_is_told_at_once_and_with_a_link(machine, receiver):
    script = machine.root / "schedule.py"
    script.write_text(FAILING)
    told: list[str] = []
    link = machine.replaced("https://prefect.example.org/runs/flow-run/")

    def messages() -> list[str]:
        told[:] = [each["text"] for each in receiver if link in each["text"]]
        return told

    made = machine.shell(f".venv/bin/python {script}").strip()
    try:
        # the run begins within 30 s, the message comes within what the guide promises
        wait_until(lambda: bool(messages()), "the failed night is told", 60 + PROMPT, machine.tail)
    finally:
        machine.shell(f".venv/bin/python {script} {made}")
    # an upgrade lets runs end first
    wait_until(lambda: runs(machine, "PENDING", "RUNNING") == 0, "no run is left", 120, machine.tail)
    assert told[0].startswith("build-relevance/")
    assert " is Failed: " in told[0]


def test_an_upgrade_and_the_way_back_lose_nothing(machine, tried):
    machine.run("back up")
    before, remembered = tables(tried), history(machine)

    machine.run("upgrade")
    assert (
        machine.shell(".venv/bin/python -c 'import styleclip_core as s; print(s.__version__)'") == "0.2.0\n"
    )
    machine.run("try")
    upgraded = tables(tried)
    assert len(upgraded) == len(before) + 1  # the step means something else, so it was measured again
    assert before.items() <= upgraded.items()
    assert history(machine) == remembered + 1

    machine.run("roll back")
    assert (
        machine.shell(".venv/bin/python -c 'import styleclip_core as s; print(s.__version__)'") == "0.1.0\n"
    )
    machine.run("try")
    assert tables(tried) == upgraded  # found done
    assert history(machine) == remembered + 2

    # a database that is lost: the history since its copy goes, the work stays
    machine.run("restore")
    machine.shell("curl --silent --retry 30 --retry-connrefused http://127.0.0.1:4200/api/health")
    assert history(machine) == remembered
    assert tables(tried) == upgraded
    copy = machine.root / "var/backups/styleclip-prefect.db"
    assert copy.stat().st_mode & 0o077 == 0
    with sqlite3.connect(copy) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_the_password_is_in_no_log(machine, tried):
    for log in machine.root.glob("*.log"):
        assert PASSWORD.partition(":")[2] not in log.read_text(errors="replace"), log
