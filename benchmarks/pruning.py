"""Pruning: thirty nights and fifty batches of 500 images, counted and pruned: bytes, seconds, peak memory.

The place is made by the flows themselves, on networks of 16 px that compute next to nothing: a relevance
table that grows every night, and batches that edit ten sets of photographs in turn, every second one
repeating an edit of the batch before it on the same set. So batches share inversions and images. On this
machine files are then set back to the days they are to be from. A store keeps its own dates: there the
newest batches stay, without a grace.

The commands run in processes of their own, on a Prefect server that is there. At the end every reference of
every remaining manifest and page is followed, read here and not by what prunes, and the photographs are
compared with those of before.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import numpy as np
import pyarrow.parquet as pq
from prefect.context import refresh_global_settings_context
from rich.console import Console

from benchmarks.report import Section, hardware
from styleclip.tasks.artifacts import read_provenance
from styleclip.tasks.artifacts.outcomes import OK
from styleclip.tasks.storage import (
    MissingObjectError,
    join,
    list_folders,
    list_objects,
    output_key,
    read_bytes,
)

if TYPE_CHECKING:
    from tests.object_store import S3

_SETS, _DAY_S, _SPAN = 10, 86_400, 30
_LINK = re.compile(r'(?:href|src)="(\./[^"#]+)"')
_CHILD = """
import atexit, time
from pathlib import Path
from styleclip_cli.main import run
def said():
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(line for line in lines if line.startswith("VmHWM")).split()[1], time.process_time())
atexit.register(said)
run()
"""
_BLOCK = r'<script type="application/json" id="data-{}">(.*?)</script>'


def main() -> None:
    """Make a place, account for it and prune it, and print what that came to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pruning", description=__doc__.splitlines()[0])
    parser.add_argument("--nights", type=int, default=30, help="nights that a relevance table grew [30]")
    parser.add_argument("--batches", type=int, default=50, help="batches of edits [50]")
    parser.add_argument("--images", type=int, default=500, help="photographs of each [500]")
    parser.add_argument("--bucket", action="store_true", help="in a bucket of SeaweedFS, not in a folder")
    chosen = parser.parse_args()
    if chosen.nights < 1 or chosen.batches < 2 or chosen.images < 1:
        parser.error("--nights and --images must be at least 1 and --batches at least 2")

    from tests.object_store import object_store
    from tests.prefect_server import server_in

    console = Console(width=150)
    console.print("; ".join(f"{name}: {value}" for name, value in hardware().items()))
    with (
        tempfile.TemporaryDirectory(prefix="styleclip-pruning-") as name,
        server_in(Path(name)) as address,
        object_store(Path(name) / "seaweed") if chosen.bucket else nullcontext() as store,
    ):
        os.environ |= {"PREFECT_API_URL": address, "PREFECT_HOME": f"{name}/home"}
        os.environ |= {"PREFECT_LOGGING_LEVEL": "ERROR"}
        refresh_global_settings_context()
        _measure(chosen, Path(name), store).show(console)


# ---- making the place ------------------------------------------------------------------------------------


@dataclass
class _Calendar:
    """When what was made is to be from.

    Attributes:
        ends: Moments at which a night or a batch was done, in seconds since 1970.
        days: How many days ago each is to have been.
    """

    ends: list[float] = field(default_factory=list)
    days: list[float] = field(default_factory=list)

    def note(self, days: float) -> None:
        """Say that all that was written since the last note is to be so many days old."""
        self.ends.append(time.time())
        self.days.append(days)

    def set_back(self, folder: Path) -> None:
        """Give every file of a folder its day."""
        now = time.time()
        for path in folder.rglob("*"):
            if path.is_file():
                step = bisect_left(self.ends, path.stat().st_mtime)
                moment = now - self.days[min(step, len(self.days) - 1)] * _DAY_S
                os.utime(path, (moment, moment))


def make(photos: Sequence[str], out: str, networks: dict[str, str], nights: int, batches: int) -> _Calendar:
    """Run the flows of some nights and batches.

    Args:
        photos: URIs of the sets of photographs.
        out: URI of the place.
        networks: Paths of the networks by name.
        nights: How often the relevance table grows.
        batches: How many batches are edited.

    Raises:
        RuntimeError: If some image was not edited.
    """
    from styleclip.flows.build_relevance import build_relevance
    from styleclip.flows.edit_images import edit_images
    from styleclip.tasks.settings import Execution, Inversion, Models, Nightly, Relevance, Sampling
    from styleclip.tasks.settings.edits import Edit

    made, workspace, sampling = _Calendar(), join(out, "workspace"), Sampling(statistics=64, codes=8)
    models, relevance = Models.model_validate(networks), Relevance(samples=8, channels_per_shard=64)
    execution = Execution(device="cpu", shard_size=128)

    # the first night builds the table that edits find by its settings, the others add to the last one
    for number in range(nights):
        night = date(2031, 5, 1) + timedelta(days=number)
        nightly = Nightly(samples=2, most=10_000, night=night.isoformat())
        build_relevance(models, workspace, sampling, relevance, execution, nightly=nightly)
        made.note((nights - number) * _SPAN / nights)

    for number in range(batches):
        names = [number, number - len(photos)] if number % 2 and number >= len(photos) else [number]
        edits = [
            Edit(name=f"edit-{each}", target=f"face number {each}", alpha=2.0, top_k=4) for each in names
        ]
        done = edit_images(
            models, photos[number % len(photos)], out, edits, workspace, sampling, relevance,
            Inversion(steps=0), execution,
        )  # fmt: skip
        if done.report is None or done.report.failed:
            raise RuntimeError(f"batch {number} was not edited: {done.report}")
        made.note((batches - number) * _SPAN / batches)
    return made


def _photographs(folder: Path, images: int, store: S3 | None) -> list[str]:
    """Write the sets of photographs; returns their URIs."""
    from benchmarks.volume import _files, _images, _objects

    contents = _images()
    if store:
        return [_objects(store, folder / f"set-{each}", images, contents) for each in range(_SETS)]
    return [_files(folder / "photographs" / str(each), images, contents) for each in range(_SETS)]


# ---- measuring -------------------------------------------------------------------------------------------


def _measure(chosen: argparse.Namespace, folder: Path, store: S3 | None) -> Section:
    from tests.small_networks import write_small_networks

    photos = _photographs(folder, chosen.images, store)
    out = "s3://results/place" if store else str(folder / "place")
    started = time.perf_counter()
    made = make(photos, out, write_small_networks(folder / "networks"), chosen.nights, chosen.batches)
    seconds = time.perf_counter() - started
    if not store:
        made.set_back(Path(out))

    rows = [("making it, by the flows", f"{seconds:.0f} s", "", "", *_held(out))]
    pictures, named = _content(photos), sum(1 for _ in references(out))
    # a third of the batches goes; on a disk by their age, and not by the number that stays
    stays = chosen.batches - chosen.batches // 3
    choice = ["--keep-last", str(stays), "--grace", "0h"] if store else ["--older-than", f"{_SPAN * 2 // 3}d"]
    empty = f"{out}-empty"
    for what, command in (
        ("styleclip storage, an empty place", ["storage", empty]),
        ("styleclip storage", ["storage", out]),
        (f"styleclip prune {' '.join(choice)}", ["prune", out, *choice]),
        ("the same with --yes", ["prune", out, *choice, "--yes"]),
        ("the same again", ["prune", out, *choice, "--yes"]),
        ("styleclip storage", ["storage", out]),
    ):
        rows.append((what, *_command(command), *_held(out if command[1] == out else empty)))

    # what is read here is read by other code than what pruned
    missing = list(missing_of(out))
    remaining = sum(1 for _ in references(out))
    if missing:
        raise RuntimeError(f"{len(missing)} objects are missing, {missing[0]} among them")
    if _content(photos) != pictures:
        raise RuntimeError("the photographs are not what they were")
    told = f"references: {named:,} before, {remaining:,} after"
    rows.append((told, "0 missing", "", "", "photographs", "same"))
    title = f"{chosen.nights} nights, {chosen.batches} batches of {chosen.images} images"
    return Section(title, ("what", "time", "processor", "peak memory", "objects then", "MB then"), rows)


def _command(arguments: Sequence[str]) -> tuple[str, str, str]:
    """Run a command in a process of its own; returns its time, that of the processor, and its peak memory."""
    started = time.perf_counter()
    command = [sys.executable, "-W", "ignore", "-c", _CHILD, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds, (peak, busy) = time.perf_counter() - started, map(float, done.stdout.splitlines()[-1].split())
    return f"{seconds:.1f} s", f"{busy:.1f} s", f"{peak / 1e3:.0f} MB"


def _held(place: str) -> tuple[str, str]:
    objects = _listed(place)
    return f"{len(objects):,}", f"{sum(objects.values()) / 1e6:.1f}"


def _listed(place: str) -> dict[str, int]:
    try:
        return {item.key: item.size for item in list_objects(place)}
    except MissingObjectError:
        return {}


def _content(photos: Sequence[str]) -> str:
    """Return a digest of all photographs: keys, versions as listed, bytes."""
    found = hashlib.sha256()
    for each in photos:
        for item in list_objects(each):
            found.update(f"{each}/{item.key} {item.etag} {item.modified}\n".encode())
            found.update(read_bytes(join(each, item.key)))
    return found.hexdigest()


# ---- what manifests and pages refer to -------------------------------------------------------------------


def missing_of(out: str) -> Iterator[str]:
    """Yield the keys, relative to a place, that its batches refer to and that are not there."""
    there = _listed(out)
    yield from (key for key in references(out) if key not in there)


def references(out: str) -> Iterator[str]:
    """Yield the key of every object that a batch of a place refers to, relative to it; some come repeatedly.

    Those are what rows name and are made of, index and relevance tables that the manifest names, and what
    the page links to, asks for when it is scrolled, and opens in full.
    """
    for name in list_folders(join(out, "batches")):
        batch = f"batches/{name}"
        yield from _of_manifest(out, f"{batch}/manifest.parquet")
        yield from _of_page(batch, read_bytes(join(out, batch, "index.html")).decode())


def _of_manifest(out: str, key: str) -> Iterator[str]:
    yield key
    uri = join(out, key)
    made, table = read_provenance(uri, large=True), pq.read_table(io.BytesIO(read_bytes(uri)))
    drawn = f"workspace/latents/{made.parameters['latents'].rpartition('/')[2]}/reconstructions"
    for row in table.to_pylist():
        if row["status"] == OK:
            yield row["output_key"]
            yield f"{drawn}/{output_key(row['image_key'], suffix='.png', version=row['content_hash'])}"

    # tables that are named by their fingerprints
    index = f"workspace/index/{made.inputs['index']}"
    yield f"{index}/index.parquet"
    shards = pq.read_table(io.BytesIO(read_bytes(join(out, index, "index.parquet"))))
    yield from {f"{index}/{part}" for part in shards["index"].to_pylist()}
    yield from (f"workspace/relevance/{each}/relevance.parquet" for each in made.parameters["tables"])


def _of_page(batch: str, page: str) -> Iterator[str]:
    """Yield what a page names; data that lies beside it is named only, not read."""
    yield f"{batch}/index.html"
    yield from (f"{batch}/{unquote(link.removeprefix('./'))}" for link in _LINK.findall(page))

    meta = _block(page, "meta")
    if meta["base"]:
        base = f"{batch}/{meta['base'].removeprefix('./')}"
        leaves = range(-(-meta["images"] // meta["leaf"]))
        columns = range(1 + meta["inversions"] + len(meta["edits"]))
        yield f"{base}keys.js"
        yield from (f"{base}edit-{number}.js" for number in range(len(meta["edits"])))
        yield from (f"{base}thumbs-{column}-{leaf}.js" for column in columns for leaf in leaves)
        return

    # as the script of the page makes the addresses of whole images
    keys = _block(page, "keys")
    for number, edit in enumerate(meta["edits"]):
        status = np.frombuffer(base64.b64decode(_block(page, f"edit-{number}")["status"]), np.uint8)
        for image in np.flatnonzero(status == 0):
            key, name = keys["keys"][image], keys["names"].get(str(image), "")
            name = f"{key}{name}" if name.startswith("~") else name or key
            for folder in filter(None, (edit["folder"], meta["reconstructions"])):
                link = f"{folder}/{quote(name)}"
                yield unquote(link.removeprefix("../../"))


def _block(page: str, name: str) -> Any:  # noqa: ANN401 - a JSON value
    found = re.search(_BLOCK.format(name), page, re.DOTALL)
    if not found:
        raise RuntimeError(f"the page has no block {name}")
    return json.loads(found[1])


if __name__ == "__main__":
    main()
