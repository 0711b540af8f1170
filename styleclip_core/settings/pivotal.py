"""How the generator is tuned to a photograph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from styleclip_core.bounds import Ge, Gt, Le
from styleclip_core.options import NamedIfChanged, Says, check

MAX_RANK = 64


@dataclass(frozen=True, slots=True)
class PivotalSettings:
    """How long and how hard to tune."""

    # the first steps at the full rate may make a good reconstruction worse for a while: hence the patience
    steps: Annotated[int, Ge(0), Says("Gradient steps at most; 0 leaves the generator as it is")] = 150
    learning_rate: Annotated[
        float, Gt(0), Says("Adam's rate at its peak, in units of a tuning's numbers")
    ] = 0.1
    rank: Annotated[
        int, Ge(1), Le(MAX_RANK), Says("Outer products per layer; KB per image are nearly proportional")
    ] = 3
    perceptual_weight: Annotated[
        float, Ge(0), Says("Weight of the perceptual term, where there is a network for it"), NamedIfChanged()
    ] = 0.1
    patience: Annotated[int, Ge(1), Says("Steps without a gain of 0.1 % before an image stops")] = 60

    # without it, as in the published code, a step takes half the time, and edits move less
    locality_weight: Annotated[
        float,
        Ge(0),
        Says("Weight of what holds the generator still away from the latent; 0 for none"),
    ] = 0.1
    locality_distance: Annotated[
        float, Gt(0), Says("How far away that is, in mean distances of a random w from the average w")
    ] = 0.5
    locality_codes: Annotated[int, Ge(1), Says("Random codes per image and step")] = 1
    seed: Annotated[int, Ge(0), Says("Seed of the first numbers and of the random codes")] = 0
    chunk: Annotated[
        int,
        Ge(1),
        Says("Images drawn at once, always exactly so many: one image costs as much, unless this is 1"),
        NamedIfChanged(),
    ] = 8

    def __post_init__(self) -> None:
        check(self)
