"""Server, worker, bucket, proxy and networks that all nights of a soak share, and what a night leaves."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import s3fs
from pydantic import TypeAdapter

from styleclip.tasks.settings import Models, Relevance, Sampling
from tests.faulty_proxy import (
    FaultyProxy,
    faulty_proxy,
)
from tests.object_store import S3, object_store
from tests.operations.running import POOL, ROOT, Prefect, free_port, wait_until
from tests.pipeline.test_flows import encoded, portrait
from tests.small_networks import write_small_networks

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
    wrong: int = 0
    doubled: int = 0
    left_behind: int = 0
    recovery: list[float] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


class Nights:
    """The installation that all nights share, and what an undisturbed one leaves."""

    def __init__(self, folder: Path, prefect: Prefect, s3: S3, proxy: FaultyProxy) -> None:
        self.folder, self.prefect, self.s3, self.proxy, self.table = folder, prefect, s3, proxy, ""
        self.fs = s3fs.S3FileSystem(profile="admin", endpoint_url=s3.endpoint, use_listings_cache=False)
        self.calm: Files = {}
        self.usual = 0.0  # seconds that an undisturbed run takes

    # ---- the work --------------------------------------------------------------------------------------

    @property
    def networks(self) -> dict[str, str]:
        folder = self.folder / "networks"
        return {path.stem: str(path) for path in folder.iterdir()}

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

    def recover(self, run: str, account: Account) -> None:
        """Wait until a run is complete now that its fault has ended, and write down how long that takes."""
        ended = time.monotonic()
        self.finish(run)
        account.recovery.append(time.monotonic() - ended)

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
            if "timings" not in key  # how long it took
        }

    def judge(
        self,
        account: Account,
        calm: Files | None = None,
        found: Files | None = None,
        alike: Callable[[str, bytes, bytes], bool] = lambda _, calm, found: calm == found,
        rows: int = PHOTOS * len(ALPHAS),
    ) -> None:
        """Compare what a night has left with the calm one, in which so many rows are done."""
        calm = self.calm if calm is None else calm
        found = self.files() if found is None else found
        # a report of a part stays, and says where the whole is
        parts = {key: content for key, content in found.items() if key.startswith("partial/")}
        found = {key: content for key, content in found.items() if key not in parts}
        notes = [content for key, content in parts.items() if key.endswith("partial.json")]
        account.nights += 1
        lost = [key for key in calm if key not in found]
        wrong = [key for key in calm if key in found and not alike(key, calm[key], found[key])]
        # a page of a part has a list of what it shows, and thumbnails, to which the whole one adds
        shown = ("/pages/", "/thumbnails/") if parts else ()
        left = [key for key in found if key not in calm and not any(each in key for each in shown)]
        there = pd.concat(
            pd.read_parquet(io.BytesIO(each))
            for key, each in found.items()
            if key.endswith("manifest.parquet")
        )
        account.lost += len(lost) + rows - int((there.status == "ok").sum())
        account.doubled += int(there.duplicated(["image_key", "edit", "alpha"]).sum())
        account.left_behind += len(left) + sum(not json.loads(note)["superseded_by"] for note in notes)
        account.wrong += len(wrong)
        for what, keys in (("lost", lost), ("wrong", wrong), ("left", left)):
            account.remarks += [f"{what} {key}" for key in keys[:5]]
        sys.stdout.write(f"{account.scenario}: night {account.nights}, fault {account.disturbances}\n")
        sys.stdout.flush()


@contextlib.contextmanager
def installation(folder: Path) -> Iterator[Nights]:
    """Bucket, proxy, Prefect server, worker, networks and a relevance table."""
    write_small_networks(folder / "networks")
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
            "STYLECLIP_COMMIT": "soak",  # what is edited meanwhile is not what is compared
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
    prefect.work()
    started = time.monotonic()
    nights.finish(nights.start())
    nights.usual, nights.calm = time.monotonic() - started, nights.files()


def _table(folder: Path, environment: dict[str, str]) -> str:
    """Build a small relevance table and return its folder."""
    models = Models(generator=f"{folder}/networks/generator.safetensors", clip=f"{folder}/networks/clip.pt")
    sampling, relevance = Sampling(statistics=20, codes=2), Relevance(samples=2, channels_per_shard=8)
    code = (
        "import json, sys; from styleclip.flows.build_relevance import build_relevance as build\n"
        "print(build(*json.loads(sys.argv[1])).table.relevance)"
    )
    given = [models, f"{folder}/table", sampling, relevance]
    values = json.dumps(TypeAdapter(Any).dump_python(given, mode="json"))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, values], env=environment, cwd=ROOT, check=True,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return done.stdout.splitlines()[-1].rsplit("/", 1)[0]
