"""What optimizations leave beside edited images: latents, the way that each took, and videos of that."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import torch

from styleclip.tasks.artifacts import write_table
from styleclip.tasks.artifacts.outcomes import Row
from styleclip.tasks.editing.optimization import TRAJECTORY_SCHEMA, Optimized, latents_table
from styleclip.tasks.editing.plans import EditPlan
from styleclip.tasks.editing.videos import encode_video
from styleclip.tasks.photographs.images import ImageShard
from styleclip.tasks.storage import join, write_bytes_atomic


@dataclass(frozen=True)
class Part:
    """What an optimization made of a batch."""

    step: int
    images: list[Row]
    optimized: Optimized


def write_optimized(planned: EditPlan, shard: ImageShard, parts: list[Part]) -> dict[int, str]:
    """Write latents and trajectories of a shard's optimizations; return where the latents lie, by step."""
    places = {}
    for number in sorted({part.step for part in parts}):
        mine = [part for part in parts if part.step == number]
        keys = [image["image_key"] for part in mine for image in part.images]
        variant = planned.prepared.steps[number].variant

        latents = latents_table(keys, torch.cat([part.optimized.latents for part in mine]), variant)

        # one order whatever the batches were: the rows name the file
        trajectory = sorted(
            (row for part in mine for row in part.optimized.trajectory),
            key=lambda row: (row["image_key"], row["step"]),
        )
        digest = hashlib.sha256(repr(trajectory).encode()).hexdigest()[:8]  # a killed run may leave others

        way = pa.Table.from_pylist(trajectory, schema=TRAJECTORY_SCHEMA)
        for kind, table in (("latents", latents), ("trajectory", way)):
            name = f"{shard.digest}.step-{number}.{kind}-{digest}.parquet"
            write_table(join(planned.folder, name), table, planned.made())

        places[number] = f"edits/{planned.fingerprint}/{shard.digest}.step-{number}.latents-{digest}.parquet"
    return places


def videos_of(planned: EditPlan, part: Part) -> Iterator[Callable[[], int]]:
    """Yield what encodes and writes the video of each image of a batch, if there are frames."""

    def write(image: Row, frames: list[np.ndarray]) -> int:
        uri, content = join(planned.out, planned.video_key(image, part.step)), encode_video(frames)
        write_bytes_atomic(uri, content)
        return len(content)

    if part.optimized.frames:
        for place, image in enumerate(part.images):
            yield partial(write, image, [frame[place] for frame in part.optimized.frames])
