"""Which channels take part in an edit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from styleclip_core.errors import LayoutMismatchError

Weights = Literal["relevance", "least-squares"]
END_OF_WAY = 1.5  # alpha of a matched way; where a channel loses most of its spread, more turns it round
FURTHEST = 2.5  # the same, where derivatives show the rest


@dataclass(frozen=True, slots=True)
class ChannelSelection:
    """Which channels take part in an edit, and how much of each.

    Attributes:
        beta: Threshold on |relevance|, 0..1; lower values edit more channels. A channel whose relevance
            lies within rounding of it may take part on one processor alone. None to use ``top_k``.
        top_k: Number of most relevant channels, ranked as in ``decisions``. None to use ``beta``.
        include: Patterns of layer names that may be edited, e.g. ``("b4.*", "b8.*")``; empty for all.
        exclude: Patterns of layer names that stay, e.g. ``("b64.*",)`` to leave fine colours alone.
        weights: ``"relevance"`` as in the paper, or ``"least-squares"``.
    """

    beta: float | None = None
    top_k: int | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    weights: Weights = "relevance"

    def __post_init__(self) -> None:
        if (self.beta is None) == (self.top_k is None):
            raise ValueError(f"give beta or top_k, one of them; got beta={self.beta}, top_k={self.top_k}")

        if self.beta is not None and not 0 <= self.beta <= 1:
            raise ValueError(f"beta is a threshold on |relevance| from 0 to 1, got {self.beta}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is a number of channels from 1, got {self.top_k}")


def layer_names() -> list[str]:
    """Return the names that editable layers have, of any generator up to 4096 pixels."""
    sides = [2**k for k in range(2, 13)]
    return [f"b{side}.{layer}" for side in sides for layer in ("conv0", "conv1")][1:]  # b4 has no conv0


def allowed_layers(names: Sequence[str], include: Sequence[str], exclude: Sequence[str]) -> list[str]:
    """Return which of some layers the patterns allow.

    Raises:
        LayoutMismatchError: If a pattern matches none of them, or together they leave none.
    """
    # checked before use: a misspelt mask would leave all layers in, or none
    for pattern in (*include, *exclude):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise LayoutMismatchError(
                f"layer pattern {pattern!r} matches no editable layer; there are {', '.join(names)}"
            )

    def matches(name: str, patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    found = [name for name in names if (not include or matches(name, include)) and not matches(name, exclude)]
    if not found:
        kept = f"include {', '.join(include)}" if include else "all layers"
        raise LayoutMismatchError(
            f"{kept} without exclude {', '.join(exclude)} leaves no layer to edit; exclude less"
        )
    return found
