"""Latent optimization as an edit: a batch of latents and a prompt -> optimized codes, and their ways."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import torch
from prefect import task
from torch import Tensor

from styleclip_core.errors import StyleCLIPError
from styleclip_core.optimization import Status, optimize, published_embedding
from styleclip_core.style_space import StyleCode
from tasks import models
from tasks.artifacts import fingerprint
from tasks.caching import PER_RUN
from tasks.directions import PreparedEdit, prompt_distance, target_embedding
from tasks.identity import ModelHashes
from tasks.outcomes import Row
from tasks.settings import EditVariant, Models, SettingsError

STEP, VERSION = "optimize-latents", "1"
TRAJECTORY_SCHEMA = pa.schema([
    ("image_key", pa.string()), ("step", pa.int32()), ("clip", pa.float32()), ("l2", pa.float32()),
    ("identity", pa.float32()), ("loss", pa.float32()),
])  # fmt: skip


class RunawayError(StyleCLIPError):
    """An optimization ended in numbers that are not finite, or far from where it began."""


@dataclass(frozen=True, eq=False)
class Optimized:
    """What became of a batch of latents.

    Attributes:
        codes: Style codes of the results, for all of the batch.
        latents: w_plus, or flat style codes, ``[B, ...]``.
        errors: By place in the batch, what ended in an error.
        trajectory: Loss terms, a row per image and step.
    """

    codes: StyleCode
    latents: Tensor
    errors: dict[int, StyleCLIPError]
    trajectory: list[Row]


@task(
    name="prepare-optimization",
    task_run_name="prepare-{variant.label}",
    cache_policy=PER_RUN,
    persist_result=True,
)
def prepare_optimization(
    variant: EditVariant, chosen: Models, hashes: ModelHashes, device: str
) -> PreparedEdit:
    """Fail at once if CLIP cannot tell the prompts apart, or the identity term lacks its network."""
    parameters = variant.optimization_parameters()
    weighted = parameters["mode"] == "edit" and parameters["identity_weight"] > 0
    if weighted and not chosen.identity:
        raise SettingsError(
            f"edit {variant.name!r} weighs identity with {parameters['identity_weight']:g}, but there is no "
            "identity network; give --identity or set identity_weight to 0"
        )
    inputs = {"clip": hashes.clip, "generator": hashes.generator}
    if weighted:
        inputs["identity"] = hashes.identity
    return PreparedEdit(
        variant=variant,
        uri="",
        fingerprint=fingerprint(STEP, VERSION, parameters, inputs),
        text_norm=prompt_distance(variant, chosen, device),
    )


def optimize_batch(
    variant: EditVariant, chosen: Models, w_plus: Tensor, image_keys: list[str], device: str
) -> Optimized:
    """Optimize a batch of latents ``[B, L, W]`` towards one prompt."""
    if variant.optimization is None:
        raise SettingsError(f"edit {variant.name!r} has no settings of an optimization")
    generator, clip = models.generator(chosen.generator, device), models.clip(chosen.clip, device)
    settings = variant.optimization.settings()
    compatible = variant.optimization.reference_compat
    text = target_embedding(chosen.clip, variant.target, variant.templates, device)
    identity = None
    if chosen.identity and settings.mode == "edit" and settings.identity_weight > 0:
        identity = models.identity(chosen.identity, device).embed
    trajectory: list[Row] = []
    with torch.enable_grad():
        states = optimize(
            generator,
            published_embedding(clip) if compatible else clip.embed_whole,
            w_plus,
            text.expand(len(w_plus), -1),
            settings,
            embed_identity=identity,
        )
        for state in states:
            terms = {name: getattr(state, name).tolist() for name in ("clip", "l2", "identity", "loss")}
            trajectory += [
                {"image_key": image_keys[pair], "step": state.step}
                | {name: values[place] for name, values in terms.items()}
                for place, pair in enumerate(state.pairs.tolist())
            ]
    latents = state.latents
    codes = (
        generator.styles(latents)
        if settings.space == "w_plus"
        else StyleCode.from_flat(generator.layout, latents)
    )
    errors: dict[int, StyleCLIPError] = {
        place: RunawayError("the optimization diverged; lower learning_rate or raise l2_weight")
        for place, status in enumerate(state.status.tolist())
        if status == Status.DIVERGED
    }
    return Optimized(codes, latents, errors, trajectory)


def latents_table(image_keys: list[str], latents: Tensor, prepared: PreparedEdit) -> pa.Table:
    """Return optimized latents as a table: a row per image, ``w_plus`` or flat style codes ``s``."""
    name = "w_plus" if prepared.variant.optimization_parameters()["space"] == "w_plus" else "s"
    flat = latents.flatten(1).cpu()
    width = pa.list_(pa.float32(), flat.shape[1])
    rows = sorted(zip(image_keys, flat.numpy(), strict=True), key=lambda row: row[0])
    return pa.table({
        "image_key": pa.array([key for key, _ in rows], pa.string()),
        name: pa.array([values for _, values in rows], width),
    })  # fmt: skip
