"""Prompts -> directions in CLIP space, averaged over a set of templates.

Shapes: D width of the CLIP embedding.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from styleclip_core.errors import PromptError
from styleclip_core.models.clip import count_tokens
from styleclip_core.templates import TEMPLATE_SETS

_INDISTINGUISHABLE = 1e-4
_PIECES_A_WORD, _PIECES_A_LETTER = 1.75, 0.3


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


def foreign_language(prompt: str) -> str:
    """Return why a prompt seems to be in another language than English, which OpenAI's CLIP was trained on.

    Two signs, both cheap: letters that are mostly of another script; and, in two words or more, many pieces.
    CLIP's vocabulary has English words whole and cuts others up: of 40 prompts in English, with names and
    borrowed words, "crème brûlée" and "naïve art" alone had 1.75 pieces for a word and 0.3 for a letter, as
    most in German, French and Italian have. Single words, and languages as near to English as Spanish, pass.

    Returns:
        The sign, or nothing where there is none. It is a sign and no proof.
    """
    words = re.findall(r"[^\W\d_]+", prompt)
    letters = sum(map(len, words))
    if not letters:
        return ""
    if 2 * sum(not letter.isascii() for word in words for letter in word) > letters:
        return "most of its letters are of another script"

    pieces = int(count_tokens([prompt]).item())
    if len(words) > 1 and pieces >= _PIECES_A_WORD * len(words) and pieces >= _PIECES_A_LETTER * letters:
        return f"CLIP reads its {len(words)} words as {pieces} pieces"
    return ""


def language_warnings(prompts: Iterable[str]) -> list[str]:
    """Return a line for every prompt that seems to be in another language than English, each once."""
    return [
        f"{prompt!r} seems to be in another language than English, which OpenAI's CLIP was trained on "
        f"({sign}): it may do little, or something else; say it in English"
        for prompt in dict.fromkeys(prompts)
        if (sign := foreign_language(prompt))
    ]


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
    embedded = [embed_prompt(clip, each, templates) for each in (neutral, target)]
    return direction_between(*embedded, neutral=neutral, target=target, templates=templates)


def direction_between(
    before: Tensor, after: Tensor, *, neutral: str, target: str, templates: str
) -> TextDirection:
    """Return the unit direction from a neutral to a target prompt that are embedded already.

    Args:
        before: Unit embedding of the neutral prompt, ``[D]``.
        after: Unit embedding of the target prompt, ``[D]``.
        neutral: The neutral prompt.
        target: The target prompt.
        templates: Name of the template set that both were embedded in.

    Raises:
        PromptError: If CLIP cannot tell the two prompts apart.
    """
    difference = after - before
    norm = difference.norm().item()

    if norm < _INDISTINGUISHABLE:
        raise PromptError(
            f"CLIP cannot tell {target!r} from {neutral!r} (distance {norm:.1e}); choose prompts that differ"
        )
    return TextDirection(neutral, target, templates, difference / norm, norm)
