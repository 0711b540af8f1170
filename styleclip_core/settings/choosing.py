"""How alpha and beta are chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from styleclip_core.bounds import Ge, Gt, Lt
from styleclip_core.options import NamedIfChanged, Says, check


@dataclass(frozen=True, slots=True)
class ChoosingSettings:
    """What is wanted, and how thoroughly it is sought.

    The published notebook's sliders end at an alpha of 10; far beyond it the generator draws what it has
    never learnt.
    """

    effect: Annotated[
        float, Gt(0), Lt(1),
        Says("Wanted effect: CLIP's mean probability of the target against the neutral prompt"),
    ] = 0.7  # fmt: skip
    thresholds: Annotated[int, Ge(1), Says("Betas tried at first; two more follow around the best")] = 6
    strengths: Annotated[int, Ge(2), Says("Alphas tried for a beta, at most")] = 6
    first: Annotated[float, Gt(0), Says("Alpha to begin with"), NamedIfChanged()] = 2.0
    strongest: Annotated[
        float, Gt(0), Says("Largest alpha, in deviations of the most relevant channel"), NamedIfChanged()
    ] = 10.0

    def __post_init__(self) -> None:
        check(self)
        if self.first > self.strongest:
            raise ValueError(f"first must be at most strongest, got {self.first} and {self.strongest}")
