"""Text prompts -> style directions from gradients at sampled style codes, where there is no table."""

from __future__ import annotations

from prefect import task
from torch import Tensor

import styleclip_core
from styleclip_core.editing import select_channels
from styleclip_core.instant import instant_relevance
from tasks import models
from tasks.artifacts import Provenance, fingerprint, is_complete
from tasks.caching import PER_RUN
from tasks.directions import (
    PreparedStep,
    direction_uri,
    prepared,
    read_deviations,
    text_vector,
    write_direction,
)
from tasks.edits import StepVariant
from tasks.identity import ModelHashes
from tasks.overlap import computing
from tasks.sampling import SampledStyles, read_codes
from tasks.settings import Instant, Models

STEP, VERSION = "instant-direction", "1"


@task(
    name="instant-direction",
    task_run_name="instant-direction-{variant.label}",
    cache_policy=PER_RUN,
    persist_result=True,
)
def compute_instant_direction(
    variant: StepVariant,
    styles: SampledStyles,
    settings: Instant,
    chosen: Models,
    hashes: ModelHashes,
    workspace: str,
    device: str,
) -> PreparedStep:
    """Compute the style direction of one step without a relevance table, or find it done.

    Args:
        variant: The step; its beta or top_k choose channels as they do with a table.
        styles: Sampled style codes and their statistics, as ``flows.steps.sample`` leaves them.
        settings: Codes and probes.
        chosen: The networks.
        hashes: Their content hashes.
        workspace: URI of the folder for artifacts.
        device: Where to compute.

    Raises:
        ArtifactConflictError: If fewer codes are stored than ``settings.codes``.
        NoRelevantChannelError: If no channel reaches the variant's beta.
        PromptError: If CLIP cannot tell the prompts apart.
    """
    step = {name: value for name, value in variant.parameters().items() if name != "alpha"}
    parameters = step | settings.model_dump()
    inputs = {"styles": styles.fingerprint, "clip": hashes.clip, "generator": hashes.generator}
    print_ = fingerprint(STEP, VERSION, parameters, inputs)
    uri = direction_uri(workspace, print_)
    if not is_complete(uri):
        generator = models.generator(chosen.generator, device)
        std = read_deviations(styles.statistics, generator.layout)
        text = text_vector(variant, chosen.clip, device)
        with computing(device):
            relevance = measure_instant(text, styles, settings, chosen, device)
        found = select_channels(generator.layout, relevance, std, variant.selection())
        made = Provenance(
            kind="style-direction", fingerprint=print_, step=STEP, version=VERSION, parameters=parameters,
            inputs=inputs, generator=hashes.generator, clip=hashes.clip,
            code_version=styleclip_core.__version__,
        )  # fmt: skip
        write_direction(uri, found, made, variant, chosen.clip, device)
    return prepared(variant, uri)


def measure_instant(
    text: Tensor, styles: SampledStyles, settings: Instant, chosen: Models, device: str
) -> Tensor:
    """Return the relevance of every channel for a text direction ``[D]``, from gradients, ``[N]``."""
    generator, clip = models.generator(chosen.generator, device), models.clip(chosen.clip, device)
    return instant_relevance(
        generator,
        clip.embed_whole,
        read_codes(styles.codes, generator.layout, 0, settings.codes).to(device),
        text,
        read_deviations(styles.statistics, generator.layout),
        probes=min(settings.probes, clip.embedding_dim),
        seed=settings.seed,
    )
