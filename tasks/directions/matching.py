"""Text prompts -> ways to where images that show them have their style channels, without a table.

Style codes are sampled and drawn, and CLIP looks at what they show: once for all prompts, in shards. For a
prompt the codes that show it are then told from the others, and both are compared channel by channel.
"""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from styleclip.tasks.artifacts import (
    Recipe,
    is_complete,
    part_name,
    read_table,
    to_matrix,
    vector_column,
    write_table,
)
from styleclip.tasks.directions.style_directions import (
    PreparedStep,
    direction_recipe,
    direction_uri,
    prepared,
    write_direction,
)
from styleclip.tasks.running.caching import unit_of_work
from styleclip.tasks.running.overlap import accounting, computing
from styleclip.tasks.running.progress import ShardResult
from styleclip.tasks.running.rates import Spent, device_name
from styleclip.tasks.running.run import Run
from styleclip.tasks.running.texts import text_direction
from styleclip.tasks.settings import Sampling
from styleclip.tasks.settings.edits import StepVariant
from styleclip.tasks.storage import join
from styleclip_core.batches import Batches
from styleclip_core.matching import derivative_direction, going_further, likelihood, matched_direction
from styleclip_core.prompts import TextDirection
from styleclip_core.sampling import sample_styles
from styleclip_core.settings.editing import END_OF_WAY
from styleclip_core.style_space import StyleCode

STEP, VERSION = "look-at-codes", "1"
DIRECTION_STEP, DIRECTION_VERSION, FURTHER_VERSION = "matched-direction", "1", "1"
_SHARD, _BATCH = 500, 32  # codes


class SeenCodes(BaseModel):
    """Sampled style codes and where CLIP's embeddings of their images lie.

    Attributes:
        folder: Where the parts lie.
        recipe: What decides them.
        sampling: How the codes are sampled, as they are not stored.
        codes: How many there are.
    """

    model_config = ConfigDict(frozen=True)

    folder: str
    recipe: Recipe
    sampling: Sampling
    codes: int

    @property
    def fingerprint(self) -> str:
        """Return the name of the embeddings."""
        return self.recipe.fingerprint

    @property
    def shards(self) -> int:
        """Return the number of parts."""
        return math.ceil(self.codes / _SHARD)

    def ids(self, shard: int) -> range:
        """Return the samples of a part."""
        return range(shard * _SHARD, min((shard + 1) * _SHARD, self.codes))

    def part(self, shard: int) -> str:
        """Return where a part lies."""
        return join(self.folder, part_name(shard, self.shards))


def plan(run: Run, sampling: Sampling) -> SeenCodes:
    """Return where the embeddings of these settings lie; nothing is computed."""
    # what else sampling says is of other artifacts, and would rename these
    decides = {"seed", "truncation_psi", "truncation_cutoff"} | (
        {"label"} if sampling.label is not None else set()
    )
    parameters = {**sampling.model_dump(include=decides), "codes": sampling.looked_at}
    networks = {"clip": run.hashes.clip, "generator": run.hashes.generator}
    recipe = Recipe(STEP, VERSION, parameters, networks, run.hashes.generator, run.hashes.clip)
    return SeenCodes(
        folder=recipe.folder(run.workspace, "seen"),
        recipe=recipe,
        sampling=sampling,
        codes=sampling.looked_at,
    )


def work(run: Run, codes: int, seconds: float = 0.0) -> Spent:
    """Return the drawing and looking at of sampled codes as it is measured and estimated."""
    side = run.generator.image_size[0]
    return Spent(kind="look", device=device_name(run.device), resolution=side, units=codes, seconds=seconds)


@unit_of_work("look-at-codes", "look-at-codes-{shard}")
def look_at_codes(run: Run, planned: SeenCodes, shard: int) -> ShardResult:
    """Draw one shard of sampled codes and store CLIP's embeddings of the images."""
    uri, ids = planned.part(shard), planned.ids(shard)
    if is_complete(uri):
        return ShardResult(uri=uri, rows=len(ids), reused=True)

    generator, clip = run.generator, run.clip
    with accounting() as account, computing(run.device), torch.no_grad():
        codes = _codes(run, planned, ids)

        def embed(index: Tensor) -> Tensor:
            return clip.embed_whole(generator.synthesize(codes.select(index))).float().cpu()

        index = torch.arange(len(ids))
        embedded = torch.cat([found for _, found in Batches(_BATCH).run(index, embed)])

    table = pa.table({
        "sample_id": pa.array(ids, pa.int64()), "embedding": vector_column(embedded.numpy()),
    })  # fmt: skip
    write_table(uri, table, planned.recipe.made("seen-codes"))
    spent = work(run, len(ids), account.seconds)
    return ShardResult(uri=uri, rows=len(ids), tried=len(ids), spent=(spent,))


def plan_matched(run: Run, variant: StepVariant, seen: SeenCodes) -> Recipe:
    """Return what decides the direction of a step; nothing is computed."""
    parameters = {name: value for name, value in variant.parameters().items() if name != "alpha"}
    if _goes_further(variant):
        parameters["further"] = FURTHER_VERSION
    inputs = {"seen": seen.fingerprint}
    return direction_recipe(run, DIRECTION_STEP, DIRECTION_VERSION, parameters, inputs)


@unit_of_work("matched-direction", "matched-direction-{variant.label}")
def compute_matched_direction(run: Run, variant: StepVariant, seen: SeenCodes) -> PreparedStep:
    """Compute the way of one step to where codes that show its target have their channels, or find it done.

    Raises:
        NoEffectError: If CLIP sees the target in hardly any code.
        NoRelevantChannelError: If no channel reaches the variant's beta, or has anything to do with a target
            to which derivatives are to lead.
        PromptError: If CLIP cannot tell the prompts apart.
    """
    recipe = plan_matched(run, variant, seen)
    uri = direction_uri(run, recipe)

    if not is_complete(uri):
        text = text_direction(run, variant)
        codes, probability = read_seen(run, seen, text)
        selection = variant.selection()
        found = matched_direction(codes, probability, selection)

        if _goes_further(variant):
            with computing(run.device):
                beyond = derivative_direction(run.generator, run.clip.embed_whole, codes, text, selection)
            found = going_further(found, beyond)
        write_direction(run, recipe, variant, found)
    return prepared(variant, uri)


def _goes_further(variant: StepVariant) -> bool:
    return (variant.alpha or 0.0) > END_OF_WAY


def read_seen(run: Run, seen: SeenCodes, text: TextDirection) -> tuple[StyleCode, Tensor]:
    """Return the codes CLIP has looked at, on the CPU, and how likely each shows the target, ``[n]``."""
    codes, embedded = read_looked_at(run, seen)
    return codes, likelihood(embedded, text, run.clip.logit_scale)


def read_looked_at(run: Run, seen: SeenCodes) -> tuple[StyleCode, Tensor]:
    """Return the codes CLIP has looked at and its unit embeddings of them, ``[n, D]``, on the CPU."""
    with torch.no_grad():
        codes = _codes(run, seen, range(seen.codes)).to("cpu")
    parts = [to_matrix(read_table(seen.part(shard)), "embedding") for shard in range(seen.shards)]
    return codes, torch.from_numpy(np.concatenate(parts))


def _codes(run: Run, planned: SeenCodes, ids: range) -> StyleCode:
    """Sample codes: the same ones of every id, whatever else is sampled with it."""
    sampling = planned.sampling
    batches = sample_styles(
        run.generator,
        seed=sampling.seed,
        sample_ids=ids,
        truncation_psi=sampling.truncation_psi,
        truncation_cutoff=sampling.truncation_cutoff,
        label=sampling.label,
        batch_size=_SHARD,
    )
    flat = torch.cat([styles.flat() for _, _, styles in batches])
    return StyleCode.from_flat(run.generator.layout, flat)
