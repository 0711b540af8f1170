"""Retry on a real server: what failed runs again, what is done does not, and the table is the same.

Executions are counted where the work is done, not read off states. Screenshots of the run's page lie in
``build/screenshots``.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from running import ROOT, Prefect, stop, wait_until

SCREENSHOTS = ROOT / "build" / "screenshots"
LAYER = "b8.conv1"  # the shard that is made to fail


class Build:
    """The deployed relevance build with its faults and its count of executions."""

    def __init__(self, prefect: Prefect, folder: Path) -> None:
        self.prefect, self.folder = prefect, folder
        self.log, self.flag = folder / "executions.log", folder / "fault"
        self.workspace = folder / "workspace"
        prefect.environment |= {
            "FAULTY_LOG": str(self.log), "FAULTY_FLAG": str(self.flag), "FAULTY_LAYER": LAYER,
        }  # fmt: skip
        prefect.run(
            "deploy", "tests/operations/faulty.py:build_relevance", "--name", "faulty",
            "--pool", "styleclip-gpu",
        )  # fmt: skip

    def start(self) -> str:
        parameters = {
            "models": {
                "generator": self.prefect.environment["STYLECLIP_GENERATOR"],
                "clip": self.prefect.environment["STYLECLIP_CLIP"],
            },
            "workspace": str(self.workspace),
            "sampling": {"statistics": 50, "codes": 2},
            "relevance": {"samples": 2},
            "execution": {"device": "cpu"},
        }
        return self.prefect.start_run("build-relevance/faulty", parameters)

    def disturbed(self, wish: str, state: str) -> tuple[str, list[str]]:
        """Run with a fault until the run is in ``state``; returns the run and what it executed."""
        self.flag.write_text(wish)
        run = self.start()
        self.prefect.wait_for(run, state)
        first = self.executions()
        self.flag.unlink()
        return run, first

    def retried(self, run: str) -> list[str]:
        """Retry a run by the command line, to its end; returns all that was ever executed."""
        self.prefect.run("flow-run", "retry", run)
        self.prefect.wait_for(run, "Completed")
        return self.executions()

    def executions(self) -> list[str]:
        return self.log.read_text().split() if self.log.exists() else []

    def table(self) -> bytes:
        (found,) = self.workspace.glob("relevance/*/relevance.parquet")
        return found.read_bytes()

    def files(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.workspace)): path.read_bytes()
            for path in sorted(self.workspace.rglob("*"))
            if path.is_file()
        }

    def undisturbed(self) -> dict[str, bytes]:
        """Run once without a fault in the same place, keep the files, and clear the place."""
        run = self.start()
        self.prefect.wait_for(run, "Completed", "Failed", "Crashed")
        assert self.prefect.state(run) == "Completed", self.prefect.tail()
        files = self.files()
        shutil.rmtree(self.workspace)
        self.log.unlink()
        return files


@pytest.fixture
def build(prefect: Prefect, tmp_path: Path) -> Build:
    return Build(prefect, tmp_path)


def _kebab(page):
    return page.locator('button[aria-haspopup="menu"]:has(svg.lucide-ellipsis-vertical)').first


def test_a_person_presses_retry_in_the_browser(build, prefect, browser):
    prefect.work()
    expected = build.undisturbed()
    build.flag.write_text("fail")
    run = build.start()
    prefect.wait_for(run, "Failed", "Crashed", "Completed")
    assert prefect.state(run) == "Failed", prefect.tail()
    first = build.executions()
    build.flag.unlink()

    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.goto(f"{prefect.url}/v2/runs/flow-run/{run}", wait_until="domcontentloaded")
    page.get_by_role("tab", name="Task Runs").click()
    page.get_by_role("link", name=f"measure-{LAYER}").first.wait_for(timeout=60_000)
    page.screenshot(path=SCREENSHOTS / "run-failed.png")
    page.get_by_role("link", name=f"measure-{LAYER}").first.click()
    page.get_by_text("the device is on fire").first.wait_for(timeout=60_000)
    page.screenshot(path=SCREENSHOTS / "task-failed.png")
    page.goto(f"{prefect.url}/v2/runs/flow-run/{run}", wait_until="domcontentloaded")
    _kebab(page).wait_for(timeout=60_000)
    _kebab(page).click()
    page.get_by_role("menuitem", name="Retry").click()
    dialog = page.get_by_role("alertdialog")
    dialog.wait_for()
    page.screenshot(path=SCREENSHOTS / "run-retry-dialog.png")
    dialog.get_by_role("button", name="Retry").click()
    page.get_by_text("scheduled for retry").wait_for(timeout=20_000)

    wait_until(lambda: prefect.state(run) != "Failed", "the run left Failed", 60)
    prefect.wait_for(run, "Completed", "Failed", "Crashed")
    assert prefect.state(run) == "Completed", prefect.tail()
    assert build.executions()[len(first) :] == [f"{LAYER}-0"]  # the failed shard, once, and no other
    assert len(set(first)) == len(first) == len(build.executions()) - 1
    assert build.files() == expected
    page.reload()
    page.get_by_text("Completed").first.wait_for(timeout=60_000)
    page.screenshot(path=SCREENSHOTS / "run-retried.png")
    page.close()


def test_the_command_line_retries_too(build, prefect):
    prefect.work()
    expected = build.undisturbed()
    run, first = build.disturbed("fail", "Failed")
    assert build.retried(run)[len(first) :] == [f"{LAYER}-0"]
    assert build.files() == expected


def check_what_ran_again(first: list[str], again: list[str]) -> None:
    """Only what was under way is done again: the shard on the device, and two beside it."""
    assert f"{LAYER}-0" in again
    assert set(again) & set(first) <= set(first[-3:])
    assert len(set(again)) == len(again)


def test_a_process_that_is_killed_crashes_its_run_which_is_then_retried(build, prefect):
    prefect.work()
    expected = build.undisturbed()
    run, first = build.disturbed("die", "Crashed")
    check_what_ran_again(first, build.retried(run)[len(first) :])
    assert build.files() == expected


def test_a_server_that_restarts_in_the_middle_loses_nothing(build, prefect):
    server = prefect.processes[0]
    prefect.work()
    expected = build.undisturbed()
    build.flag.write_text("hang")
    run = build.start()
    wait_until(lambda: f"{LAYER}-0" in build.executions(), "the shard has begun", 120, prefect.tail)
    stop(server)
    prefect.serve()
    build.flag.unlink()
    prefect.wait_for(run, "Completed", "Failed", "Crashed")
    assert prefect.state(run) == "Completed", prefect.tail()
    assert len(build.executions()) == len(set(build.executions()))
    assert build.files() == expected


def test_a_cancelled_run_is_retried_from_where_it_was(build, prefect):
    prefect.work()
    expected = build.undisturbed()
    build.flag.write_text("hang")
    run = build.start()
    wait_until(lambda: f"{LAYER}-0" in build.executions(), "the shard has begun", 120, prefect.tail)
    prefect.run("flow-run", "cancel", run)
    prefect.wait_for(run, "Cancelled")
    first = build.executions()
    build.flag.unlink()
    check_what_ran_again(first, build.retried(run)[len(first) :])
    assert build.files() == expected
