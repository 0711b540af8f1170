"""Which networks a run uses, by the hash of their content."""

from __future__ import annotations

from prefect import task
from pydantic import BaseModel, ConfigDict

from tasks import models
from tasks.caching import PER_RUN
from tasks.settings import Models


class ModelHashes(BaseModel):
    """Content hashes of the networks; one that is not used has none."""

    model_config = ConfigDict(frozen=True)

    generator: str
    clip: str = ""
    encoder: str = ""
    identity: str = ""
    perceptual: str = ""


@task(name="identify-models", cache_policy=PER_RUN, persist_result=True)
def identify_models(chosen: Models, device: str, *, with_clip: bool) -> ModelHashes:
    """Load the networks once and return the hashes that artifacts are named by."""
    encoder = models.encoder(chosen.encoder, device).fingerprint if chosen.encoder else ""
    return ModelHashes(
        generator=models.generator(chosen.generator, device).fingerprint,
        clip=models.clip(chosen.clip, device).fingerprint if with_clip else "",
        encoder=encoder,
        identity=models.identity(chosen.identity, device).fingerprint if chosen.identity else "",
        perceptual=models.perceptual(chosen.perceptual, device).fingerprint if chosen.perceptual else "",
    )
