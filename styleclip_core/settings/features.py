"""How the residual of a photograph's features is found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from styleclip_core.bounds import Ge, Le
from styleclip_core.options import Says, check
from styleclip_core.settings.pivotal import MAX_RANK


@dataclass(frozen=True, slots=True)
class FeatureSettings:
    """Where in the synthesis, how long, and how much of it is kept."""

    # on portraits that judge nothing, 20 steps and rank 32 gain 0.3 dB of an edit for twice the time and size
    steps: Annotated[int, Ge(0), Says("Conjugate-gradient steps; 0 leaves the features as they are")] = 10
    resolution: Annotated[
        int, Ge(4), Says("Largest side of the features, in pixels; it is below the image's own in any case")
    ] = 64  # fmt: skip
    rank: Annotated[
        int, Ge(1), Le(MAX_RANK),
        Says("Outer products of channels and places that are kept; KB per image are proportional"),
    ] = 16  # fmt: skip
    chunk: Annotated[
        int, Ge(1),
        Says("Images drawn at once, always exactly so many: one image costs as much, unless this is 1"),
    ] = 8  # fmt: skip

    def __post_init__(self) -> None:
        check(self)
