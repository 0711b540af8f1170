"""How a latent is optimized for a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Literal

from styleclip_core.bounds import Ge, Gt, Lt
from styleclip_core.options import NamedIfChanged, Says, check

Space = Literal["w_plus", "s", "relevant"]
Mode = Literal["edit", "free_generation"]
AT_ONCE = 8  # pairs; more fit a GPU, and gain next to nothing on a CPU
_FEW = 4  # pairs that cost less one by one than as a chunk of eight, half of which would be filling


@dataclass(frozen=True, slots=True)
class OptimizationSettings:
    """What is minimized, and how; the defaults are the published ones.

    The published code takes 300 steps, its notebook 40. With torch's epsilon of 1e-8, as published, elements
    with next to no gradient move as far as any other, along their rounding errors, which grow from step to
    step. A machine rounds differently for other sizes of a batch, and differences of 1e-7 grow to 1e-2
    within 40 steps. So networks are always given ``chunk`` pairs, and a chunk that lacks some is filled up
    with copies of its first: for one ``chunk``, a result is the same, bit for bit, whatever its batch. Two
    sizes are two settings, whose results differ by rounding. ``fitting_chunk`` chooses between two of them,
    by all pairs there are. Whoever divides these among several calls chooses once and says so in ``chunk``.
    """

    space: Annotated[Space, Says(
        "What moves: w_plus, style space without toRGB, or the relevant channels of it, in deviations"
    )] = "w_plus"  # fmt: skip
    mode: Annotated[Mode, Says("free_generation has the CLIP term alone")] = "edit"
    steps: Annotated[int, Ge(1), Says("Evaluations of the loss, at most")] = 300
    learning_rate: Annotated[
        float, Gt(0), Says("Adam's rate at its peak; it rises over 5 % of the steps and falls over 25 %")
    ] = 0.1
    epsilon: Annotated[float, Gt(0), Says("Adam's; larger ones hold elements without a gradient still")] = (
        1e-8
    )
    l2_weight: Annotated[float, Ge(0), Says(
        "Pull to the source, per squared unit, summed; relevant channels are pulled to where they begin"
    )] = 0.008  # fmt: skip
    identity_weight: Annotated[
        float, Ge(0), Says("Weight of the identity term; 0.005 in the published notebook")
    ] = 0.0
    effect: Annotated[
        float | None, Gt(0), Lt(1), NamedIfChanged(),
        Says("CLIP's probability of the target against the neutral prompt that is enough; none for the most"),
    ] = None  # fmt: skip
    patience: Annotated[
        int | None, Ge(1),
        Says("Steps without a gain of 0.1 % before a pair ends with its best code; none for all steps"),
    ] = None  # fmt: skip
    chunk: Annotated[
        int | None, Ge(1),
        Says("Pairs drawn at once, always exactly so many; none for 1 where an edit has 4 images or fewer, 8 "
             "where it has more"),
    ] = None  # fmt: skip
    max_move: Annotated[
        float, Gt(0), Says("Root mean square distance from its source at which a pair has run away and ends")
    ] = 20.0

    def __post_init__(self) -> None:
        check(self)
        if self.space == "relevant" and self.effect is None:
            raise ValueError("relevant channels begin where an effect is reached; give effect, e.g. 0.75")

    @property
    def needs_neutral(self) -> bool:
        """Return whether a neutral prompt decides anything."""
        return self.effect is not None


def fitting_chunk(pairs: int) -> int:
    """Return the size of a chunk for so many pairs, of all calls together: one by one if they are few."""
    return 1 if pairs <= _FEW else AT_ONCE


PRESETS: Mapping[str, OptimizationSettings] = MappingProxyType({
    "published": OptimizationSettings(),
    # for small generators and small CLIPs, which the published rate takes where only CLIP sees the prompt
    "gentle": OptimizationSettings(space="s", steps=60, learning_rate=0.02, l2_weight=0.1),
    # keeps the person: few steps in few channels, from where a matched edit has brought them
    "faithful": OptimizationSettings(
        space="relevant", steps=15, learning_rate=0.05, l2_weight=0.2, identity_weight=3.0,
        effect=0.75,
    ),
})  # fmt: skip
