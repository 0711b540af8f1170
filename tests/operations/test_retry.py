"""Retry on a real server: what failed runs again, what is done does not, and the table is the same.

Executions are counted where the work is done, not read off states. Screenshots of the run's page lie in
``build/screenshots``.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import LAYER, LIMIT, PAGE, SCREENSHOTS, Prefect, family_of, wait_until

from tests.left import files_of


class Build:
    """The deployed relevance build with its faults and its count of executions."""

    deployment = "build-relevance/faulty"

    def __init__(self, prefect: Prefect) -> None:
        self.prefect = prefect
        self.log, self.flag = (Path(prefect.environment[name]) for name in ("FAULTY_LOG", "FAULTY_FLAG"))
        self.workspace = Path(prefect.environment["STYLECLIP_WORKSPACE"])
        self.clear()

    def clear(self) -> None:
        shutil.rmtree(self.workspace, ignore_errors=True)
        self.log.unlink(missing_ok=True)
        self.flag.unlink(missing_ok=True)

    def start(self, workspace: Path | None = None) -> str:
        parameters = {
            "models": {
                "generator": self.prefect.environment["STYLECLIP_GENERATOR"],
                "clip": self.prefect.environment["STYLECLIP_CLIP"],
            },
            "workspace": str(workspace or self.workspace),
            "sampling": {"statistics": 50, "codes": 2},
            "relevance": {"samples": 2},
            "execution": {"device": "cpu"},
        }
        return self.prefect.start_run(self.deployment, parameters)

    def complete(self, run: str) -> None:
        """Wait for a run to end, and well."""
        self.prefect.wait_for(run, "Completed", "Failed", "Crashed")
        assert self.prefect.state(run) == "Completed", self.prefect.tail()

    def disturbed(self, wish: str, state: str) -> tuple[str, list[str]]:
        """Run with a fault until the run is in ``state``; returns the run and what it executed."""
        self.flag.write_text(wish)
        run = self.start()
        self.prefect.wait_for(run, state)
        first = self.executions()
        self.flag.unlink()
        return run, first

    def hanging(self) -> str:
        """Start a run and wait until its shard hangs."""
        self.flag.write_text("hang")
        run = self.start()
        tail = self.prefect.tail
        wait_until(lambda: f"{LAYER}-0" in self.executions(), "the shard has begun", 180, tail)
        return run

    def retried(self, run: str) -> list[str]:
        """Retry a run by the command line, to its end; returns all that was ever executed."""
        self.prefect.run("flow-run", "retry", run)
        wait_until(lambda: self.prefect.state(run) in ("Running", "Completed"), "the retry runs", 120)
        self.complete(run)
        return self.executions()

    def events(self) -> list[list[str]]:
        return [line.split() for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def executions(self) -> list[str]:
        return [name for event, name, *_ in self.events() if event == "begin"]

    def files(self) -> dict[str, bytes]:
        return files_of(self.workspace)


@pytest.fixture(scope="module")
def expected(prefect: Prefect) -> dict[str, bytes]:
    """The files that a run leaves to which nothing happens."""
    build = Build(prefect)
    build.complete(build.start())
    return build.files()


@pytest.fixture
def build(prefect: Prefect, expected: dict[str, bytes]) -> Iterator[Build]:
    made = Build(prefect)
    yield made
    made.clear()


def told(receiver: list[dict], run: str) -> list[str]:
    """Return what the webhook was told about a run."""
    return [message["text"] for message in receiver if run in message["text"]]


def _kebab(page):
    return page.locator('button[aria-haspopup="menu"]:has(svg.lucide-ellipsis-vertical)').first


def test_a_person_presses_retry_in_the_browser(build, prefect, browser, expected):
    build.flag.write_text("fail")
    run = build.start()
    prefect.wait_for(run, "Failed", "Crashed", "Completed")
    assert prefect.state(run) == "Failed", prefect.tail()
    first = build.executions()
    build.flag.unlink()

    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(PAGE)
    page.goto(f"{prefect.url}/v2/runs/flow-run/{run}", wait_until="domcontentloaded")
    page.get_by_role("tab", name="Task Runs").click()
    page.get_by_role("link", name=f"measure-{LAYER}").first.wait_for(timeout=PAGE)
    page.screenshot(path=SCREENSHOTS / "run-failed.png")
    page.get_by_role("link", name=f"measure-{LAYER}").first.click()
    page.get_by_text("is on fire").first.wait_for(timeout=PAGE)
    page.screenshot(path=SCREENSHOTS / "task-failed.png")
    page.goto(f"{prefect.url}/v2/runs/flow-run/{run}", wait_until="domcontentloaded")
    _kebab(page).wait_for(timeout=PAGE)
    _kebab(page).click()
    page.get_by_role("menuitem", name="Retry").click()
    dialog = page.get_by_role("alertdialog")
    dialog.wait_for()
    page.screenshot(path=SCREENSHOTS / "run-retry-dialog.png")
    dialog.get_by_role("button", name="Retry").click()
    page.get_by_text("scheduled for retry").wait_for(timeout=PAGE)

    wait_until(lambda: prefect.state(run) != "Failed", "the run left Failed", 60)
    prefect.wait_for(run, "Completed", "Failed", "Crashed")
    assert prefect.state(run) == "Completed", prefect.tail()
    assert build.executions()[len(first) :] == [f"{LAYER}-0"]  # the failed shard, once, and no other
    assert len(set(first)) == len(first) == len(build.executions()) - 1
    assert build.files() == expected
    page.reload()
    page.get_by_text("Completed").first.wait_for(timeout=PAGE)
    page.screenshot(path=SCREENSHOTS / "run-retried.png")
    page.close()


def test_the_command_line_retries_too_and_the_webhook_is_told(build, prefect, expected, receiver):
    run, first = build.disturbed("fail", "Failed")
    wait_until(lambda: told(receiver, run), "the webhook is told of the failed run", 60)
    assert "is Failed: " in told(receiver, run)[0]
    assert "1 of 5 build-relevance shards failed" in told(receiver, run)[0]
    assert 'injected: the "device" is on fire' in told(receiver, run)[0]
    (failures,) = [each for key, each in prefect.artifacts(run).items() if key == "build-relevance-failures"]
    assert f"measure-{LAYER}-0" in failures["data"]
    assert "on fire" in failures["data"]
    assert build.retried(run)[len(first) :] == [f"{LAYER}-0"]
    assert build.files() == expected


def check_what_ran_again(first: list[str], again: list[str]) -> None:
    """Only what was under way is done again: the shard on the device, and two beside it."""
    assert f"{LAYER}-0" in again
    assert set(again) & set(first) <= set(first[-3:])
    assert len(set(again)) == len(again)


def test_a_process_that_is_killed_crashes_its_run_which_is_then_retried(build, prefect, expected, receiver):
    run, first = build.disturbed("die", "Crashed")
    wait_until(lambda: told(receiver, run), "the webhook is told of the crashed run", 60)
    assert "is Crashed: " in told(receiver, run)[0]
    check_what_ran_again(first, build.retried(run)[len(first) :])
    assert build.files() == expected


def test_the_worker_survives_a_retry_right_after_a_crash(build, prefect, expected):
    run, _ = build.disturbed("die", "Crashed")
    # at once, and by the API: Prefect has not done with the crash, as it loads the flow to look for its hooks
    retry = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": "Retry from the test"}
    prefect.post(f"flow_runs/{run}/set_state", state=retry, force=True)
    wait_until(lambda: prefect.state(run) in ("Running", "Completed"), "the retry runs", 120, prefect.tail)
    build.complete(run)
    assert build.files() == expected
    # another run is taken after it: the worker is there, and so is its slot of the pool
    build.complete(build.start())
    assert [worker.poll() for worker in prefect.workers] == [None] * len(prefect.workers), prefect.tail()


def test_a_server_that_restarts_in_the_middle_loses_nothing(build, prefect, expected):
    run = build.hanging()
    prefect.serve()
    build.flag.unlink()
    prefect.wait_for(run, "Completed", "Failed", "Crashed")
    assert prefect.state(run) == "Completed", prefect.tail()
    assert len(build.executions()) == len(set(build.executions()))
    assert build.files() == expected


def test_a_cancelled_run_is_retried_from_where_it_was(build, prefect, expected):
    run = build.hanging()
    prefect.run("flow-run", "cancel", run)
    prefect.wait_for(run, "Cancelled")
    first = build.executions()
    build.flag.unlink()
    check_what_ran_again(first, build.retried(run)[len(first) :])
    assert build.files() == expected


def test_a_machine_that_goes_away_frees_its_device_and_its_run_is_retried(build, prefect, expected, tmp_path):
    prefect.stop_workers()
    gone = prefect.work()
    run = build.hanging()
    os.kill(gone.pid, signal.SIGSTOP)  # so that the other run goes to the other worker
    kept = prefect.work(instance=1)  # another machine that shares the device's limit
    other = build.start(tmp_path / "other")
    prefect.wait_for(other, "Running")
    wait_until(lambda: any("generator " in line for line in prefect.logs(other)), "it has its networks", 60)
    time.sleep(3)
    first = build.executions()
    assert first[-1] == f"{LAYER}-0"  # while one run computes, the other has measured nothing
    assert len({pid for _, _, pid, _ in build.events()}) == 1
    for pid in family_of(gone):
        os.kill(pid, signal.SIGKILL)
    gone.wait()
    prefect.workers.remove(gone)
    build.flag.unlink()
    prefect.wait_for(other, "Completed", "Failed", "Crashed", seconds=200)  # the slot has been freed
    assert prefect.state(other) == "Completed", prefect.tail()
    prefect.wait_for(run, "Crashed", seconds=200)
    before = build.executions()
    check_what_ran_again(first, build.retried(run)[len(before) :])
    assert build.files() == expected
    assert kept.poll() is None
    # a process that has ended gives its slot back, or its lease runs out
    slots = f"v2/concurrency_limits/{LIMIT}"
    wait_until(lambda: prefect.get(slots)["active_slots"] == 0, "no slot is held", 120)


REPAIRED = f"""
import sys
from pathlib import Path

sys.path.insert(0, {str(Path(__file__).parent)!r})

import faulty
from faulty import build_relevance
from running import LAYER
from styleclip.tasks.directions import relevance

_counted = relevance.measure_channels


def measure(*args, layer, **kwargs):
    if layer == LAYER:
        raise ValueError("a bug in the code")
    return _counted(*args, layer=layer, **kwargs)


relevance.measure_channels = measure
"""


def test_a_code_fix_keeps_what_is_done_unless_the_step_has_a_new_version(build, prefect, expected, tmp_path):
    code = tmp_path / "repaired.py"
    code.write_text(REPAIRED)
    prefect.run(
        "deploy", f"{code}:build_relevance", "--name", "repaired", "--pool", "styleclip-gpu",
        "--work-queue", "bulk",
    )  # fmt: skip
    build.deployment = "build-relevance/repaired"
    run = build.start()
    prefect.wait_for(run, "Failed")
    first = build.executions()
    assert first
    assert f"{LAYER}-0" not in first
    code.write_text(REPAIRED.replace('raise ValueError("a bug in the code")', "pass  # mended"))
    assert build.retried(run)[len(first) :] == [f"{LAYER}-0"]
    assert build.files() == expected

    # what the step means has changed: a new version of it has artifacts of its own, and all shards run
    both = len(build.executions())
    code.write_text(code.read_text() + 'relevance.VERSION = "mended"\n')
    again = build.retried(run)[both:]
    assert sorted(again) == sorted([*first, f"{LAYER}-0"])
    assert len(list(build.workspace.glob("relevance/*/relevance.parquet"))) == 2
    assert len(list(build.workspace.glob("styles/*"))) == 1  # other steps keep theirs
