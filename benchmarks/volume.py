"""Volume: a bucket is listed, indexed, cut into shards and edited; images/s, and whether memory stays flat.

Every measurement runs in a process of its own, whose peak is the kernel's high-water mark of its resident
memory. Memory is flat if ten times the images need as much: the ratio of peaks says so. Objects of the
bucket are in SeaweedFS on this machine, which takes a share of its cores, as does the Prefect server.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from rich.console import Console

from benchmarks.report import Section, hardware
from styleclip.tasks.photographs.datasets.front import locate
from styleclip.tasks.photographs.images import SUFFIXES, read_shard, write_index
from styleclip.tasks.storage import sorted_objects

if TYPE_CHECKING:
    from torch import Tensor

    from tests.object_store import S3

_SHARD = 256


def main() -> None:
    """Measure what is asked for and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bucket", type=int, nargs="*", default=[100_000, 1_000_000], help="objects listed")
    parser.add_argument("--folder", type=int, nargs="*", default=[100_000, 1_000_000], help="files listed")
    parser.add_argument("--edit", type=int, nargs="*", default=[1_000, 10_000], help="photographs edited")
    parser.add_argument(
        "--small", action="store_true", help="edit by networks of 16 px that compute next to nothing"
    )
    parser.add_argument("--child", nargs=2, metavar=("WHAT", "PLACE"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        what, place = chosen.child
        measures = {"index": _index, "edit": _edit, "edit-small": _edit_small}
        sys.stdout.write(json.dumps(measures[what](place)) + "\n")
        return
    console = Console(width=150)
    console.print("; ".join(f"{name}: {value}" for name, value in hardware().items()))
    with tempfile.TemporaryDirectory(prefix="styleclip-volume-") as folder:
        for section in _sections(chosen, Path(folder)):
            section.show(console)


def _sections(chosen: argparse.Namespace, folder: Path) -> Iterator[Section]:
    from tests.object_store import object_store

    if chosen.folder:
        places = [(_files(folder / f"files-{count}", count), count) for count in chosen.folder]
        yield _listings("files of a folder", places)
    if chosen.bucket or chosen.edit:
        with object_store(folder / "seaweed") as store:
            if chosen.bucket:
                places = [(_objects(store, folder / f"listed-{n}", n), n) for n in chosen.bucket]
                yield _listings("objects of a bucket", places)
            if chosen.edit:
                images = _images()
                places = [(_objects(store, folder / f"edited-{n}", n, images), n) for n in chosen.edit]
                yield _edits(places, small=chosen.small)


def _listings(what: str, places: list[tuple[str, int]]) -> Section:
    rows, peaks, figures = [], list[float](), dict[str, float]()
    for place, count in places:
        found = _child("index", place)
        if found["rows"] != count:
            raise RuntimeError(f"{place} holds {count} images, {found['rows']} were listed")
        peaks.append(found["peak"])
        rows.append((
            f"{count:,}", f"{found['shards']:.0f}", f"{count / found['index_s']:,.0f}",
            f"{count / found['read_s']:,.0f}", f"{found['before'] / 1e6:.0f} MB",
            f"{found['peak'] / 1e6:.0f} MB",
            f"{found['peak'] / peaks[0]:.2f}",
        ))  # fmt: skip
        figures[f"{count} {what}: peak over the smallest"] = found["peak"] / peaks[0]
    header = (
        what, "shards", "listed, sorted, indexed per s", "rows read by shards per s", "memory before", "peak",
        "peak / first",
    )  # fmt: skip
    return Section(f"{what}: listing, index and shards of {_SHARD}", header, rows, figures)


def _edits(places: list[tuple[str, int]], *, small: bool) -> Section:
    rows, peaks, figures = [], list[float](), dict[str, float]()
    for place, count in places:
        found = _child("edit-small" if small else "edit", place)
        if (found["rows"], found["failed"]) != (count, 0):
            raise RuntimeError(f"of {count} images {found['rows']} were edited, {found['failed']} failed")
        peaks.append(found["peak"])
        rows.append((
            f"{count:,}", f"{found['shards']:.0f}", f"{count / found['index_s']:.1f}",
            f"{count / found['edit_s']:.1f}", f"{count / found['report_s']:.1f}",
            f"{count / found['seconds']:.1f}",
            *(f"{found[when] / 1e6:.0f}" for when in ("before", "listed", "edited", "peak")),
            f"{found['peak'] / peaks[0]:.2f}",
        ))  # fmt: skip
        figures[f"{count} edited: peak over the smallest"] = found["peak"] / peaks[0]
    header = (
        "photographs", "shards", "indexed/s", "inverted and edited/s", "reported/s", "images/s of the flow",
        "MB before", "peak MB, listed", "edited", "reported", "peak / first",
    )  # fmt: skip
    models = "networks of 16 px" if small else "embedded models"
    title = f"one edit of photographs in a bucket, {models}, the encoder's latents, shards of {_SHARD}"
    return Section(title, header, rows, figures)


def _child(what: str, place: str) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.volume", "--child", what, place]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


# ---- in a process of its own ---------------------------------------------------------------------------


def _index(place: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as workspace:
        before = _memory("VmRSS")
        started = time.perf_counter()
        with sorted_objects(place, suffixes=SUFFIXES) as objects:
            index = write_index(objects, place, workspace, _SHARD)
        indexed = time.perf_counter()
        rows = sum(len(read_shard(shard)) for shard in index.shards)
        return {
            "rows": rows, "shards": len(index.shards), "index_s": indexed - started,
            "read_s": time.perf_counter() - indexed, "before": before, "peak": _memory("VmHWM"),
        }  # fmt: skip


def _edit(place: str) -> dict[str, float]:
    from benchmarks.bulk import Work
    from styleclip import data

    networks = {"generator": str(data.GENERATOR), "clip": str(data.CLIP), "encoder": str(data.ENCODER)}
    return _bulk(place, networks, Work.load(0).deltas[0])


def _edit_small(place: str) -> dict[str, float]:
    import torch

    from styleclip_core import load_generator
    from tests.small_networks import write_small_networks

    with tempfile.TemporaryDirectory(prefix="styleclip-volume-") as folder:
        networks = write_small_networks(Path(folder))
        channels = load_generator(networks["generator"]).layout.num_editable
        return _bulk(place, networks, torch.ones(channels))


def _bulk(place: str, networks: dict[str, str], delta: Tensor) -> dict[str, float]:
    """List a bucket and edit all of it by one direction, as the flow for bulk edits does."""
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    import torch
    from prefect import flow
    from prefect.testing.utilities import prefect_test_harness

    from benchmarks.bulk import _prepared
    from styleclip.flows.run import begin, task_runner
    from styleclip.flows.steps import editing, photographs, report
    from styleclip.tasks.settings import DataSet, Execution, Inversion, Models

    torch.set_num_threads(1)
    models, out = Models.model_validate(networks), f"s3://results/volume-{time.time_ns()}"
    prepared = [_prepared("face with glasses", delta, out)]
    found = dict[str, float]()

    @flow(task_runner=task_runner(), persist_result=True)
    def volume() -> None:
        run = begin(models, Execution(device="cpu"), out, out)
        found["before"] = _memory("VmRSS")
        times = [time.perf_counter()]
        listed = photographs.index(run, locate(place, DataSet()), Execution(shard_size=_SHARD))
        times.append(time.perf_counter())
        found["listed"] = _memory("VmHWM")
        plans = editing.plan(run, prepared, listed, Inversion(steps=0))
        editing.invert_and_edit(run, plans, listed)
        times.append(time.perf_counter())
        found["edited"] = _memory("VmHWM")
        written = report.report(run, plans, listed, [])
        times.append(time.perf_counter())
        found.update(
            rows=written.rows, failed=written.failed, shards=len(listed.shards), index_s=times[1] - times[0],
            edit_s=times[2] - times[1], report_s=times[3] - times[2], seconds=times[3] - times[0],
        )  # fmt: skip

    with prefect_test_harness(server_startup_timeout=300):  # a server in another process
        volume()
    return found | {"peak": _memory("VmHWM")}


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


# ---- what is listed ------------------------------------------------------------------------------------


def _key(number: int) -> str:
    return f"{number // 1000:04d}/{number:07d}.png"


def _files(folder: Path, count: int, contents: list[bytes] | None = None) -> str:
    """Write files, the same contents again and again; returns their folder."""
    contents = contents or [b"."]
    for number in range(count):
        path = folder / _key(number)
        if number % 1000 == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents[number % len(contents)])
    return str(folder)


def _objects(store: S3, folder: Path, count: int, contents: list[bytes] | None = None) -> str:
    """Put objects into the bucket; returns their prefix."""
    _files(folder, count, contents)
    store.copy_in(folder, "photographs")
    shutil.rmtree(folder)
    return f"s3://photographs/{folder.name}"


def _images() -> list[bytes]:
    """Return PNG files of the embedded photographs, each in a few tints."""
    from styleclip import data

    found = []
    for path in sorted(data.PHOTOGRAPHS.glob("*.png")):
        with Image.open(path) as opened:
            pixels = np.asarray(opened.convert("RGB"), dtype=np.float32)
        for tint in (0.8, 0.9, 1.0):
            buffer = io.BytesIO()
            Image.fromarray((pixels * tint).astype(np.uint8)).save(buffer, "PNG")
            found.append(buffer.getvalue())
    return found


if __name__ == "__main__":
    main()
