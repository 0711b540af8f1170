"""Lists of attributes and labels: what images are scored for, as YAML or JSON files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from styleclip.tasks.running.run import Run
from styleclip.tasks.running.texts import target_embedding
from styleclip.tasks.settings import Prompt, Settings, SettingsError, describe
from styleclip.tasks.settings.files import read_list
from styleclip_core.zero_shot import Attribute

FACES = str(Path(__file__).parent / "faces.yaml")


class AttributePrompts(Settings):
    """An attribute as an entry of a file."""

    name: str = Field(min_length=1, description="Short name; names its columns")
    positive: Prompt = Field(description="What is said of an image where it holds")
    negative: Prompt = Field("face", description="What is said where it does not")
    group: str = Field("", description="Attributes of one group change with each other; empty for none")

    def attribute(self) -> Attribute:
        """Return what the core needs of this."""
        return Attribute(self.name, self.positive, self.negative, self.group)


def load_entries(uri: str, key: str) -> list[object]:
    """Read a YAML or JSON list, or the list under ``key`` of a mapping.

    Raises:
        SettingsError: If it is no such list, or an empty one.
    """
    entries = read_list(uri, key)
    if not entries:
        raise SettingsError(f"{uri} holds an empty list of {key}; list at least one")
    return entries


def load_attributes(uri: str) -> list[AttributePrompts]:
    """Read a list of attributes.

    Raises:
        SettingsError: If it is no such list, or a name comes twice; the message names the entry.
    """
    found = []
    for number, entry in enumerate(load_entries(uri, "attributes"), start=1):
        try:
            found.append(AttributePrompts.model_validate(entry))
        except ValidationError as error:
            raise SettingsError(f"{uri}, attribute {number}: {describe(error)}") from error

    # a name becomes that of columns, of which a table has each once
    check_names([each.name for each in found])
    return found


def check_names(names: Sequence[str]) -> None:
    """Refuse names that come twice.

    Raises:
        SettingsError: If one does.
    """
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SettingsError(f"{twice[0]!r} is listed twice; give one of them another name")


def embedded_pairs(run: Run, attributes: Sequence[AttributePrompts], templates: str) -> tuple[Tensor, Tensor]:
    """Return unit embeddings of the positive and of the negative prompts, ``[A, D]`` each.

    Raises:
        PromptError: If one of them is empty or too long.
    """
    positive, negative = (
        torch.stack([target_embedding(run, prompt, templates) for prompt in prompts])
        for prompts in ([each.positive for each in attributes], [each.negative for each in attributes])
    )
    return positive, negative
