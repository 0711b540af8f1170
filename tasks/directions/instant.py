"""Text prompts -> style directions from gradients at sampled style codes, where there is no table."""

from __future__ import annotations

from torch import Tensor

from styleclip.tasks.artifacts import Recipe, is_complete
from styleclip.tasks.directions.sampling import SampledStyles, read_codes
from styleclip.tasks.directions.style_directions import (
    PreparedStep,
    direction_recipe,
    direction_uri,
    prepared,
    read_deviations,
    write_direction,
)
from styleclip.tasks.running.caching import unit_of_work
from styleclip.tasks.running.overlap import computing
from styleclip.tasks.running.run import Run
from styleclip.tasks.running.texts import text_vector
from styleclip.tasks.settings import Instant
from styleclip.tasks.settings.edits import StepVariant
from styleclip_core.editing import select_channels
from styleclip_core.instant import instant_relevance

STEP, VERSION = "instant-direction", "1"


def plan_instant(run: Run, variant: StepVariant, styles: SampledStyles, settings: Instant) -> Recipe:
    """Return what decides the style direction of one step without a table; nothing is computed."""
    step = {name: value for name, value in variant.parameters().items() if name != "alpha"}
    parameters = step | settings.model_dump()
    return direction_recipe(run, STEP, VERSION, parameters, {"styles": styles.fingerprint})


@unit_of_work("instant-direction", "instant-direction-{variant.label}")
def compute_instant_direction(
    run: Run, variant: StepVariant, styles: SampledStyles, settings: Instant
) -> PreparedStep:
    """Compute the style direction of one step without a relevance table, or find it done.

    Args:
        run: Networks and workspace.
        variant: The step; its beta or top_k choose channels as they do with a table.
        styles: Sampled style codes and their statistics, as ``styleclip.flows.steps.table.sample`` leaves
            them.
        settings: Codes and probes.

    Raises:
        ArtifactConflictError: If fewer codes are stored than ``settings.codes``.
        NoRelevantChannelError: If no channel reaches the variant's beta.
        PromptError: If CLIP cannot tell the prompts apart.
    """
    recipe = plan_instant(run, variant, styles, settings)
    uri = direction_uri(run, recipe)

    if not is_complete(uri):
        layout = run.generator.layout
        text = text_vector(run, variant)
        with computing(run.device):
            relevance = measure_instant(run, text, styles, settings)

        std = read_deviations(styles.statistics, layout)
        write_direction(run, recipe, variant, select_channels(layout, relevance, std, variant.selection()))
    return prepared(variant, uri)


def measure_instant(run: Run, text: Tensor, styles: SampledStyles, settings: Instant) -> Tensor:
    """Return the relevance of every channel for a text direction ``[D]``, from gradients, ``[N]``."""
    generator, clip = run.generator, run.clip
    return instant_relevance(
        generator,
        clip.embed_whole,
        read_codes(styles.codes, generator.layout, 0, settings.codes).to(run.device),
        text,
        read_deviations(styles.statistics, generator.layout),
        probes=min(settings.probes, clip.embedding_dim),
        seed=settings.seed,
    )
