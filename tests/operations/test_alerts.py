"""What the webhook is told of a night that is late or missing, on a real server with short times.

That a scheduled run which fails is told at once is in ``test_guide.py``.
"""

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


def test_runs_that_do_not_begin_are_told_and_so_is_a_table_that_is_missing(prefect, receiver, short):
    assert "'styleclip: notify of late runs': brought up to date" in short
    before = len(_texts(receiver, "no table"))
    prefect.run("work-pool", "pause", POOL)
    try:
        with prefect.scheduled(FAULTY, 30) as run:
            # a night that a worker has taken which then went away: it is neither late nor running
            taken = prefect.start_run(NIGHTLY, {})
            submitting = {"type": "PENDING", "name": "Submitting"}
            prefect.post(f"flow_runs/{taken}/set_state", state=submitting, force=True)

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
            for each in (run, taken):
                wait_until(lambda each=each: bool(_texts(receiver, each)), "it is told", PROMPT, prefect.tail)
            prefect.post(f"flow_runs/{taken}/set_state", state={"type": "CANCELLED"}, force=True)
    finally:
        prefect.run("work-pool", "resume", POOL)
    assert " is Submitting: not begun" in _texts(receiver, taken)[0]
    (text,) = _texts(receiver, run)
    assert f" is Late: not begun {LATE_AFTER} s after it was due" in text
    assert text.endswith(f" {prefect.url}/runs/flow-run/{run}")
