"""Edits with all choices made: what is done to every image, and what it is called."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field

from styleclip.tasks.settings.settings import Optimization, Settings, SettingsError
from styleclip.tasks.settings.uris import TemplateSet
from styleclip_core.options import parameters
from styleclip_core.settings.editing import ChannelSelection, Weights

Method = Literal["global", "mapper", "optimization"]
RelevanceSource = Literal["table", "instant", "matched"]
GLOBAL = ("alpha", "beta", "effect", "top_k", "include", "exclude", "weights", "relevance")
FOREIGN = {
    "global": ("mapper", "strength", "optimization"),
    "mapper": (*GLOBAL, "optimization"),
    "optimization": (*GLOBAL, "mapper", "strength"),
}
NAME = 64  # characters of a folder name


def slug(target: str) -> str:
    """Return a prompt as a part of a folder name."""
    return re.sub(r"[^a-z0-9]+", "-", target.lower()).strip("-")[:NAME] or "edit"


class StepVariant(Settings):
    """One step by one method with one set of settings; those of the other methods are empty."""

    neutral: str
    target: str
    alpha: float | None = None
    beta: float | None = None
    top_k: int | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    weights: Weights = "relevance"
    templates: TemplateSet = "styleclip-79"
    method: Method = "global"
    relevance: RelevanceSource = "table"
    mapper: str | None = None
    strength: float | None = None
    optimization: Optimization | None = None
    reason: str = ""

    def selection(self) -> ChannelSelection:
        """Return what the core needs of this."""
        return ChannelSelection(self.beta, self.top_k, self.include, self.exclude, self.weights)

    def parameters(self) -> dict[str, Any]:
        """Return what decides the result, as JSON values."""
        if self.method == "global":
            foreign = {"method", "relevance", "weights", "reason", *FOREIGN["global"]}
            return self.model_dump(exclude=foreign) | self._special

        shared = self.model_dump(include={"neutral", "target", "templates", "method"})
        if self.method == "mapper":
            return shared | {"strength": self.strength}
        return shared | self.optimization_parameters() | ({"frames": self.frames} if self.frames else {})

    @property
    def frames(self) -> int:
        """Return the frames of a video of each image's way; 0 for none."""
        return self.optimization.frames if self.optimization else 0

    @property
    def guided(self) -> bool:
        """Return whether it is an optimization of the channels that its prompt concerns."""
        return self.optimization is not None and self.optimization.settings().space == "relevant"

    def optimization_parameters(self) -> dict[str, Any]:
        """Return the settings of an optimization, resolved.

        Raises:
            SettingsError: If this is no optimization.
        """
        if self.optimization is None:
            raise SettingsError(f"the edit towards {self.target!r} is no optimization")

        resolved = parameters(self.optimization.settings())
        return resolved | {"reference_compat": self.optimization.reference_compat}

    @property
    def name(self) -> str:
        """Return the target as a part of a folder name."""
        return slug(self.target)

    @property
    def label(self) -> str:
        """Return target and main settings as a part of a folder name."""
        return f"{self.name}_{self.setting}"

    @property
    def setting(self) -> str:
        """Return the main settings as a part of a folder name, e.g. ``a3_b0.15``."""
        if self.method == "mapper":
            return f"m{self.strength:g}"
        if self.method == "optimization":
            return f"o{self.optimization_parameters()['steps']}"
        choice = f"b{self.beta:g}" if self.beta is not None else f"k{self.top_k}"
        return "_".join([f"a{self.alpha:g}", choice, *self._special.values()])

    @property
    def summary(self) -> str:
        """Return the main settings for a person, e.g. ``alpha 3, beta 0.15``."""
        if self.method == "mapper":
            return f"mapper x {self.strength:g}"
        if self.method == "optimization":
            return f"{self.optimization_parameters()['steps']} steps"
        choice = f"beta {self.beta:g}" if self.beta is not None else f"top {self.top_k}"
        return ", ".join([f"alpha {self.alpha:g}", choice, *self._special.values()])

    @property
    def _special(self) -> dict[str, str]:
        """Return the settings that are not as in the paper, by name; others leave names and hashes alone."""
        # left out where they are as in the paper, so that older names and hashes stay
        settings = self.model_dump(include={"relevance", "weights"})
        return {k: v for k, v in settings.items() if v != StepVariant.model_fields[k].default}


class EditVariant(Settings):
    """An edit with all choices made: its steps, in their order."""

    name: str
    steps: tuple[StepVariant, ...] = Field(min_length=1)

    @property
    def label(self) -> str:
        """Return a readable folder name, e.g. ``grey-hair_a3_b0.15``."""
        return "_".join([self.name, *(step.setting for step in self.steps)])

    @property
    def summary(self) -> str:
        """Return the main settings for a person."""
        return "; ".join(step.summary for step in self.steps)

    @property
    def neutral(self) -> str:
        """Return the neutral prompts of all steps."""
        return "; ".join(dict.fromkeys(step.neutral for step in self.steps))

    @property
    def target(self) -> str:
        """Return the target prompts of all steps."""
        return "; ".join(step.target for step in self.steps)

    @property
    def method(self) -> str:
        """Return the methods of all steps, e.g. ``global`` or ``global+optimization``."""
        return "+".join(step.method for step in self.steps)

    def parameters(self) -> dict[str, Any]:
        """Return what decides the result, as JSON values."""
        return {"name": self.name, "steps": [step.parameters() for step in self.steps]}
