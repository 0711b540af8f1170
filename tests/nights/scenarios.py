"""What goes wrong in a night: each scenario lives through its nights and enters them into its account."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from tests.faulty_proxy import (
    Answer,
    CutAnswer,
    CutUpload,
    LoseAnswer,
    Refuse,
    Rule,
    Wait,
)
from tests.left import files_of
from tests.nights.installation import (
    ALPHAS,
    EDIT,
    OUT,
    PHOTOS,
    SHARD,
    Account,
    Files,
    Nights,
)
from tests.nights.packed import packed_kills
from tests.operations.running import ROOT, stop, wait_until
from tests.pipeline.test_flows import encoded, portrait

Scenario = Callable[[Nights, Account], None]


def storage_fault(rule: Rule, seconds: float) -> Scenario:
    """Return the night in which the store misbehaves for a time from the middle of the work on."""

    def night(nights: Nights, account: Account) -> None:
        run = nights.start()
        nights.await_work(10)
        with nights.proxy.misbehaving(rule):
            time.sleep(seconds)
            account.disturbances += nights.proxy.hits
        nights.recover(run, account)

    return night


def all_night(rule: Rule) -> Scenario:
    """Return the night in which the store misbehaves from beginning to end."""

    def night(nights: Nights, account: Account) -> None:
        with nights.proxy.misbehaving(rule):
            nights.finish(nights.start())
            account.disturbances += nights.proxy.hits
        account.recovery.append(0.0)

    return night


def stopped_store(nights: Nights, account: Account) -> None:
    """Stop the store's process for 20 s."""
    run = nights.start()
    nights.await_work(10)
    os.killpg(nights.s3.group, signal.SIGSTOP)
    time.sleep(20)
    os.killpg(nights.s3.group, signal.SIGCONT)
    account.disturbances += 1
    nights.recover(run, account)


def growing_bucket(nights: Nights, account: Account) -> None:
    """Add a photograph while the bucket is listed; the next run, if not this one, edits it too."""
    added: list[str] = []

    def grow(request: Any) -> Wait | None:
        if not request.lists or "night" not in request.path or added:
            return None
        added.append("photographs/night/p00-added.png")
        nights.fs.pipe_file(added[0], encoded(portrait(99)))
        return Wait(0)

    with nights.proxy.misbehaving(grow):
        nights.finish(nights.start())
    account.disturbances += 1
    nights.recover(nights.start(), account)
    newest = max(
        nights.fs.find(f"{OUT}/batches", detail=True).values(), key=lambda each: each["LastModified"]
    )
    manifest = newest["name"].rsplit("/", 1)[0] + "/manifest.parquet"
    rows = pd.read_parquet(io.BytesIO(nights.fs.cat_file(manifest)))
    account.nights += 1
    account.lost += (PHOTOS + 1) * len(ALPHAS) - int((rows.status == "ok").sum())
    account.doubled += int(rows.duplicated(["image_key", "edit", "alpha"]).sum())
    nights.fs.rm_file(added[0])


def files_in(out: Path) -> Files:
    """Return what a night has left in a folder."""
    return files_of(out)


def full_disk(nights: Nights, account: Account) -> None:
    """Let the results' disk, a small one, be full, and make room."""
    disk = nights.folder / "disk"
    disk.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)], check=True)
    try:
        out, ballast = disk / "out", disk / "ballast"

        nights.finish(nights.start(out=str(out)))
        calm = files_in(out)
        shutil.rmtree(out)
        run = nights.start(out=str(out))
        nights.await_work(10)
        with contextlib.suppress(OSError), ballast.open("wb") as stream:
            while True:
                stream.write(bytes(4096))
        wait_until(lambda: nights.state(run) == "Failed", "the run fails", 300, nights.prefect.tail)
        ballast.unlink()
        account.disturbances += 1
        nights.recover(run, account)
        nights.judge(account, calm, files_in(out))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def kills(count: int, seed: int, sign: signal.Signals) -> Scenario:
    """Return the nights in which processes are killed at random moments, until there were so many."""
    draw = random.Random(seed)

    def night(nights: Nights, account: Account) -> None:
        while account.disturbances < count:
            nights.clear()
            run = nights.start()
            ended = time.monotonic()
            while account.disturbances < count and _kill(nights, run, draw, sign):
                account.disturbances += 1
                ended = time.monotonic()
                nights.retry(run)
            nights.finish(run)
            account.recovery.append(time.monotonic() - ended)
            nights.judge(account)

    return night


def _kill(nights: Nights, run: str, draw: random.Random, sign: signal.Signals) -> bool:
    """Kill the run's process, one time in five the worker as well; False if the run is complete."""
    pid = nights.folder / "pid"
    wait_until(
        lambda: pid.exists() or nights.state(run) == "Completed", "the run's process starts", 300,
        nights.prefect.tail,
    )  # fmt: skip
    moment = time.monotonic() + draw.uniform(0.0, nights.usual)
    while time.monotonic() < moment:
        if nights.state(run) == "Completed":
            return False
        time.sleep(0.2)
    number = int(pid.read_text())
    pid.unlink()
    both = sign == signal.SIGKILL and draw.random() < 0.2
    if both:
        worker = nights.prefect.workers.pop()
        worker.kill()
        worker.wait()
    with contextlib.suppress(ProcessLookupError):
        os.kill(number, sign)
    if both:  # nobody is left to say so: what the automation for silent runs does
        wait_until(lambda: not Path(f"/proc/{number}").exists(), "the process is gone", 30)
        crashed = {"type": "CRASHED", "name": "Crashed", "message": "silent"}
        if nights.state(run) != "Completed":
            nights.prefect.post(f"flow_runs/{run}/set_state", state=crashed, force=True)
        nights.prefect.work()
    ends = ("Crashed", "Failed", "Completed", "Cancelled")
    wait_until(lambda: nights.state(run) in ends, "the run has ended", 120, nights.prefect.tail)
    return nights.state(run) != "Completed"


def retry_after(seconds: float) -> Scenario:
    """Return the night in which a run's process is killed and Retry is pressed so long after the crash.

    Prefect has not done with a crash for some 15 s. The worker, started as its unit does it, outlives that.
    """

    def night(nights: Nights, account: Account) -> None:
        run = nights.start()
        nights.await_work(10)
        os.kill(int((nights.folder / "pid").read_text()), signal.SIGKILL)
        wait_until(lambda: nights.state(run) == "Crashed", "the run has crashed", 120, nights.prefect.tail)
        time.sleep(seconds)
        nights.retry(run)
        account.disturbances += 1
        nights.recover(run, account)
        gone = [worker.pid for worker in nights.prefect.workers if worker.poll() is not None]
        if gone:
            account.lost += len(gone)
            account.remarks.append(f"workers that have ended: {gone}")

    return night


def forked_kills(count: int, seed: int) -> Scenario:
    """Return the nights in which forked processes are killed at random moments; the next run goes on."""
    draw = random.Random(seed)

    def night(nights: Nights, account: Account) -> None:
        log = (nights.folder / "zygote.log").open("wb")
        zygote = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.nights.zygote"], cwd=ROOT, text=True, stderr=log,
            env=nights.prefect.environment | {"NIGHT_PAUSE": "0.2"}, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        try:
            nights.clear()
            started = time.monotonic()
            if _forked_run(nights, zygote, draw) != 0:
                raise RuntimeError("an undisturbed forked run has failed; see zygote.log")
            usual, calm = time.monotonic() - started, nights.files()
            account.remarks.append(f"an undisturbed run takes {usual:.1f} s, leaves {len(calm)} objects")
            while account.disturbances < count:
                nights.clear()
                ended = time.monotonic()
                while (status := _forked_run(nights, zygote, draw, usual)) != 0:
                    if status != -signal.SIGKILL:
                        raise RuntimeError(f"a forked run ended with {status}; see zygote.log")
                    account.disturbances += 1
                    ended = time.monotonic()
                account.recovery.append(time.monotonic() - ended)
                nights.judge(account, calm)
        finally:
            zygote.kill()
            zygote.wait()
            log.close()
            account.remarks.append((nights.folder / "zygote.log").read_text()[-600:])

    return night


def _forked_run(
    nights: Nights, zygote: subprocess.Popen[str], draw: random.Random, seconds: float = 0.0
) -> int:
    """Run the flow in a forked process and kill it within so many seconds; returns its exit status."""
    assert zygote.stdin is not None
    assert zygote.stdout is not None
    (nights.folder / "executions").unlink(missing_ok=True)
    arguments = {
        "networks": nights.networks, "photos": "s3://photographs/night", "out": OUT, "edit": EDIT,
        "shard_size": SHARD,
    }  # fmt: skip
    zygote.stdin.write(json.dumps(arguments) + "\n")
    zygote.stdin.flush()
    number = int(zygote.stdout.readline())
    moment = time.monotonic() + (draw.uniform(0.0, seconds) if seconds else math.inf)
    while time.monotonic() < moment and Path(f"/proc/{number}").exists():
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.kill(number, signal.SIGKILL)
    return int(zygote.stdout.readline())


def out_of_memory(nights: Nights, account: Account) -> None:
    """Let no batch of more than one image fit; pictures may differ by rounding, by one grey level."""
    (nights.folder / "fault").write_text("memory")
    nights.finish(nights.start())
    account.disturbances += 1
    account.recovery.append(0.0)
    nights.judge(account, alike=_but_for_rounding)


def _but_for_rounding(key: str, calm: bytes, found: bytes) -> bool:
    """Compare two files of one key: pictures by their pixels, tables by their rows' number."""
    if key.endswith(".png"):
        before, after = (np.asarray(Image.open(io.BytesIO(each)), dtype=np.int16) for each in (calm, found))
        return before.shape == after.shape and int(np.abs(before - after).max()) <= 1
    if key.endswith(".parquet"):
        before, after = (len(pd.read_parquet(io.BytesIO(each))) for each in (calm, found))
        return bool(before == after)
    return bool(found)


def broken_shard(nights: Nights, account: Account) -> None:
    """Let one shard fail always: the run names it, all else is done, and it is done when it is mended."""
    (nights.folder / "fault").write_text("break 3")
    run = nights.start()
    wait_until(lambda: nights.state(run) == "Failed", "the run fails", 300, nights.prefect.tail)
    message = nights.prefect.get(f"flow_runs/{run}")["state"]["message"]
    assert "1 of" in message, message
    assert "shard 3 always fails" in message, message
    edited = sum(key.startswith("images/") for key in nights.files())
    assert edited >= (PHOTOS - 2 * SHARD) * len(ALPHAS), edited
    account.disturbances += 1
    (nights.folder / "fault").unlink()
    nights.recover(run, account)


def server_restart(nights: Nights, account: Account) -> None:
    """Stop the Prefect server in mid-work and start it again."""
    run = nights.start()
    nights.await_work(10)
    assert nights.prefect.server is not None
    stop(nights.prefect.server)
    time.sleep(3)
    nights.prefect.serve()
    account.disturbances += 1
    nights.recover(run, account)


def locked_database(nights: Nights, account: Account) -> None:
    """Hold Prefect's database locked for 15 s."""
    run = nights.start()
    nights.await_work(10)
    with contextlib.closing(sqlite3.connect(nights.prefect.home / "prefect.db", timeout=30)) as database:
        database.isolation_level = None
        database.execute("BEGIN EXCLUSIVE")
        time.sleep(15)
        database.execute("ROLLBACK")
    account.disturbances += 1
    nights.recover(run, account)


def two_at_once(deployment: str) -> Scenario:
    """Return the night in which the same build is started twice."""

    def night(nights: Nights, account: Account) -> None:
        runs = [nights.start(deployment), nights.start(deployment)]
        for run in runs:
            nights.finish(run)
        account.disturbances += 1
        account.recovery.append(0.0)
        written = [line.split()[1] for line in (nights.folder / "executions").read_text().splitlines()]
        again = len(written) - len(set(written))
        account.remarks.append(f"{len(set(written))} images were written, {again} of them twice")
        if deployment == "alone":
            account.doubled += again

    return night


def clock(nights: Nights, account: Account) -> None:
    """Set the clock back and forth by two days whenever the code looks at it; the results lie in a folder."""
    out = nights.folder / "clock"
    nights.finish(nights.start(out=str(out)))
    calm = files_in(out)
    shutil.rmtree(out)
    (nights.folder / "fault").write_text("clock")
    nights.finish(nights.start(out=str(out)))
    account.disturbances += 1
    account.recovery.append(0.0)
    nights.judge(account, calm, files_in(out))


def third(request: Any) -> Answer | None:
    """Answer a third of the requests by 500 or 503."""
    if request.number % 3 != 1:
        return None
    return Answer(500, "InternalError") if request.number % 2 else Answer(503, "SlowDown")


def slow(request: Any) -> Wait | None:
    """Let the first byte of one answer in ten take two seconds."""
    return Wait(2.0) if request.number % 10 == 1 else None


def resets(request: Any) -> CutAnswer | CutUpload | LoseAnswer | None:
    """Reset one connection in five in the middle of a body."""
    return (CutAnswer(), CutUpload(), LoseAnswer())[request.number % 3] if request.number % 5 == 1 else None


def scenarios(chosen: argparse.Namespace) -> dict[str, Scenario]:
    """Return every scenario by name, in the order in which they run."""
    return {
        FORKED: forked_kills(chosen.forks, chosen.seed),
        "store's process stopped for 20 s": stopped_store,
        "store refuses connections for 20 s": storage_fault(lambda _: Refuse(), 20),
        "500 or 503 for a third of requests": all_night(third),
        "first byte after 2 s, one in ten": all_night(slow),
        "connection reset in mid-body, one in five": all_night(resets),
        "credentials expired for 10 s": storage_fault(lambda _: Answer(403, "ExpiredToken"), 10),
        "bucket grows while it is listed": growing_bucket,
        "disk of the results full": full_disk,
        "device out of memory": out_of_memory,
        "one shard always fails": broken_shard,
        "server restarted": server_restart,
        "database locked for 15 s": locked_database,
        "same build twice, limit of 1": two_at_once("alone"),
        "same build twice, no limit": two_at_once("night"),
        "clock set by two days": clock,
        "Retry at once after a crash": retry_after(0),
        "Retry 5 s after a crash": retry_after(5),
        "Retry 15 s after a crash": retry_after(15),
        "SIGKILL within a shard, tars in and out": packed_kills(5, chosen.seed + 2, "webdataset"),
        "SIGKILL within a shard, tables in and out": packed_kills(5, chosen.seed + 3, "parquet"),
        "SIGTERM": kills(chosen.terms, chosen.seed + 1, signal.SIGTERM),
        "SIGKILL of process or worker": kills(chosen.kills, chosen.seed, signal.SIGKILL),
    }


JUDGED_BY_THEMSELVES = {growing_bucket, full_disk, out_of_memory, clock}
FORKED = "SIGKILL of forked processes, no Prefect"
