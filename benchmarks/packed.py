"""Bulk editing of tars into tars beside files into files, PNG beside JPEG, with the encoder alone.

The same photographs and edits in one run, in a real S3 server here, by the flow's own steps. Rounds
follow each other, so that what else the machine does meets every way alike; of each way the median counts.
``STYLECLIP_BENCH_IMAGES`` says how many photographs there are.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator

from benchmarks.bulk import TARGETS, run_flow, stores, upload
from benchmarks.report import Options, Section
from styleclip import data

SHARD = 64
IMAGES = int(os.environ.get("STYLECLIP_BENCH_IMAGES", "256"))


def measure(options: Options) -> Iterator[Section]:
    """Yield one table: edited images per second of each way."""
    from styleclip.tasks.settings import Saving

    ways = {
        "files to PNG files": ("files", Saving()),
        "files to JPEG files": ("files", Saving(format="jpeg")),
        "tars to PNG tars": ("tars", Saving(to="webdataset")),
        "tars to lossless WebP tars": ("tars", Saving(format="webp-lossless", to="webdataset")),
        "tars to JPEG tars": ("tars", Saving(format="jpeg", to="webdataset")),
        "tars to JPEG tables": ("tars", Saving(format="jpeg", to="parquet")),
    }
    with stores():
        upload(IMAGES)
        places = {"files": f"s3://photographs/bulk-{IMAGES}", "tars": _tars(IMAGES)}

        # the first run of a process loads what all share
        run_flow(places["files"], IMAGES, 0, shard_size=SHARD)
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, (source, saving) in ways.items():
                found, busy, *_ = run_flow(places[source], IMAGES, 0, saving=saving, shard_size=SHARD)
                seconds[name].append((found, busy))

    edits, cores = IMAGES * len(TARGETS), len(os.sched_getaffinity(0))
    median = {name: statistics.median(each for each, _ in rounds) for name, rounds in seconds.items()}
    usual = median["files to PNG files"]
    rows = [
        (
            name, f"{edits / median[name]:.1f}", f"{usual / median[name]:.2f}",
            " ".join(f"{edits / each:.0f}" for each, _ in seconds[name]),
            f"{statistics.median(busy / (cores * each) for each, busy in seconds[name]):.0%}",
        )
        for name in ways
    ]  # fmt: skip
    yield Section(
        f"{IMAGES} photographs of 64 px, {len(TARGETS)} edits of each, encoder alone, shards of {SHARD}",
        ("way", "edits/s", "of files to PNG files", "rounds", "cores computing"),
        rows,
        {name: edits / each for name, each in median.items()},
    )


def _tars(images: int) -> str:
    """Put photographs into the bucket as tars of ``SHARD``, and return where."""
    import io
    import tarfile

    from styleclip.tasks.storage import write_bytes_atomic

    place = f"s3://photographs/packed-{images}-{time.time_ns()}"
    photographs = [path.read_bytes() for path in sorted(data.PHOTOGRAPHS.glob("*.png"))]
    for first in range(0, images, SHARD):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for number in range(first, min(first + SHARD, images)):
                member = tarfile.TarInfo(f"{number:05d}.png")
                content = photographs[number % len(photographs)]
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        write_bytes_atomic(f"{place}/{first // SHARD:05d}.tar", buffer.getvalue())
    return place
