"""Steps from a data set of images to latents."""

from __future__ import annotations

from styleclip.flows.run import gather_items
from styleclip.tasks.photographs import images, inversion
from styleclip.tasks.photographs.datasets.front import Source
from styleclip.tasks.photographs.images import ImageIndex
from styleclip.tasks.photographs.inversion import InversionPlan
from styleclip.tasks.running.progress import ShardResult, StepSummary
from styleclip.tasks.running.run import Run
from styleclip.tasks.settings import Execution, Inversion


def index(run: Run, source: Source, execution: Execution) -> ImageIndex:
    """A data set -> an index in shards."""
    return images.index_images(run, source, execution.shard_size)


def invert(
    run: Run, listed: ImageIndex, settings: Inversion
) -> tuple[InversionPlan, StepSummary[ShardResult]]:
    """An index of images -> latents."""
    planned = inversion.plan(run, listed.photos, settings)
    calls = [(run, planned, shard) for shard in listed.shards]
    return planned, gather_items("invert-images", inversion.invert_shard, calls)
