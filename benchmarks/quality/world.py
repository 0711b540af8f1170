"""The embedded models, the portraits that are edited, and what is made once for all prompts."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from benchmarks.methods import Sizes, World
from benchmarks.quality.prompts import PROMPTS
from benchmarks.quality.sweep import Portraits, portraits
from styleclip.data.world import photographs
from styleclip.data.world.quality import Prompt
from styleclip.data.world.renderer import strengths
from styleclip_core.choosing import ChoosingSettings, choose, measure_on
from styleclip_core.editing import ChannelSelection, StyleDirection, Weights, style_direction
from styleclip_core.instant import instant_relevance
from styleclip_core.inversion import RefinementSettings, refine
from styleclip_core.mapper_training import PRESETS as MAPPER_PRESETS
from styleclip_core.mapper_training import new_mapper
from styleclip_core.matching import at, choose_matched, derivative_direction, likelihood, matched_direction
from styleclip_core.models.mapper import Mapper
from styleclip_core.optimization import PRESETS
from styleclip_core.prompts import embed_prompt, text_direction
from styleclip_core.relevance import RelevanceSettings, RelevanceTable, measure_channels
from styleclip_core.style_space import StyleCode

_INSTANT_CODES, _INSTANT_PROBES = 16, 16  # the defaults of the pipeline


@dataclass(frozen=True, slots=True)
class Counts:
    """How many portraits are edited.

    Attributes:
        judged: Photographs by which all ways but optimization are judged.
        slow: Of them, those that optimization edits.
        validation: Other portraits, on which settings may be chosen.
    """

    judged: int = 24
    slow: int = 8
    validation: int = 16


class QualityWorld(World):
    """Everything that is not a prompt's own; each piece is made once and kept under the folder."""

    def __init__(self, counts: Counts, folder: Path) -> None:
        super().__init__(Sizes(), folder)
        self.counts = counts

    @cached_property
    def judged(self) -> Portraits:
        """Return the photographs that judge."""
        return portraits(self, "judged", self.w_plus[: self.counts.judged])

    @cached_property
    def slow(self) -> Portraits:
        """Return the few photographs that slow ways edit."""
        return portraits(self, "slow", self.w_plus[: self.counts.slow])

    @cached_property
    def chosen_on(self) -> Portraits:
        """Return the portraits that settings are chosen on."""
        factors = photographs.held_out_factors(photographs.VALIDATION_SEED, self.sizes.validation)
        return portraits(self, "validation", self._invert("validation", factors)[: self.counts.validation])

    @cached_property
    def shown(self) -> Tensor:
        """Return the true strengths of the photographs, ``[96, K]``."""
        return strengths(photographs.held_out_factors(photographs.PHOTOGRAPH_SEED, photographs.COUNT))

    def refined(self, images: Tensor, w_plus: Tensor, *, steps: int) -> Tensor:
        """Return latents ``[B, L, W]`` brought nearer to images."""
        with torch.enable_grad():
            *_, end = refine(self.generator, images, w_plus, RefinementSettings(steps=steps))
        return end.w_plus.detach()

    def matched(self, prompt: Prompt, selection: ChannelSelection) -> StyleDirection:
        """Return the way to where codes that show the prompt have their channels."""
        codes, embedding = self.looked_at
        text = text_direction(self.clip, neutral=prompt.neutral, target=prompt.target)
        return matched_direction(codes, likelihood(embedding, text, self.clip.logit_scale), selection)

    def beyond(self, prompt: Prompt) -> StyleDirection:
        """Return where derivatives lead, from the end of that way on."""
        text = text_direction(self.clip, neutral=prompt.neutral, target=prompt.target)
        allowed = ChannelSelection(beta=0.0)
        with torch.enable_grad():
            return derivative_direction(
                self.generator, self.clip.embed_images, self.looked_at[0], text, allowed
            )

    def _matched_here(self, prompt: Prompt, selection: ChannelSelection) -> StyleDirection:
        """Return that way of the portraits that settings are chosen on."""
        return at(self.matched(prompt, selection), self.chosen_on.codes)

    @cached_property
    def texts(self) -> dict[str, Tensor]:
        """Return the unit text direction of every prompt, ``[D]`` each, by its name."""

        def embed() -> dict[str, Tensor]:
            return {
                each.name: text_direction(self.clip, neutral=each.neutral, target=each.target).direction
                for each in PROMPTS
            }

        return self.kept("texts", embed)

    @cached_property
    def prompts(self) -> dict[str, Tensor]:
        """Return the unit embedding of every target prompt, ``[D]`` each, and ``neutral``."""

        def embed() -> dict[str, Tensor]:
            found = {each.name: embed_prompt(self.clip, each.target, "styleclip-79") for each in PROMPTS}
            return found | {"neutral": embed_prompt(self.clip, PROMPTS[0].neutral, "styleclip-79")}

        return self.kept("prompts", embed)

    @cached_property
    def statistics(self) -> tuple[StyleCode, StyleCode]:
        """Return mean and deviation of every style channel, as codes of one."""

        def measure() -> dict[str, Tensor]:
            mean, std = super(QualityWorld, self).statistics
            return {"mean": mean.flat(), "std": std.flat()}

        kept, layout = self.kept("statistics", measure), self.generator.layout
        return StyleCode.from_flat(layout, kept["mean"]), StyleCode.from_flat(layout, kept["std"])

    @cached_property
    def deviations(self) -> Tensor:
        """Return the deviation of every editable channel, ``[N]``."""
        _, std = self.statistics
        return torch.cat([std[layer.name][0] for layer in self.generator.layout.editable])

    @cached_property
    def exact_table(self) -> RelevanceTable:
        """Return the relevance table of the exact mode, on the codes of the others."""
        return self._table("relevance-exact", self._exact_table)[0]

    def _exact_table(self) -> RelevanceTable:
        _, std = self.statistics
        parts = [
            measure_channels(
                self.generator, self.clip.embed_images, self.sampled, layer=layer.name,
                channels=range(layer.channels), mean=torch.zeros_like(std[layer.name][0]),
                std=std[layer.name][0], settings=RelevanceSettings(batch_size=32),
            )
            for layer in self.generator.layout.editable
        ]  # fmt: skip
        return RelevanceTable.from_parts(self.generator.layout, parts)

    @cached_property
    def instant(self) -> dict[str, Tensor]:
        """Return the relevance of every prompt from gradients, ``[N]`` each, by its name."""

        def measure() -> dict[str, Tensor]:
            found = instant_relevance(
                self.generator, self.clip.embed_images, self.sampled.select(slice(_INSTANT_CODES)),
                torch.stack([self.texts[each.name] for each in PROMPTS]), self.deviations,
                probes=_INSTANT_PROBES,
            )  # fmt: skip
            return {each.name: row.clone() for each, row in zip(PROMPTS, found, strict=True)}

        return self.kept("relevance-instant", measure)

    def choice(self, prompt: Prompt, weights: Weights | Literal["matched"]) -> tuple[float, float]:
        """Return alpha and beta as the pipeline chooses them, on the validation portraits.

        ``weights`` are those of the table's channels, or ``matched`` for ways that depend on the image.
        """

        def run() -> dict[str, Tensor]:
            text = text_direction(self.clip, neutral=prompt.neutral, target=prompt.target)
            scale = self.clip.logit_scale
            measure = measure_on(self.generator, self.clip.embed_images, self.chosen_on.codes, text, scale)
            layout, settings = self.generator.layout, ChoosingSettings()
            if weights == "matched":
                allowed = ChannelSelection(beta=0.0)
                found = choose_matched(
                    measure, self.matched(prompt, allowed).relevance, partial(self._matched_here, prompt),
                    partial(self.beyond, prompt), settings, layout=layout, allowed=allowed,
                )  # fmt: skip
            else:
                table = self.exact_table
                allowed, relevance = ChannelSelection(0.0, weights=weights), table.relevance(text.direction)
                direct = partial(style_direction, table, text.direction, self.deviations)
                found = choose(measure, layout, relevance, direct, settings, allowed=allowed)
            tried = [
                (each.alpha, each.selection.beta or 0.0, each.effect, each.movement) for each in found.trials
            ]
            return {"trials": torch.tensor(tried, dtype=torch.float64)}

        alpha, beta, *_ = self.kept(f"choices/{weights}/{prompt.name}", run)["trials"][-1].tolist()
        return alpha, beta

    def mapper(self, prompt: Prompt, preset: str = "small") -> Mapper:
        """Return the prompt's mapper of a preset, trained once."""
        settings = MAPPER_PRESETS[preset]

        def train() -> dict[str, Tensor]:
            training = self.mapper_training(prompt, settings, self.guides(prompt, settings))
            with torch.enable_grad():
                deque(training.run(), maxlen=0)
            return {name: value.detach().clone() for name, value in training.best.state_dict().items()}

        mapper = new_mapper(self.generator, settings)
        mapper.load_state_dict(self.kept(f"mappers{_of(preset, 'small')}/{prompt.name}", train))
        return mapper.requires_grad_(False)

    def optimized(self, prompt: Prompt, start: Portraits, preset: str = "gentle") -> Tensor:
        """Return flat style codes optimized for the prompt by a preset, ``[B, M]``."""
        settings = PRESETS[preset]

        def run() -> dict[str, Tensor]:
            guides = self.guides(prompt, settings)
            with torch.enable_grad():
                return {"codes": self.optimize(start.w_plus, prompt, settings, guides)}

        return self.kept(f"optimized{_of(preset, 'gentle')}/{start.name}/{prompt.name}", run)["codes"]


def _of(preset: str, first: str) -> str:
    """Return what is added to the folder of a preset that came later."""
    return "" if preset == first else f"-{preset}"
