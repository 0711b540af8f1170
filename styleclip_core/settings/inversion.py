"""How a latent is refined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from styleclip_core.bounds import Ge, Gt
from styleclip_core.options import NamedIfChanged, Says, check


@dataclass(frozen=True, slots=True)
class RefinementSettings:
    """How long and how hard to refine."""

    steps: Annotated[int, Ge(0), Says("Refinement steps after the encoder; 0 for the encoder alone")] = 100
    learning_rate: Annotated[float, Gt(0), Says("Adam's rate at its peak")] = 0.05
    latent_weight: Annotated[float, Ge(0), Says("Pull towards the encoder's code, per squared unit of w")] = (
        0.0005
    )
    perceptual_weight: Annotated[
        float, Ge(0), Says("Weight of the perceptual term, where there is a network for it"), NamedIfChanged()
    ] = 0.1
    patience: Annotated[int, Ge(1), Says("Steps without a gain of 0.1 % before an image stops")] = 20
    chunk: Annotated[
        int, Ge(1), NamedIfChanged(),
        Says("Images drawn at once, always exactly so many: one image costs as much, unless this is 1"),
    ] = 4  # fmt: skip

    def __post_init__(self) -> None:
        check(self)
