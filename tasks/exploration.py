"""Look into a relevance table: the channels of a prompt, and the prompts of a channel, with pictures."""

from __future__ import annotations

import pyarrow as pa
import torch.nn.functional as F
from prefect import task
from pydantic import BaseModel, ConfigDict

import styleclip_core
from styleclip_core.diagnostics import find_channel, nearest_prompts, strongest_channels
from styleclip_core.errors import LayoutMismatchError
from tasks import models
from tasks.artifacts import Provenance, artifact_uri, fingerprint, write_table
from tasks.attributes import AttributePrompts, embedded_pairs
from tasks.caching import PER_RUN
from tasks.diagnostics import CHANNELS_SCHEMA, SIGMA_NAMES, channel_rows, channel_strips
from tasks.directions import TableRef, read_deviations, text_vector
from tasks.edits import StepVariant
from tasks.identity import ModelHashes
from tasks.pictures import draw_strips
from tasks.relevance import read_relevance
from tasks.settings import Models
from tasks.storage import join, write_bytes_atomic

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


@task(name="explore-target", cache_policy=PER_RUN, persist_result=True)
def explore_target(
    prompt: StepVariant,
    count: int,
    table: TableRef,
    chosen: Models,
    hashes: ModelHashes,
    workspace: str,
    device: str,
) -> ExplorationRef:
    """List and draw the strongest channels of a prompt.

    Raises:
        PromptError: If CLIP cannot tell the prompts apart.
    """
    generator = models.generator(chosen.generator, device)
    relevance = read_relevance(table.relevance, generator.layout, hashes)
    measured = relevance.relevance(text_vector(prompt, chosen.clip, device).cpu())
    ranked = strongest_channels(generator.layout, measured, count)
    about = prompt.model_dump(include={"neutral", "target", "templates"})
    made = _provenance({**about, "count": count}, table, hashes)
    found = _reference(workspace, made)
    rows = channel_rows(prompt, ranked, relevance)
    write_table(found.table, pa.Table.from_pylist(rows, schema=CHANNELS_SCHEMA), made)
    std = read_deviations(table.statistics, generator.layout)
    strips = channel_strips(f"{prompt.neutral} -> {prompt.target}", ranked, std, generator)
    write_bytes_atomic(found.picture, draw_strips(strips, SIGMA_NAMES))
    return found


@task(name="explore-channel", cache_policy=PER_RUN, persist_result=True)
def explore_channel(
    name: str,
    attributes: list[AttributePrompts],
    templates: str,
    table: TableRef,
    chosen: Models,
    hashes: ModelHashes,
    workspace: str,
    device: str,
) -> ExplorationRef:
    """List the prompts that lie nearest to what a channel does, and draw it.

    Raises:
        LayoutMismatchError: If there is no such channel, or CLIP cannot see what it does.
    """
    generator = models.generator(chosen.generator, device)
    channel = find_channel(generator.layout, name)
    relevance = read_relevance(table.relevance, generator.layout, hashes)
    direction = relevance.direction[channel.index]
    if not direction.isfinite().all() or not direction.any():
        raise LayoutMismatchError(
            f"CLIP sees nothing of what {name} does, so no prompt is near it; try another"
        )
    positive, negative = embedded_pairs(tuple(attributes), chosen.clip, templates, device)
    cosines = nearest_prompts(direction, F.normalize(positive - negative, dim=1).cpu())
    order = cosines.abs().argsort(descending=True).tolist()
    rows = [
        {
            "name": name, "rank": rank, "attribute": attributes[place].name,
            "positive": attributes[place].positive, "negative": attributes[place].negative,
            "cosine": cosines[place].item(), "consistency": relevance.consistency[channel.index].item(),
        }
        for rank, place in enumerate(order, start=1)
    ]  # fmt: skip
    listed = [each.model_dump() for each in attributes]
    made = _provenance({"channel": name, "attributes": listed, "templates": templates}, table, hashes)
    found = _reference(workspace, made)
    write_table(found.table, pa.Table.from_pylist(rows, schema=PROMPTS_SCHEMA), made)
    std = read_deviations(table.statistics, generator.layout)
    nearest = ", ".join(f"{row['attribute']} {row['cosine']:+.2f}" for row in rows[:4])
    (strip,) = channel_strips(f"{name}: {nearest}", [channel], std, generator)
    write_bytes_atomic(found.picture, draw_strips([strip], SIGMA_NAMES))
    return found


def _provenance(parameters: dict[str, object], table: TableRef, hashes: ModelHashes) -> Provenance:
    inputs = {"relevance": table.fingerprint, "clip": hashes.clip, "generator": hashes.generator}
    return Provenance(
        kind="exploration", fingerprint=fingerprint(STEP, VERSION, parameters, inputs), step=STEP,
        version=VERSION, parameters=parameters, inputs=inputs, generator=hashes.generator, clip=hashes.clip,
        code_version=styleclip_core.__version__,
    )  # fmt: skip


def _reference(workspace: str, made: Provenance) -> ExplorationRef:
    folder = artifact_uri(workspace, "explorations", made.fingerprint)
    return ExplorationRef(table=join(folder, "channels.parquet"), picture=join(folder, "channels.png"))
