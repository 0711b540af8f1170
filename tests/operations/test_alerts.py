"""What the webhook is told of a night that fails, is late or is missing; a real server with short times."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
from running import LIMIT, POOL, Prefect, wait_until

FAULTY, NIGHTLY = "build-relevance/faulty", "build-relevance/nightly"
LATE_AFTER, MISSING_AFTER = 30, 20  # seconds
PROMPT = 120  # seconds within which a message must be there


@pytest.fixture
def short(prefect: Prefect) -> Iterator[str]:
    """The server, set up to wait for seconds instead of minutes and hours, and then as it was."""

    def set_up(*times: str) -> str:
        prefect.environment["STYLECLIP_NOTIFY_URL"] = os.environ["STYLECLIP_TEST_HOOK"]
        try:
            return prefect.styleclip("setup-server", "--unprotected", "--device-limit", LIMIT, *times)
        finally:
            prefect.environment.pop("STYLECLIP_NOTIFY_URL")

    yield set_up("--late-after", str(LATE_AFTER), "--missing-after", str(MISSING_AFTER))
    set_up()


def _texts(receiver: list[dict], part: str) -> list[str]:
    return [message["text"] for message in receiver if part in message["text"]]


def test_a_scheduled_run_that_fails_at_once_is_told_at_once_and_with_a_link(prefect, receiver):
    nowhere = {"models": {"generator": "/nowhere", "clip": "/nowhere"}, "workspace": "/nowhere"}
    with prefect.scheduled(FAULTY, 30, nowhere) as run:
        prefect.wait_for(run, "Failed", "Crashed")
        wait_until(lambda: bool(_texts(receiver, run)), "the failure is told", PROMPT, prefect.tail)
    (text,) = _texts(receiver, run)
    assert text.startswith("build-relevance/")
    assert " is Failed: " in text
    assert text.endswith(f" {prefect.url}/runs/flow-run/{run}")


def test_a_run_that_does_not_begin_is_told_and_so_is_a_table_that_is_missing(prefect, receiver, short):
    assert "'styleclip: notify of late runs': brought up to date" in short
    before = len(_texts(receiver, "no table"))
    prefect.run("work-pool", "pause", POOL)
    try:
        with prefect.scheduled(FAULTY, 30) as run:
            # the wait for a table begins when the server is set up, before there ever was one
            told = f"no table for {MISSING_AFTER / 3600:.3g} h: no run of {NIGHTLY} has completed"
            wait_until(lambda: len(_texts(receiver, told)) > before, "the missing table is told", PROMPT)
            assert _texts(receiver, told)[0].endswith(f" {prefect.url}/deployments")

            # and anew with every run that completes
            begun = time.monotonic()
            night = prefect.start_run(NIGHTLY, {})
            prefect.post(f"flow_runs/{night}/set_state", state={"type": "COMPLETED"}, force=True)
            told_of = len(_texts(receiver, told))
            wait_until(lambda: len(_texts(receiver, told)) > told_of, "it is told again", PROMPT)
            assert time.monotonic() - begun > MISSING_AFTER

            # of a run of the schedule, that it waits
            wait_until(lambda: bool(_texts(receiver, run)), "the late run is told", PROMPT, prefect.tail)
    finally:
        prefect.run("work-pool", "resume", POOL)
    (text,) = _texts(receiver, run)
    assert f" is Late: not begun {LATE_AFTER} s after it was due" in text
    assert text.endswith(f" {prefect.url}/runs/flow-run/{run}")
