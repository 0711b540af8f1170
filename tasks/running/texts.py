"""Prompts as CLIP sees them, embedded once per run and process; kept on the CPU, returned on its device.

Shapes: D width of CLIP's embedding, A attributes.
"""

from __future__ import annotations

from functools import lru_cache

from torch import Tensor

from styleclip.tasks.running.run import Run
from styleclip.tasks.settings.edits import StepVariant
from styleclip_core.prompts import TextDirection, direction_between, embed_prompt

_PROMPTS = 2**13  # some KB each


def prompt_distance(run: Run, variant: StepVariant) -> float:
    """Return how far CLIP holds the two prompts of an edit apart.

    Raises:
        PromptError: If it cannot tell them apart.
    """
    return text_direction(run, variant).norm


def text_vector(run: Run, variant: StepVariant) -> Tensor:
    """Return the unit text direction of an edit, ``[D]``.

    Raises:
        PromptError: If CLIP cannot tell its prompts apart.
    """
    return text_direction(run, variant).direction.to(run.device)


def text_direction(run: Run, variant: StepVariant) -> TextDirection:
    """Return the text direction of an edit with what it was made of, on the CPU.

    Raises:
        PromptError: If CLIP cannot tell its prompts apart.
    """
    return _direction(run, variant.neutral, variant.target, variant.templates)


def target_embedding(run: Run, target: str, templates: str) -> Tensor:
    """Return the unit embedding of a prompt, ``[D]``.

    Raises:
        PromptError: If it is empty or too long.
    """
    return _embedding(run, target, templates).to(run.device)


# A batch may have a prompt for every image, and most share the neutral one. Each is embedded by itself: in a
# batch with others its last digits would hang on these.
@lru_cache(maxsize=_PROMPTS)
def _direction(run: Run, neutral: str, target: str, templates: str) -> TextDirection:
    before, after = (_embedding(run, each, templates) for each in (neutral, target))
    return direction_between(before, after, neutral=neutral, target=target, templates=templates)


@lru_cache(maxsize=2 * _PROMPTS)
def _embedding(run: Run, target: str, templates: str) -> Tensor:
    return embed_prompt(run.clip, target, templates).cpu()
