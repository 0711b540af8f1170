"""What an image may have beside its latent: a tuning of the generator, or a residual of its features.

One folder of latents has one kind of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from styleclip_core.errors import CheckpointError, LayoutMismatchError
from styleclip_core.features import FeatureGenerator, FeatureResidual
from styleclip_core.models.stylegan2 import Generator
from styleclip_core.per_image import AnyGenerator
from styleclip_core.tuned import TunedGenerator, Tuning

Own = Tuning | FeatureResidual


def with_tunings(generator: Generator, tunings: Sequence[Own | None], w_plus: Tensor) -> AnyGenerator:
    """Return the generator that draws image b with tuning or residual b, or the plain one if there are none.

    ``w_plus`` are the latents as they were inverted.
    """
    if any(isinstance(each, FeatureResidual) for each in tunings):
        residuals = [each if isinstance(each, FeatureResidual) else None for each in tunings]
        return FeatureGenerator(generator, residuals, w_plus)
    tuned = [each if isinstance(each, Tuning) else None for each in tunings]
    return TunedGenerator(generator, tuned) if any(tuned) else generator


def parse_own(content: bytes, generator: Generator, uri: str, kind: type[Own]) -> Own:
    """Return the tuning or residual that a file holds.

    Args:
        content: Of the file.
        generator: That it must be of.
        uri: Where it lies, for messages.
        kind: What it must be.

    Raises:
        CheckpointError: If it is damaged or something else.
        LayoutMismatchError: If it is of another generator.
    """
    try:
        return kind.from_bytes(content, generator)
    except (CheckpointError, LayoutMismatchError) as error:
        raise type(error)(f"{uri}: {error}") from error
