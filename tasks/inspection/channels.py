"""Look into a relevance table: the channels of a prompt, and the prompts of a channel, with pictures."""

from __future__ import annotations

import pyarrow as pa
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict

from styleclip.tasks.artifacts import Recipe, write_table
from styleclip.tasks.artifacts.outcomes import Row
from styleclip.tasks.directions.relevance import read_relevance
from styleclip.tasks.directions.style_directions import TableRef, read_deviations
from styleclip.tasks.evaluation.attributes import AttributePrompts, embedded_pairs
from styleclip.tasks.inspection.pictures import Strip, draw_strips
from styleclip.tasks.inspection.prompts import CHANNELS_SCHEMA, SIGMA_NAMES, channel_rows, channel_strips
from styleclip.tasks.running.caching import unit_of_work
from styleclip.tasks.running.run import Run
from styleclip.tasks.running.texts import text_vector
from styleclip.tasks.settings.edits import StepVariant
from styleclip.tasks.storage import join, write_bytes_atomic
from styleclip_core.diagnostics import find_channel, nearest_prompts, strongest_channels
from styleclip_core.errors import LayoutMismatchError

STEP, VERSION = "explore-channels", "1"
PROMPTS_SCHEMA = pa.schema([
    ("name", pa.string()), ("rank", pa.int32()), ("attribute", pa.string()), ("positive", pa.string()),
    ("negative", pa.string()), ("cosine", pa.float32()), ("consistency", pa.float32()),
])  # fmt: skip


class ExplorationRef(BaseModel):
    """Where a look into a table lies: the list and the picture."""

    model_config = ConfigDict(frozen=True)

    table: str
    picture: str


@unit_of_work("explore-target")
def explore_target(run: Run, prompt: StepVariant, count: int, table: TableRef) -> ExplorationRef:
    """List and draw the strongest channels of a prompt.

    Raises:
        PromptError: If CLIP cannot tell the prompts apart.
    """
    generator, relevance = run.generator, read_relevance(run, table.relevance)
    measured = relevance.relevance(text_vector(run, prompt).cpu())
    ranked = strongest_channels(generator.layout, measured, count)
    rows = channel_rows(prompt, ranked, relevance)

    std = read_deviations(table.statistics, generator.layout)
    strips = channel_strips(f"{prompt.neutral} -> {prompt.target}", ranked, std, generator)

    about = prompt.model_dump(include={"neutral", "target", "templates"})
    recipe = _recipe(run, table, {**about, "count": count})
    return _write(run, recipe, pa.Table.from_pylist(rows, schema=CHANNELS_SCHEMA), strips)


@unit_of_work("explore-channel")
def explore_channel(
    run: Run, name: str, attributes: list[AttributePrompts], templates: str, table: TableRef
) -> ExplorationRef:
    """List the prompts that lie nearest to what a channel does, and draw it.

    Raises:
        LayoutMismatchError: If there is no such channel, or CLIP cannot see what it does.
    """
    generator, relevance = run.generator, read_relevance(run, table.relevance)
    channel = find_channel(generator.layout, name)
    direction = relevance.direction[channel.index]
    if not direction.isfinite().all() or not direction.any():
        raise LayoutMismatchError(
            f"CLIP sees nothing of what {name} does, so no prompt is near it; try another"
        )

    # an attribute that the channel takes away is as near as one that it brings
    positive, negative = embedded_pairs(run, attributes, templates)
    cosines = nearest_prompts(direction, F.normalize(positive - negative, dim=1).cpu())
    order = cosines.abs().argsort(descending=True).tolist()
    rows: list[Row] = [
        {
            "name": name, "rank": rank, "attribute": attributes[place].name,
            "positive": attributes[place].positive, "negative": attributes[place].negative,
            "cosine": cosines[place].item(), "consistency": relevance.consistency[channel.index].item(),
        }
        for rank, place in enumerate(order, start=1)
    ]  # fmt: skip

    std = read_deviations(table.statistics, generator.layout)
    nearest = ", ".join(f"{row['attribute']} {row['cosine']:+.2f}" for row in rows[:4])
    strips = channel_strips(f"{name}: {nearest}", [channel], std, generator)
    listed = [each.model_dump() for each in attributes]
    recipe = _recipe(run, table, {"channel": name, "attributes": listed, "templates": templates})
    return _write(run, recipe, pa.Table.from_pylist(rows, schema=PROMPTS_SCHEMA), strips)


def _recipe(run: Run, table: TableRef, parameters: Row) -> Recipe:
    hashes = run.hashes
    inputs = {"relevance": table.fingerprint, "clip": hashes.clip, "generator": hashes.generator}
    return Recipe(STEP, VERSION, parameters, inputs, hashes.generator, hashes.clip)


def _write(run: Run, recipe: Recipe, listed: pa.Table, strips: list[Strip]) -> ExplorationRef:
    """Write a list and its picture."""
    folder = recipe.folder(run.workspace, "explorations")
    found = ExplorationRef(table=join(folder, "channels.parquet"), picture=join(folder, "channels.png"))
    write_table(found.table, listed, recipe.made("exploration"))
    write_bytes_atomic(found.picture, draw_strips(strips, SIGMA_NAMES))
    return found
