"""How the relevance of style channels is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from styleclip_core.bounds import Ge, Gt, MultipleOf
from styleclip_core.options import ChangesNoResult, NamedIfChanged, NamedWith, Says, check

Centre = Literal["sample", "mean"]
Precision = Literal["float32", "bfloat16", "float16"]
Compile = Literal["auto", "on", "off"]


@dataclass(frozen=True, slots=True)
class RelevanceSettings:
    """How a channel is moved: as in the paper; the published script's centre is the mean."""

    strength: Annotated[float, Gt(0), Says("Size of the move in standard deviations of the channel")] = 5.0
    centre: Annotated[Centre, Says("Move around the code's own value (sample) or the mean")] = "sample"
    # statistics are float64 always; with float32, a GPU's convolutions use TF32 where torch allows it
    precision: Annotated[
        Precision, Says("Number format of the layers above the moved one; CLIP keeps its own")
    ] = "float32"
    batch_size: Annotated[
        int, Ge(0), MultipleOf(2),
        Says(
            "Images synthesized at once, at most; fewer if memory is short; 0 for what is fastest, 32 on a "
            "CPU and up to 256 on a GPU"
        ),
        ChangesNoResult("moves do not see each other; only rounding may differ, with a tolerance no bit"),
    ] = 0  # fmt: skip
    compile: Annotated[
        Compile,
        Says(
            "Compile the generator's layers: auto does on a GPU where Triton is there; where that fails, "
            "they run as they are"
        ),
        ChangesNoResult("the same function, which only rounds otherwise, as another device does"),
    ] = "auto"  # fmt: skip
    eight_bit: Annotated[bool, Says("Bring images to 8 bits before CLIP, as the published code does")] = False
    eight_bit_by: Annotated[
        Literal["round", "truncate"],
        Says("How: the published TensorFlow script rounds, the PyTorch one truncates"),
        NamedIfChanged(), NamedWith("eight_bit"),
    ] = "round"  # fmt: skip
    tolerance: Annotated[
        float, Ge(0),
        Says(
            "Fast mode: a channel gets no more codes once its direction has a standard error of at most this "
            "angle, in radians; 0 for all codes"
        ),
    ] = 0.0  # fmt: skip
    minimum: Annotated[
        int, Ge(2), Says("Style codes of a channel before that is first decided"), NamedWith("tolerance")
    ] = 8

    def __post_init__(self) -> None:
        check(self)
