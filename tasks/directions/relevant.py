"""Text prompts -> the channels that they concern, for optimizations and mappers.

See ``styleclip_core.relevant``. CLIP looks at the same sampled codes as for matched edits, once for all
prompts.
"""

from __future__ import annotations

from functools import lru_cache

import pyarrow as pa
import torch
from prefect.logging import get_run_logger
from torch import Tensor

from styleclip.tasks.artifacts import (
    ChangedInputError,
    Recipe,
    is_complete,
    read_provenance,
    read_table,
    vector_column,
    write_table,
)
from styleclip.tasks.directions.matching import SeenCodes, look_at_codes, read_looked_at
from styleclip.tasks.directions.style_directions import direction_recipe
from styleclip.tasks.running.caching import unit_of_work
from styleclip.tasks.running.overlap import computing
from styleclip.tasks.running.run import Run
from styleclip.tasks.running.texts import text_direction
from styleclip.tasks.settings.edits import StepVariant
from styleclip.tasks.storage import join, read_bytes
from styleclip_core.relevant import RelevantChannels, relevant_channels

STEP, VERSION = "relevant-channels", "1"
_COLUMNS = ("delta", "pull", "centre", "further", "width")


def plan_channels(run: Run, variant: StepVariant, seen: SeenCodes) -> Recipe:
    """Return what decides the channels of a step; nothing is computed."""
    parameters = variant.model_dump(include={"neutral", "target", "templates"})
    return direction_recipe(run, STEP, VERSION, parameters, {"seen": seen.fingerprint})


def channels_uri(run: Run, recipe: Recipe) -> str:
    """Return where the channels of a step lie."""
    return join(recipe.folder(run.workspace, "directions"), "channels.parquet")


@unit_of_work("relevant-channels", "relevant-channels-{variant.label}")
def compute_channels(run: Run, variant: StepVariant, seen: SeenCodes) -> str:
    """Find the channels that the prompt of a step concerns, or find that done; return where they lie.

    Raises:
        NoRelevantChannelError: If none has anything to do with it.
        PromptError: If CLIP cannot tell the prompts apart.
    """
    recipe = plan_channels(run, variant, seen)
    uri = channels_uri(run, recipe)
    if not is_complete(uri):
        # looked at here, where no flow has looked
        for shard in range(seen.shards):
            look_at_codes.fn(run, seen, shard)
        write_channels(run, recipe, _found(run, variant, seen))
    return uri


def _found(run: Run, variant: StepVariant, seen: SeenCodes) -> RelevantChannels:
    text = text_direction(run, variant)
    codes, embedded = read_looked_at(run, seen)
    with computing(run.device):
        found = relevant_channels(
            run.generator, run.clip.embed_whole, codes, embedded, text, run.clip.logit_scale
        )
    if found.goes_further:
        get_run_logger().info(
            "%s: images that show it do not say how to get there, so derivatives show the rest of the way",
            variant.target,
        )
    return found


def write_channels(run: Run, recipe: Recipe, found: RelevantChannels) -> None:
    """Store the channels of a step."""
    columns: dict[str, Tensor] = {name: getattr(found, name) for name in _COLUMNS}
    table = pa.table({name: vector_column(each[None].cpu().numpy()) for name, each in columns.items()})
    write_table(channels_uri(run, recipe), table, recipe.made("relevant-channels"))


@lru_cache(maxsize=256)  # some tens of KB each
def read_channels(uri: str, fingerprint: str) -> RelevantChannels:
    """Return stored channels.

    Raises:
        ChangedInputError: If others lie there than those of that fingerprint.
    """
    content = read_bytes(uri)
    made = read_provenance(uri, content=content)
    if made.fingerprint != fingerprint:
        raise ChangedInputError(
            f"{uri} holds the channels {made.fingerprint[:16]}, not {fingerprint[:16]}; delete it, and the "
            "next run finds them again"
        )
    table = read_table(uri, content=content)
    return RelevantChannels(**{name: torch.tensor(table[name][0].as_py()) for name in _COLUMNS})
