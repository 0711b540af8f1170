"""How a latent mapper is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Literal

from styleclip_core.bounds import Ge, Gt, Le, Lt
from styleclip_core.options import NamedIfChanged, Says, check

Kind = Literal["levels", "single", "style", "style-full", "style-relevant"]
Level = Literal["coarse", "medium", "fine"]
LEVELS: tuple[Level, ...] = ("coarse", "medium", "fine")
PUBLISHED_STRENGTH = 0.1  # what the published code multiplies a mapper's output by


@dataclass(frozen=True, slots=True)
class MapperTrainingSettings:
    """What is trained, and how; weights, rate, batch and steps are the published ones.

    Whoever makes a training gives it the image embedding that ``reference_compat`` asks for.
    """

    kind: Annotated[
        Kind,
        Says("Networks: one per level of W+, one for all rows, or one per style layer, "
             "of all channels or of relevant ones"),
    ] = "levels"  # fmt: skip
    # the published code leaves out "fine" for prompts that should keep colours
    levels: Annotated[tuple[Level, ...], Says("For levels: those that move, of coarse, medium, fine")] = (
        LEVELS
    )
    steps: Annotated[int, Ge(1), Says("Optimizer steps, at most")] = 50_000
    batch_size: Annotated[int, Ge(1), Says("Codes per step")] = 2
    # weights are stored a hundredfold
    learning_rate: Annotated[float, Gt(0), Says("Optimizer's rate; the effective one is a hundredth")] = 0.5
    optimizer: Annotated[
        Literal["radam", "ranger"],
        Says("ranger, the published one, adds Lookahead and centred gradients to radam"),
    ] = "radam"
    reference_compat: Annotated[
        bool,
        Says("Show CLIP what the published losses do: box-filtered pixels, not normalized"),
    ] = False
    decay: Annotated[
        float,
        Ge(0),
        Le(1),
        Says("Fraction of the steps over which the rate falls to 0 along a cosine; 0 for none"),
    ] = 0.0
    strength: Annotated[float, Gt(0), Says("What the mapper's output is multiplied by"), NamedIfChanged()] = (
        PUBLISHED_STRENGTH
    )
    clip_weight: Annotated[float, Ge(0), Says("Weight of the CLIP term")] = 1.0
    identity_weight: Annotated[
        float, Ge(0), Says("Weight of the identity term; 0 needs no identity network")
    ] = 0.1
    l2_weight: Annotated[float, Ge(0), Says(
        "Weight of the mean squared move; for style-relevant of what the networks add, in deviations, summed "
        "over channels"
    )] = 0.8  # fmt: skip
    effect: Annotated[
        float | None, Gt(0), Lt(1), NamedIfChanged(),
        Says("CLIP's probability of the target against the neutral prompt that is enough; none for the most"),
    ] = None  # fmt: skip
    validate_every: Annotated[int, Ge(1), Says("Steps between validations, which also store all")] = 2000
    # a gain is more than ``decisions.ALIKE`` of the best loss, in the choice of the best weights too
    patience: Annotated[
        int | None, Ge(1), Says("Validations without a gain before it ends; none for never")
    ] = None
    seed: Annotated[int, Ge(0), Says("Seed of first weights, order and sampled codes")] = 0
    # of the networks under the loss; the mapper itself and the losses are float32
    precision: Annotated[Literal["float32", "bfloat16"], Says("bfloat16 for mixed precision on a GPU")] = (
        "float32"
    )

    def __post_init__(self) -> None:
        check(self)
        if self.kind == "levels" and (not self.levels or not set(self.levels) <= set(LEVELS)):
            raise ValueError(f"levels must be some of {', '.join(LEVELS)}; got {self.levels}")
        if self.kind == "style-relevant" and self.effect is None:
            raise ValueError("relevant channels begin where an effect is reached; give effect, e.g. 0.75")

    @property
    def needs_neutral(self) -> bool:
        """Return whether a neutral prompt decides anything."""
        return self.effect is not None


PRESETS: Mapping[str, MapperTrainingSettings] = MappingProxyType({
    "published": MapperTrainingSettings(optimizer="ranger", reference_compat=True),
    # for small generators and small CLIPs: minutes instead of hours, and no identity network needed. A
    # mapper begins with a random step and weights stored a hundredfold, which takes a high rate to leave
    # in few steps; in style space that first step changes less that the prompt does not name
    "small": MapperTrainingSettings(
        kind="style", steps=240, batch_size=8, learning_rate=30.0, decay=0.5, identity_weight=0.0,
        validate_every=60,
    ),
    # keeps the person: a network adds to a matched edit, in few channels, what each image needs
    "faithful": MapperTrainingSettings(
        kind="style-relevant", steps=60, batch_size=8, learning_rate=1.0, decay=0.5, identity_weight=3.0,
        l2_weight=0.2, effect=0.75, validate_every=20,
    ),
})  # fmt: skip
