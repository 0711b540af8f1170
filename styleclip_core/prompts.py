"""Prompts -> directions in CLIP space, averaged over a set of templates.

Shapes: D width of the CLIP embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from styleclip_core.errors import PromptError
from styleclip_core.templates import TEMPLATE_SETS

_INDISTINGUISHABLE = 1e-4


class TextEncoder(Protocol):
    """What prompts need of a CLIP."""

    def embed_text(self, texts: list[str]) -> Tensor:
        """Return unit rows ``[len(texts), D]``."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class TextDirection:
    """Where CLIP's text space leads from the neutral to the target prompt.

    Attributes:
        neutral: What the target is compared with.
        target: What the image should become.
        templates: Name of the template set.
        direction: Unit vector, ``[D]``.
        norm: Length of the raw difference; small where CLIP can hardly tell the prompts apart.
    """

    neutral: str
    target: str
    templates: str
    direction: Tensor
    norm: float


def embed_prompt(clip: TextEncoder, prompt: str, templates: str = "styleclip-79") -> Tensor:
    """Embed a prompt in every template, average, and normalize again; ``[D]``.

    Raises:
        PromptError: If the prompt is empty, or too long for CLIP.
        ValueError: If there is no such template set.
    """
    if not prompt.strip():
        raise PromptError("a prompt is empty; say what the image shows, e.g. 'face'")
    if templates not in TEMPLATE_SETS:
        raise ValueError(f"unknown template set {templates!r}; there are {', '.join(TEMPLATE_SETS)}")

    # averaged as unit vectors, then made one again: as CLIP's own prompt ensembles
    sentences = [template.replace("{}", prompt) for template in TEMPLATE_SETS[templates]]
    return F.normalize(clip.embed_text(sentences).mean(dim=0), dim=0)


def text_direction(
    clip: TextEncoder, *, neutral: str, target: str, templates: str = "styleclip-79"
) -> TextDirection:
    """Return the unit direction from the neutral to the target prompt (StyleCLIP, section 6.2).

    Raises:
        PromptError: If CLIP cannot tell the two prompts apart.
        ValueError: If there is no such template set.
    """
    difference = embed_prompt(clip, target, templates) - embed_prompt(clip, neutral, templates)
    norm = difference.norm().item()

    if norm < _INDISTINGUISHABLE:
        raise PromptError(
            f"CLIP cannot tell {target!r} from {neutral!r} (distance {norm:.1e}); choose prompts that differ"
        )
    return TextDirection(neutral, target, templates, difference / norm, norm)
