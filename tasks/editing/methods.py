"""The three methods behind one function: latents and a prepared step in, moved latents out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from pydantic import BaseModel, ConfigDict

from styleclip.tasks.artifacts import fingerprint
from styleclip.tasks.directions.style_directions import PreparedStep, alpha_unit, read_direction
from styleclip.tasks.editing.mappers import STRENGTH_UNIT, prepared_mapper
from styleclip.tasks.editing.optimization import Optimized, optimize_batch
from styleclip.tasks.running.run import Run
from styleclip.tasks.settings.edits import EditVariant, StepVariant
from styleclip_core.editing import EditedLatents
from styleclip_core.errors import StyleCLIPError
from styleclip_core.mapper_training import apply_mapper
from styleclip_core.tuned import AnyGenerator


class PreparedEdit(BaseModel):
    """An edit and what its steps need."""

    model_config = ConfigDict(frozen=True)

    variant: EditVariant
    steps: list[PreparedStep]

    @property
    def fingerprint(self) -> str:
        """Return the name of what decides the edit, beside the latents and the settings."""
        inputs = {str(number): step.fingerprint for number, step in enumerate(self.steps)}
        return inputs["0"] if len(inputs) == 1 else fingerprint("edit-sequence", "1", {}, inputs)


@dataclass(frozen=True)
class Applied:
    """What a step made of a batch.

    Attributes:
        latents: Moved latents.
        errors: Error of each image whose latents are of no use, by its place in the batch.
        optimized: Latents and trajectory of an optimization.
    """

    latents: EditedLatents
    errors: dict[int, StyleCLIPError] = field(default_factory=dict)
    optimized: Optimized | None = None


def apply_step(
    run: Run,
    steps: Sequence[PreparedStep],
    source: EditedLatents,
    image_keys: list[str],
    generator: AnyGenerator,
) -> Applied:
    """Apply one step to each image of a batch of latents.

    Args:
        run: Networks and places.
        steps: Of each image its step. Several are style directions all.
        source: The latents.
        image_keys: Of the images.
        generator: Draws them, and may be tuned to each.
    """
    step, variant = steps[0], steps[0].variant
    if variant.method == "optimization":
        optimized = optimize_batch(run, step, generator, source, image_keys)
        return Applied(optimized.moved, optimized.errors, optimized)

    if variant.method == "mapper":
        network = prepared_mapper(run, step)
        return Applied(apply_mapper(network, generator, source, variant.strength or 0.0))

    distinct = {(each.uri, each.variant.alpha): each for each in steps}
    moved = {key: _moved(run, each, source, generator) for key, each in distinct.items()}
    first, *others = moved.values()
    if not others:
        return Applied(source.add(first))

    # an edit by columns: each image has a direction of its own, and they are drawn together all the same
    whole = {key: each.expand(len(steps), -1) for key, each in moved.items()}
    mine = [whole[each.uri, each.variant.alpha][place] for place, each in enumerate(steps)]
    return Applied(source.add(torch.stack(mine)))


def _moved(run: Run, step: PreparedStep, source: EditedLatents, generator: AnyGenerator) -> torch.Tensor:
    """Return what a style direction adds to flat style codes: ``[M]`` for all images, or ``[B, M]``."""
    direction = read_direction(step.uri, step.fingerprint)

    # most directions are one step for all images, and need not know where these are
    with torch.no_grad():
        codes = None if direction.pull is None else source.codes(generator)
        moved = direction.change(step.variant.alpha or 0.0, codes).to(run.device)

    layout = generator.layout
    # a direction is of the editable channels; the others, toRGB's, stay as they are
    flat = torch.zeros(*moved.shape[:-1], layout.num_channels, device=run.device)
    flat[..., layout.editable_index.to(run.device)] = moved
    return flat


def units(variant: StepVariant) -> dict[str, str]:
    """Return the unit of a step's strength."""
    if variant.method == "global":
        return {"alpha_unit": alpha_unit(variant)}
    return {"strength_unit": STRENGTH_UNIT} if variant.method == "mapper" else {}
