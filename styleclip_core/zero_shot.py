"""CLIP as the classifier it is: what an image shows, by prompts alone.

An attribute is a pair of prompts; its logit is the difference of the two cosines, times CLIP's own
temperature, and the logistic function of that is the softmax over the pair (Radford et al. 2021, section
3.1.2). Labels that exclude each other share one softmax. Every prompt is averaged over templates first,
see ``styleclip_core.prompts``.

How far an edit moves an attribute is measured in standard deviations of its logit over unedited images,
as attribute dependency is (Wu et al. 2021, StyleSpace, section 4): logits of different attributes have
different spreads, and probabilities saturate.

Shapes: B images, A attributes, P labels, D width of the CLIP embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from styleclip_core.decisions import ranked

NEAR = 0.7
"""Cosine of text directions from which two prompt pairs are taken to name one attribute. In the embedded
world synonyms reach 0.998 and more, and different attributes 0.61 at most; the middle leaves room for
CLIPs whose synonyms lie further apart."""


@dataclass(frozen=True, slots=True)
class Attribute:
    """Something that is true or false of an image, as two prompts.

    Attributes:
        name: Short name, e.g. ``"glasses"``.
        positive: What is said where it holds, e.g. ``"face with glasses"``.
        negative: What is said where it does not, e.g. ``"face"``.
        group: Attributes that change with each other share a group, e.g. ``"hair colour"``; empty for none.
    """

    name: str
    positive: str
    negative: str
    group: str = ""


@dataclass(frozen=True, slots=True)
class Match:
    """The attribute that an edit is about.

    Attributes:
        index: Its place.
        sign: 1 if the edit makes it hold, -1 if the edit takes it away.
        cosine: Of the two text directions.
    """

    index: int
    sign: int
    cosine: float


def attribute_logits(images: Tensor, positive: Tensor, negative: Tensor, scale: float) -> Tensor:
    """Return how much more CLIP agrees with the positive prompts than with the negative ones, ``[B, A]``.

    Args:
        images: Unit image embeddings, ``[B, D]``.
        positive: Unit embeddings of the positive prompts, ``[A, D]``.
        negative: Of the negative ones, ``[A, D]``.
        scale: CLIP's temperature, ``ClipModel.logit_scale``.
    """
    return scale * (images @ (positive - negative).T)


def label_probabilities(cosines: Tensor, groups: Sequence[str], scale: float) -> Tensor:
    """Return the softmax over the labels of each group, ``[B, P]`` in 0..1; each group adds up to 1.

    Args:
        cosines: Of images to labels, ``[B, P]``.
        groups: Group of every label; labels of one group exclude each other.
        scale: CLIP's temperature.
    """
    kinds = dict.fromkeys(groups)
    if len(kinds) == 1:
        return (scale * cosines).softmax(dim=1)

    found = torch.zeros_like(cosines)
    for group in kinds:
        mine = torch.tensor(
            [place for place, each in enumerate(groups) if each == group], device=found.device
        )
        found[:, mine] = (scale * cosines[:, mine]).softmax(dim=1)

    return found


def match_attribute(direction: Tensor, positive: Tensor, negative: Tensor) -> Match | None:
    """Return the attribute whose text direction lies nearest to an edit's; None if none is near.

    Args:
        direction: Text direction of the edit, ``[D]``.
        positive: Unit embeddings of the positive prompts, ``[A, D]``.
        negative: Of the negative ones, ``[A, D]``.
    """
    if not len(positive):
        return None

    # the sign is an answer too: "without glasses" is the attribute "glasses", taken away
    cosines = F.normalize(positive - negative, dim=1) @ F.normalize(direction, dim=0)
    index = int(ranked(cosines.abs())[0])
    cosine = float(cosines[index])

    return Match(index, 1 if cosine > 0 else -1, cosine) if abs(cosine) >= NEAR else None


def standardized_change(before: Tensor, after: Tensor, deviation: Tensor) -> Tensor:
    """Return the change of logits ``[B, A]`` in standard deviations ``[A]``; NaN where one is 0 or NaN."""
    usable = deviation > 0
    return torch.where(
        usable, (after - before) / deviation.where(usable, torch.ones_like(deviation)), torch.nan
    )


def unrelated(groups: Sequence[str], target: int | None) -> list[int]:
    """Return the places of the attributes that an edit should leave alone.

    Args:
        groups: Group of every attribute, empty for none.
        target: Place of the attribute that the edit is about; None for none of them.
    """
    if target is None:
        return list(range(len(groups)))

    # hair that turns blond stops being black: attributes of one group cannot stay as they are
    shared = groups[target]
    return [place for place, each in enumerate(groups) if place != target and not (shared and each == shared)]
