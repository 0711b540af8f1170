"""The soak: a bulk edit through server, worker, bucket and proxy, night after night, each with its fault.

``make soak`` prints one account: of every scenario, how many nights there were, what was lost, doubled or
left behind against an undisturbed night (all must be 0), and how long after the end of the fault the run
was complete. The moments of the kills are drawn from a seed.
"""

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
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import s3fs
import torch
from rich.console import Console
from rich.table import Table

from styleclip_core import save_generator
from styleclip_core.models.encoder import Encoder, EncoderConfig, save_encoder
from styleclip_core.models.stylegan2 import Generator, GeneratorConfig
from tasks.settings import Models, Relevance, Sampling
from tests.faulty_proxy import (
    Answer,
    CutAnswer,
    CutUpload,
    FaultyProxy,
    LoseAnswer,
    Refuse,
    Rule,
    Wait,
    faulty_proxy,
)
from tests.object_store import S3, object_store
from tests.operations.running import POOL, ROOT, Prefect, free_port, stop, wait_until
from tests.pipeline.test_flows import encoded, portrait

PHOTOS, OUT, ALPHAS, SHARD = 60, "s3://results/night", (1.0, 2.0), 5
EDIT = {"name": "hat", "target": "face with a hat", "alpha": ALPHAS, "top_k": 5, "templates": "none"}
Files = dict[str, bytes]


@dataclass
class Account:
    """What became of the nights of one scenario."""

    scenario: str
    nights: int = 0
    disturbances: int = 0
    lost: int = 0
    doubled: int = 0
    left_behind: int = 0
    recovery: list[float] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


class Nights:
    """The installation that all nights share, and what an undisturbed one leaves."""

    def __init__(self, folder: Path, prefect: Prefect, s3: S3, proxy: FaultyProxy) -> None:
        self.folder, self.prefect, self.s3, self.proxy, self.table = folder, prefect, s3, proxy, ""
        self.fs = s3fs.S3FileSystem(profile="admin", endpoint_url=s3.endpoint, use_listings_cache=False)
        self.worker: subprocess.Popen[bytes] | None = None
        self.calm: Files = {}
        self.usual = 0.0  # seconds that an undisturbed run takes

    # ---- the work --------------------------------------------------------------------------------------

    @property
    def networks(self) -> dict[str, str]:
        files = (
            ("generator", "generator.safetensors"),
            ("clip", "clip.pt"),
            ("encoder", "encoder.safetensors"),
        )
        return {name: str(self.folder / "networks" / file) for name, file in files}

    def parameters(self, **changes: object) -> dict[str, object]:
        return {
            "models": self.networks, "photos": "s3://photographs/night", "out": OUT, "table": self.table,
            "edits": [EDIT],
            "inversion": {"steps": 0}, "execution": {"device": "cpu", "shard_size": SHARD}, **changes,
        }  # fmt: skip

    def start(self, deployment: str = "night", **changes: object) -> str:
        for name in ("pid", "executions"):
            (self.folder / name).unlink(missing_ok=True)
        return self.prefect.start_run(f"edit-images/{deployment}", self.parameters(**changes))

    def state(self, run: str) -> str:
        try:
            return self.prefect.state(run)
        except OSError:
            return "unknown"
        except Exception as error:
            if type(error).__module__.startswith("httpx"):
                return "unknown"
            raise

    def retry(self, run: str) -> None:
        """Do what the button does."""
        state = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": "Retry from the soak"}
        self.prefect.post(f"flow_runs/{run}/set_state", state=state, force=True)

    def finish(self, run: str, seconds: float = 900) -> int:
        """Wait until a run is complete, pressing Retry when it is not; returns how often."""
        presses, deadline = 0, time.monotonic() + seconds
        while (state := self.state(run)) != "Completed":
            if time.monotonic() > deadline:
                raise TimeoutError(f"the run is {state} after {seconds:.0f} s\n{self.prefect.tail()}")
            if state in ("Failed", "Crashed", "Cancelled"):
                if presses == 5:
                    raise RuntimeError(f"the run is {state} after 5 Retries\n{self.prefect.tail()}")
                presses += 1
                self.retry(run)
            time.sleep(0.3)
        return presses

    def await_work(self, images: int, seconds: float = 300) -> None:
        log = self.folder / "executions"
        wait_until(
            lambda: log.exists() and len(log.read_text().splitlines()) >= images,
            f"{images} images are edited", seconds, self.prefect.tail,
        )  # fmt: skip

    # ---- what it leaves --------------------------------------------------------------------------------

    def clear(self) -> None:
        (self.folder / "fault").unlink(missing_ok=True)
        for key in self.fs.find(OUT):
            self.fs.rm_file(key)

    def files(self) -> Files:
        root = OUT.removeprefix("s3://") + "/"
        return {
            key.removeprefix(root): self.fs.cat_file(key)
            for key in self.fs.find(OUT)
            if ".timings-" not in key and not key.endswith("timings.parquet")
        }

    def judge(self, account: Account, calm: Files | None = None, found: Files | None = None) -> None:
        """Compare what a night has left with the calm one."""
        calm = self.calm if calm is None else calm
        found = self.files() if found is None else found
        account.nights += 1
        lost = [key for key, content in calm.items() if found.get(key) != content]
        left = [key for key in found if key not in calm]
        rows = pd.concat(
            pd.read_parquet(io.BytesIO(each))
            for key, each in found.items()
            if key.endswith("manifest.parquet")
        )
        account.lost += len(lost) + PHOTOS * len(ALPHAS) - int((rows.status == "ok").sum())
        account.doubled += int(rows.duplicated(["image_key", "edit", "alpha"]).sum())
        account.left_behind += len(left)
        account.remarks += [f"lost {key}" for key in lost[:5]] + [f"left {key}" for key in left[:5]]
        sys.stdout.write(f"{account.scenario}: night {account.nights}, fault {account.disturbances}\n")
        sys.stdout.flush()


# ---- scenarios -----------------------------------------------------------------------------------------


def storage_fault(rule: Rule, seconds: float) -> Callable[[Nights, Account], None]:
    """Return the night in which the store misbehaves for a time from the middle of the work on."""

    def night(nights: Nights, account: Account) -> None:
        run = nights.start()
        nights.await_work(10)
        with nights.proxy.misbehaving(rule):
            time.sleep(seconds)
            account.disturbances += nights.proxy.hits
        ended = time.monotonic()
        nights.finish(run)
        account.recovery.append(time.monotonic() - ended)

    return night


def all_night(rule: Rule) -> Callable[[Nights, Account], None]:
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
    ended = time.monotonic()
    account.disturbances += 1
    nights.finish(run)
    account.recovery.append(time.monotonic() - ended)


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
    ended = time.monotonic()
    nights.finish(nights.start())
    account.recovery.append(time.monotonic() - ended)
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
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and "timings" not in path.name
    }


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
        ended = time.monotonic()
        nights.finish(run)
        account.recovery.append(time.monotonic() - ended)
        nights.judge(account, calm, files_in(out))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def kills(count: int, seed: int, sign: signal.Signals) -> Callable[[Nights, Account], None]:
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
    if both and nights.worker is not None:
        nights.worker.kill()
        nights.worker.wait()
    with contextlib.suppress(ProcessLookupError):
        os.kill(number, sign)
    if both:  # nobody is left to say so: what the automation for silent runs does
        wait_until(lambda: not Path(f"/proc/{number}").exists(), "the process is gone", 30)
        crashed = {"type": "CRASHED", "name": "Crashed", "message": "silent"}
        if nights.state(run) != "Completed":
            nights.prefect.post(f"flow_runs/{run}/set_state", state=crashed, force=True)
        nights.worker = nights.prefect.work()
    ends = ("Crashed", "Failed", "Completed", "Cancelled")
    wait_until(lambda: nights.state(run) in ends, "the run has ended", 120, nights.prefect.tail)
    return nights.state(run) != "Completed"


def forked_kills(count: int, seed: int) -> Callable[[Nights, Account], None]:
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
    """Let no batch of more than one image fit; pictures may differ by rounding, so they are only counted."""
    (nights.folder / "fault").write_text("memory")
    nights.finish(nights.start())
    account.disturbances += 1
    account.recovery.append(0.0)


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
    ended = time.monotonic()
    nights.finish(run)
    account.recovery.append(time.monotonic() - ended)


def server_restart(nights: Nights, account: Account) -> None:
    """Stop the Prefect server in mid-work and start it again."""
    run = nights.start()
    nights.await_work(10)
    assert nights.prefect.server is not None
    stop(nights.prefect.server)
    time.sleep(3)
    nights.prefect.serve()
    account.disturbances += 1
    ended = time.monotonic()
    nights.finish(run)
    account.recovery.append(time.monotonic() - ended)


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
    ended = time.monotonic()
    nights.finish(run)
    account.recovery.append(time.monotonic() - ended)


def two_at_once(deployment: str) -> Callable[[Nights, Account], None]:
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


def scenarios(chosen: argparse.Namespace) -> dict[str, Callable[[Nights, Account], None]]:
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
        "SIGTERM": kills(chosen.terms, chosen.seed + 1, signal.SIGTERM),
        "SIGKILL of process or worker": kills(chosen.kills, chosen.seed, signal.SIGKILL),
    }


JUDGED_BY_THEMSELVES = {growing_bucket, full_disk, clock}
FORKED = "SIGKILL of forked processes, no Prefect"


# ---- the installation ----------------------------------------------------------------------------------


@contextlib.contextmanager
def installation(folder: Path) -> Iterator[Nights]:
    """Bucket, proxy, Prefect server, worker, networks and a relevance table."""
    _networks(folder / "networks")
    with object_store(folder / "seaweed") as s3, faulty_proxy(s3.endpoint) as proxy:
        home, port = folder / "prefect", free_port()
        home.mkdir()
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "STYLECLIP_"))},
            "PREFECT_HOME": str(home), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1",
            "PREFECT_WORKER_QUERY_SECONDS": "1", "PYTHONPATH": str(ROOT), "STYLECLIP_WORKERS": "1",
            "AWS_ENDPOINT_URL": proxy.endpoint, "STYLECLIP_STORAGE_OPTIONS": str(s3.options),
            "NIGHT_FOLDER": str(folder), "NIGHT_PAUSE": "0.4", "OMP_NUM_THREADS": "1",
            "STYLECLIP_IO_THREADS": "4",
        }  # fmt: skip
        nights = Nights(folder, Prefect(home, port, environment), s3, proxy)
        for number in range(PHOTOS):
            nights.fs.pipe_file(f"photographs/night/p{number:02d}.png", encoded(portrait(number)))
        try:
            yield nights
        finally:
            nights.prefect.stop()


def start_prefect(nights: Nights) -> None:
    """Start server and worker, deploy the flow, build a relevance table, and live through a calm night."""
    prefect = nights.prefect
    prefect.serve()
    prefect.run("work-pool", "create", POOL, "--type", "process", "--overwrite")
    limit = ["--concurrency-limit", "1", "--collision-strategy", "ENQUEUE"]
    for name, options in (("night", []), ("alone", limit)):
        prefect.run("deploy", "tests/nights/night.py:edit_images", "--name", name, "--pool", POOL, *options)
    nights.table = _table(nights.folder, prefect.environment)
    nights.worker = prefect.work()
    started = time.monotonic()
    nights.finish(nights.start())
    nights.usual, nights.calm = time.monotonic() - started, nights.files()


def _networks(folder: Path) -> None:
    from clip.model import CLIP

    folder.mkdir()
    torch.manual_seed(0)
    config = GeneratorConfig(16, 8, 8, mapping_layers=2, channel_base=64, channel_max=6)
    save_generator(Generator(config).eval(), folder / "generator.safetensors")
    torch.save(CLIP(16, 32, (1, 1, 1, 1), 8, None, 77, 49408, 64, 1, 1).state_dict(), folder / "clip.pt")
    encoder = Encoder(EncoderConfig(16, 6, 8, widths=(4, 4, 4, 4), hidden=8)).eval()
    save_encoder(encoder, folder / "encoder.safetensors")


def _table(folder: Path, environment: dict[str, str]) -> str:
    """Build a small relevance table and return its folder."""
    models = Models(generator=f"{folder}/networks/generator.safetensors", clip=f"{folder}/networks/clip.pt")
    sampling, relevance = Sampling(statistics=20, codes=2), Relevance(samples=2, channels_per_shard=8)
    code = (
        "import sys; from flows.build_relevance import build_relevance as build\n"
        "from tasks.settings import Models, Relevance, Sampling\n"
        "done = build(Models.model_validate_json(sys.argv[1]), sys.argv[2],"
        " Sampling.model_validate_json(sys.argv[3]), Relevance.model_validate_json(sys.argv[4]))\n"
        "print(done.table.relevance)"
    )
    values = (
        models.model_dump_json(),
        f"{folder}/table",
        sampling.model_dump_json(),
        relevance.model_dump_json(),
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *values], env=environment, cwd=ROOT, check=True,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return done.stdout.splitlines()[-1].rsplit("/", 1)[0]


def main() -> None:
    """Live through the nights and print the account; exit status 1 if anything was lost or doubled."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs of the worker's processes [50]")
    parser.add_argument("--forks", type=int, default=50, help="SIGKILLs of forked runs [50]")
    parser.add_argument("--terms", type=int, default=5, help="SIGTERMs [5]")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of kills [0]")
    parser.add_argument("--only", default="", help="scenarios whose name contains this")
    parser.add_argument("--without", default="-", help="no scenarios whose name contains this")
    chosen = parser.parse_args()
    console, accounts = Console(width=150), list[Account]()
    wanted = {
        name: each
        for name, each in scenarios(chosen).items()
        if chosen.only in name and chosen.without not in name
    }
    try:
        with (
            tempfile.TemporaryDirectory(prefix="styleclip-soak-") as folder,
            installation(Path(folder)) as nights,
        ):
            for name, scenario in wanted.items():
                accounts.append(Account(name))
                live_through(scenario, nights, accounts[-1], console)
    finally:  # an interrupted soak has its account too
        console.print(table(accounts))
    if any(each.lost or each.doubled or each.left_behind for each in accounts):
        sys.exit(1)


def live_through(
    scenario: Callable[[Nights, Account], None], nights: Nights, account: Account, console: Console
) -> None:
    """Let one scenario happen; what it raises counts as lost, as the other nights are yet to come."""
    if account.scenario != FORKED and not nights.table:
        start_prefect(nights)
        console.print(
            f"an undisturbed night takes {nights.usual:.0f} s and leaves {len(nights.calm)} objects"
        )
    started = time.monotonic()
    nights.clear()
    try:
        scenario(nights, account)
        if scenario not in JUDGED_BY_THEMSELVES and not account.nights:
            nights.judge(account)
    except Exception as error:
        account.lost += 1
        account.remarks.append(f"{type(error).__name__}: {error}")
    took = time.monotonic() - started
    console.print(f"{account.scenario}: {took:.0f} s, {account}"[:1500], highlight=False, markup=False)


def table(accounts: list[Account]) -> Table:
    """Return the account of all nights."""
    found = Table(
        "scenario", "nights", "faults", "lost", "doubled", "left behind", "recovery, median", "longest",
        title="soak", title_justify="left",
    )  # fmt: skip
    for each in accounts:
        recovery = each.recovery or [float("nan")]
        found.add_row(
            each.scenario, str(each.nights), str(each.disturbances), str(each.lost), str(each.doubled),
            str(each.left_behind), f"{statistics.median(recovery):.1f} s", f"{max(recovery):.1f} s",
        )  # fmt: skip
    return found


if __name__ == "__main__":
    main()
