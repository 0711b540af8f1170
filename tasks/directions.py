"""Text prompts -> style directions, one small artifact for each."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import pyarrow as pa
import torch
from prefect import task
from prefect.logging import get_run_logger
from pydantic import BaseModel, ConfigDict

import styleclip_core
from styleclip_core.editing import StyleDirection, beta_for, editable_mask, style_direction
from styleclip_core.errors import ArtifactConflictError
from styleclip_core.prompts import TextDirection, embed_prompt, text_direction
from styleclip_core.style_space import StyleLayout
from tasks import models
from tasks.artifacts import (
    Provenance,
    artifact_uri,
    fingerprint,
    is_complete,
    read_provenance,
    read_table,
    vector_column,
    write_table,
)
from tasks.caching import PER_RUN
from tasks.edits import StepVariant
from tasks.identity import ModelHashes
from tasks.relevance import read_relevance
from tasks.sampling import read_statistics
from tasks.settings import Models
from tasks.storage import join

STEP, VERSION = "style-direction", "1"
_FEW_CHANNELS = 10
ALPHA_UNIT = "standard deviations of the most relevant channel"


class PreparedStep(BaseModel):
    """What a step of an edit needs: a style direction or a mapper, and what it says of itself.

    Attributes:
        variant: The step.
        uri: Where direction or mapper lies; empty for an optimization, which needs neither.
        fingerprint: Names what decides the step, beside the latents.
        channels: Style channels that change, of a style direction or a mapper.
        layers: Layers they lie in.
        text_norm: Distance of the two prompts in CLIP space.
    """

    model_config = ConfigDict(frozen=True)

    variant: StepVariant
    uri: str
    fingerprint: str
    channels: int | None = None
    layers: list[str] = []
    text_norm: float


class TableRef(BaseModel):
    """A relevance table with the statistics it goes with."""

    model_config = ConfigDict(frozen=True)

    relevance: str
    statistics: str
    fingerprint: str


@task(name="find-table", cache_policy=PER_RUN, persist_result=True)
def find_table(folder: str, chosen: Models, hashes: ModelHashes, device: str) -> TableRef:
    """Return the relevance table in a folder and its statistics, beside it or where it says they are.

    Raises:
        ArtifactConflictError: If they were made with other networks.
        MissingObjectError: If one is missing.
    """
    layout = models.generator(chosen.generator, device).layout
    relevance, statistics = (join(folder, f"{name}.parquet") for name in ("relevance", "statistics"))
    read_relevance(relevance, layout, hashes)
    if not is_complete(statistics):  # a table that was measured says where its statistics lie
        statistics = read_provenance(relevance).inputs.get("statistics", statistics)
    made = read_provenance(statistics)
    if made.generator != hashes.generator:
        raise ArtifactConflictError(
            f"{statistics} was made with generator {made.generator[:16]}, this run uses "
            f"{hashes.generator[:16]}; give the statistics of this generator"
        )
    both = {"relevance": read_provenance(relevance).fingerprint, "statistics": made.fingerprint}
    return TableRef(
        relevance=relevance, statistics=statistics, fingerprint=fingerprint("table", VERSION, {}, both)
    )


@task(name="check-edit", task_run_name="check-{variant.label}", cache_policy=PER_RUN, persist_result=True)
def check_edit(variant: StepVariant, chosen: Models, device: str) -> float:
    """Fail at once if CLIP cannot tell the prompts apart or a layer pattern matches nothing."""
    layout = models.generator(chosen.generator, device).layout
    editable_mask(layout, variant.include, variant.exclude)
    return prompt_distance(variant, chosen, device)


@task(
    name="style-direction",
    task_run_name="direction-{variant.label}",
    cache_policy=PER_RUN,
    persist_result=True,
)
def compute_direction(
    variant: StepVariant, table: TableRef, chosen: Models, hashes: ModelHashes, workspace: str, device: str
) -> PreparedStep:
    """Compute the style direction of one step, or find it done."""
    parameters = {k: v for k, v in variant.parameters().items() if k != "alpha"}
    inputs = {"relevance": table.fingerprint, "clip": hashes.clip, "generator": hashes.generator}
    print_ = fingerprint(STEP, VERSION, parameters, inputs)
    uri = direction_uri(workspace, print_)
    if not is_complete(uri):
        layout = models.generator(chosen.generator, device).layout
        relevance = read_relevance(table.relevance, layout, hashes)
        text = text_vector(variant, chosen.clip, device).cpu()
        found = style_direction(
            relevance, text, read_deviations(table.statistics, layout), variant.selection()
        )
        _warn_of_few(variant, layout, found)
        made = Provenance(
            kind="style-direction", fingerprint=print_, step=STEP, version=VERSION, parameters=parameters,
            inputs=inputs, generator=hashes.generator, clip=hashes.clip,
            code_version=styleclip_core.__version__,
        )  # fmt: skip
        write_direction(uri, found, made, variant, chosen.clip, device)
    return prepared(variant, uri)


def _warn_of_few(variant: StepVariant, layout: StyleLayout, found: StyleDirection) -> None:
    """Say in the log that an edit changes few channels, and which beta would change more."""
    if variant.beta is None or found.channels >= _FEW_CHANNELS:
        return
    beta = beta_for(layout, found.relevance, variant.selection(), _FEW_CHANNELS)
    if beta > 0:
        get_run_logger().warning(
            "%s: only %d channels reach beta %g; at beta %.3f, %d do",
            variant.target, found.channels, variant.beta, math.floor(1000 * beta) / 1000, _FEW_CHANNELS,
        )  # fmt: skip


def direction_uri(workspace: str, print_: str) -> str:
    """Return where the style direction of a fingerprint lies."""
    return join(artifact_uri(workspace, "directions", print_), "direction.parquet")


def read_deviations(statistics: str, layout: StyleLayout) -> torch.Tensor:
    """Return the standard deviation of every editable style channel, ``[N]`` float32."""
    return read_statistics(statistics).std[layout.editable_index].float()


def write_direction(
    uri: str, found: StyleDirection, made: Provenance, variant: StepVariant, clip: str, device: str
) -> None:
    """Store the style direction of a step with what it says of itself."""
    text = _text(clip, variant.neutral, variant.target, variant.templates, device)
    about = {
        "alpha_unit": ALPHA_UNIT, "channels": found.channels, "layers": list(found.layers),
        "text_norm": text.norm,
    }  # fmt: skip
    columns = pa.table({
        "delta": vector_column(found.delta[None].numpy()),
        "relevance": vector_column(found.relevance[None].numpy()),
        "text_direction": vector_column(text.direction[None].cpu().numpy()),
    })  # fmt: skip
    write_table(uri, columns, replace(made, parameters={**made.parameters, **about}))


def prepared(variant: StepVariant, uri: str) -> PreparedStep:
    """Return a step whose style direction is stored."""
    made = read_provenance(uri)
    about = {name: made.parameters[name] for name in ("channels", "layers", "text_norm")}
    return PreparedStep(variant=variant, uri=uri, fingerprint=made.fingerprint, **about)


def prompt_distance(variant: StepVariant, chosen: Models, device: str) -> float:
    """Return how far CLIP holds the two prompts of an edit apart.

    Raises:
        PromptError: If it cannot tell them apart.
    """
    return _text(chosen.clip, variant.neutral, variant.target, variant.templates, device).norm


def text_vector(variant: StepVariant, clip: str, device: str) -> torch.Tensor:
    """Return the unit text direction of an edit, ``[D]``."""
    return _text(clip, variant.neutral, variant.target, variant.templates, device).direction


@lru_cache(maxsize=256)
def _text(clip: str, neutral: str, target: str, templates: str, device: str) -> TextDirection:
    return text_direction(models.clip(clip, device), neutral=neutral, target=target, templates=templates)


@lru_cache(maxsize=256)
def target_embedding(clip: str, target: str, templates: str, device: str) -> torch.Tensor:
    """Return the unit embedding of a target prompt, ``[D]``."""
    return embed_prompt(models.clip(clip, device), target, templates)


@lru_cache(maxsize=256)
def read_direction(uri: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``delta`` ``[N]`` and the text direction ``[D]`` of a stored direction."""
    table = read_table(uri, columns=["delta", "text_direction"])
    return tuple(torch.tensor(table[name][0].as_py()) for name in ("delta", "text_direction"))  # type: ignore[return-value]
