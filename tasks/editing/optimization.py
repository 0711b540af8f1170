"""Latent optimization as an edit: a batch of latents and a prompt -> moved latents, and their ways there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from styleclip.tasks.artifacts import Recipe
from styleclip.tasks.artifacts.outcomes import Row
from styleclip.tasks.directions.matching import plan as plan_looking
from styleclip.tasks.directions.relevant import channels_uri, plan_channels, read_channels
from styleclip.tasks.directions.style_directions import PreparedStep
from styleclip.tasks.editing.videos import check_encoder
from styleclip.tasks.running.caching import unit_of_work
from styleclip.tasks.running.run import Run
from styleclip.tasks.running.texts import prompt_distance, target_embedding
from styleclip.tasks.settings import Sampling, SettingsError
from styleclip.tasks.settings.edits import StepVariant
from styleclip_core.descent import Status
from styleclip_core.editing import EditedLatents
from styleclip_core.errors import StyleCLIPError
from styleclip_core.images import to_uint8
from styleclip_core.optimization import OptimizationState, optimize, published_embedding
from styleclip_core.tuned import AnyGenerator

STEP, VERSION = "optimize-latents", "1"
TRAJECTORY_SCHEMA = pa.schema([
    ("image_key", pa.string()), ("step", pa.int32()), ("clip", pa.float32()), ("l2", pa.float32()),
    ("identity", pa.float32()), ("loss", pa.float32()),
])  # fmt: skip
_FRAME_SIDE = 512


class RunawayError(StyleCLIPError):
    """An optimization ended in numbers that are not finite, or far from where it began."""


@dataclass(frozen=True, eq=False)
class Optimized:
    """What became of a batch of latents.

    Attributes:
        moved: Where the batch is now.
        latents: What was optimized: w_plus, or flat style codes, ``[B, ...]``.
        errors: By place in the batch, what ended in an error.
        trajectory: Loss terms, a row per image and step.
        frames: Images on the way, ``[B, H, V, 3]`` uint8 each, if frames are wanted.
    """

    moved: EditedLatents
    latents: Tensor
    errors: dict[int, StyleCLIPError]
    trajectory: list[Row]
    frames: list[np.ndarray]


@unit_of_work("prepare-optimization", "prepare-{variant.label}")
def prepare_optimization(run: Run, variant: StepVariant, sampling: Sampling) -> PreparedStep:
    """Fail at once if CLIP cannot tell the prompts apart, or the identity term lacks its network."""
    parameters = variant.optimization_parameters()
    weighted = parameters["mode"] == "edit" and parameters["identity_weight"] > 0
    if weighted and not run.models.identity:
        raise SettingsError(
            f"the edit towards {variant.target!r} weighs identity with {parameters['identity_weight']:g}, "
            "but there is no identity network; give --identity or set identity_weight to 0"
        )

    # a missing encoder would otherwise show when the optimization has ended
    if variant.frames:
        check_encoder()

    inputs = {"clip": run.hashes.clip, "generator": run.hashes.generator}
    if weighted:
        inputs["identity"] = run.hashes.identity

    # the channels of its prompt are named here and found later: a run that only looks finds none
    uri = content = ""
    if variant.guided:
        found = plan_channels(run, variant, plan_looking(run, sampling))
        uri, content = channels_uri(run, found), found.fingerprint
        inputs["channels"] = content

    recipe = Recipe(STEP, VERSION, parameters, inputs)
    distance = prompt_distance(run, variant)
    return PreparedStep(
        variant=variant, uri=uri, content=content, fingerprint=recipe.fingerprint, text_norm=distance
    )


def optimize_batch(
    run: Run, step: PreparedStep, generator: AnyGenerator, source: EditedLatents, image_keys: list[str]
) -> Optimized:
    """Optimize a batch of latents towards one prompt."""
    variant = step.variant
    if variant.optimization is None:
        raise SettingsError(f"the edit towards {variant.target!r} has no settings of an optimization")

    settings = variant.optimization.settings()
    text = target_embedding(run, variant.target, variant.templates)
    embed = published_embedding(run.clip) if variant.optimization.reference_compat else run.clip.embed_whole

    weighted = settings.mode == "edit" and settings.identity_weight > 0
    identity = run.identity.embed if run.identity and weighted else None

    neutral = target_embedding(run, variant.neutral, variant.templates) if settings.needs_neutral else None
    channels = read_channels(step.uri, step.content) if variant.guided else None

    trajectory: list[Row] = []
    frames: list[np.ndarray] = []
    # rounded up, so that there are at most as many frames as wanted
    every = -(-settings.steps // max(1, variant.frames))
    with torch.enable_grad():  # whoever edits by other methods needs no gradients, and has them off
        states = optimize(
            generator,
            embed,
            source.w_plus,
            text.expand(len(source.w_plus), -1),
            settings,
            embed_identity=identity,
            offset=source.offset,
            neutral=None if neutral is None else neutral.expand(len(source.w_plus), -1),
            scale=run.clip.logit_scale,
            channels=channels,
        )

        for state in states:
            trajectory += _terms(state, image_keys)
            if variant.frames and state.step % every == 0:
                frames.append(_frame(generator, state.moved))

    # state is the last one here; there is one, as a run has at least one step
    errors: dict[int, StyleCLIPError] = {
        place: RunawayError("the optimization diverged; lower learning_rate or raise l2_weight")
        for place, status in enumerate(state.status.tolist())
        if status == Status.DIVERGED
    }
    return Optimized(state.moved, state.latents, errors, trajectory, frames)


def _terms(state: OptimizationState, image_keys: list[str]) -> list[Row]:
    """Return the loss terms of a step, a row for each pair that still runs."""
    names = ("clip", "l2", "identity", "loss")
    # together, so that the device is waited for once; numbers of pairs are small, and exact as float64
    figures = [state.pairs, *(getattr(state, name) for name in names)]
    columns = torch.stack([each.double() for each in figures]).T.tolist()
    return [
        {"image_key": image_keys[int(pair)], "step": state.step, **dict(zip(names, values, strict=True))}
        for pair, *values in columns
    ]


@torch.no_grad()
def _frame(generator: AnyGenerator, moved: EditedLatents) -> np.ndarray:
    """Return the images of a batch for a video, at most 512 pixels wide and high."""
    image = generator.synthesize(moved.codes(generator))
    reduction = -(-max(image.shape[-2:]) // _FRAME_SIDE)
    return to_uint8(torch.nn.functional.avg_pool2d(image, reduction) if reduction > 1 else image)


def latents_table(image_keys: list[str], latents: Tensor, variant: StepVariant) -> pa.Table:
    """Return optimized latents as a table: a row per image, ``w_plus`` or flat style codes ``s``."""
    name = "w_plus" if variant.optimization_parameters()["space"] == "w_plus" else "s"
    flat = latents.flatten(1).cpu()
    width = pa.list_(pa.float32(), flat.shape[1])
    # sorted, as the bytes must not depend on which batch an image was in
    rows = sorted(zip(image_keys, flat.numpy(), strict=True), key=lambda row: row[0])

    return pa.table({
        "image_key": pa.array([key for key, _ in rows], pa.string()),
        name: pa.array([values for _, values in rows], width),
    })  # fmt: skip
