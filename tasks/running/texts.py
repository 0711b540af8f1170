"""Prompts as CLIP sees them, embedded once per run and process; kept on the CPU, returned on its device.

Shapes: D width of CLIP's embedding, A attributes.
"""

from __future__ import annotations

from functools import lru_cache

from torch import Tensor

from styleclip.tasks.running.run import Run
from styleclip.tasks.settings.edits import StepVariant
from styleclip_core.prompts import TextDirection, embed_prompt, text_direction


def prompt_distance(run: Run, variant: StepVariant) -> float:
    """Return how far CLIP holds the two prompts of an edit apart.

    Raises:
        PromptError: If it cannot tell them apart.
    """
    return _direction(run, variant.neutral, variant.target, variant.templates).norm


def text_vector(run: Run, variant: StepVariant) -> Tensor:
    """Return the unit text direction of an edit, ``[D]``.

    Raises:
        PromptError: If CLIP cannot tell its prompts apart.
    """
    return _direction(run, variant.neutral, variant.target, variant.templates).direction.to(run.device)


def target_embedding(run: Run, target: str, templates: str) -> Tensor:
    """Return the unit embedding of a prompt, ``[D]``.

    Raises:
        PromptError: If it is empty or too long.
    """
    return _embedding(run, target, templates).to(run.device)


@lru_cache(maxsize=256)
def _direction(run: Run, neutral: str, target: str, templates: str) -> TextDirection:
    return text_direction(run.clip, neutral=neutral, target=target, templates=templates)


@lru_cache(maxsize=1024)
def _embedding(run: Run, target: str, templates: str) -> Tensor:
    return embed_prompt(run.clip, target, templates).cpu()
