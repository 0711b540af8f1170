"""The networks that evaluate edits, and the scores they give to images before and after.

Unlike ``tasks.scoring``, which scores while images are made, by the networks that make them, this reads
finished images and knows nothing of latents.

Shapes: B edited images, A attributes, D width of the CLIP embedding, H V pixels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from styleclip_core.metrics import clip_similarity, directional_similarity, pixel_scores, step_agreement
from styleclip_core.zero_shot import attribute_logits, label_probabilities
from tasks import models
from tasks.attributes import AttributePrompts, embedded_pairs
from tasks.directions import target_embedding, text_vector
from tasks.edits import StepVariant
from tasks.outcomes import Row
from tasks.settings import Judges

Prompts = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, eq=False)
class EditText:
    """What an edit asks for, embedded; over several steps, all they ask for together.

    Attributes:
        neutral: Mean of the unit embeddings of the neutral prompts, ``[D]``.
        target: Of the target prompts, ``[D]``.
        direction: Unit text direction, ``[D]``.
    """

    neutral: Tensor
    target: Tensor
    direction: Tensor


@dataclass(frozen=True, slots=True)
class Place:
    """Where an edited image stands in its batch.

    Attributes:
        owner: Place of its unedited image.
        prompts: Neutral and target prompt of every step.
        sweep: What it shares with the edits that differ from it in strength alone.
        position: Its strength; None for an edit that has none.
    """

    owner: int
    prompts: Prompts
    sweep: str
    position: float | None


class Panel:
    """CLIP, and where there are some, an identity network and a perceptual distance."""

    def __init__(
        self, judges: Judges, templates: str, attributes: Sequence[AttributePrompts], device: str
    ) -> None:
        self._judges, self._templates, self.device = judges, templates, device
        self._clip = models.clip(judges.clip, device)
        self._identity = models.identity(judges.identity, device) if judges.identity else None
        self._perceptual = models.perceptual(judges.perceptual, device) if judges.perceptual else None
        chosen = tuple(attributes)
        self._pairs = embedded_pairs(chosen, judges.clip, templates, device) if chosen else None

    def text(self, prompts: Prompts) -> EditText:
        """Embed what an edit asks for."""
        clip, templates = self._judges.clip, self._templates
        neutral, target = (
            torch.stack([target_embedding(clip, each, templates, self.device) for each in side]).mean(dim=0)
            for side in zip(*prompts, strict=True)
        )
        steps = [
            text_vector(StepVariant(neutral=one, target=other, templates=templates), clip, self.device)
            for one, other in prompts
        ]
        return EditText(neutral, target, F.normalize(torch.stack(steps).sum(dim=0), dim=0))

    @torch.no_grad()
    def score(self, unedited: Tensor, edited: Tensor, places: Sequence[Place]) -> list[Row]:
        """Return the scores of every edited image.

        Args:
            unedited: ``[I, 3, H, V]`` in -1..1.
            edited: ``[B, 3, H, V]``.
            places: Where each of them stands.
        """
        unedited, edited = unedited.to(self.device), edited.to(self.device)
        owners = torch.tensor([place.owner for place in places], device=self.device)
        whole, after = self._clip.embed_whole(unedited), self._clip.embed_whole(edited)
        before = whole[owners]
        scores = {
            **self._clip_scores(before, after, [place.prompts for place in places]),
            "agreement": self._agreement(whole, after, places),
            **pixel_scores(edited, unedited[owners]),
        }
        if self._identity:
            known = self._identity.embed(unedited)[owners]
            scores["identity"] = (self._identity.embed(edited) * known).sum(dim=1)
        if self._perceptual:
            scores["lpips"] = self._perceptual.distance(edited, unedited[owners])
        columns = {name: score.tolist() for name, score in scores.items()}
        if self._pairs:
            for name, seen in (("logits_before", before), ("logits_after", after)):
                columns[name] = attribute_logits(seen, *self._pairs, self._clip.logit_scale).tolist()
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def _clip_scores(self, before: Tensor, after: Tensor, prompts: list[Prompts]) -> dict[str, Tensor]:
        names = ("clip_before", "clip_after", "directional", "target_before", "target_after")
        scores = {name: torch.zeros(len(after), device=after.device) for name in names}
        for asked in dict.fromkeys(prompts):
            mine = [place for place, each in enumerate(prompts) if each == asked]
            text = self.text(asked)
            scores["directional"][mine] = directional_similarity(before[mine], after[mine], text.direction)
            for name, seen in (("before", before[mine]), ("after", after[mine])):
                cosines = torch.stack(
                    [clip_similarity(seen, each) for each in (text.target, text.neutral)], 1
                )
                scores[f"clip_{name}"][mine] = cosines[:, 0]
                both = label_probabilities(cosines, ("", ""), self._clip.logit_scale)
                scores[f"target_{name}"][mine] = both[:, 0]
        return scores

    def _agreement(self, unedited: Tensor, edited: Tensor, places: Sequence[Place]) -> Tensor:
        """Return the agreement of the step that leads to each image from the next weaker one, ``[B]``.

        Strengths count from 0, the unedited image. Below it, where the edit is turned round, the step goes
        from the stronger to the weaker one, so that all steps lead the way of rising strength. An edit at
        strength 0 is no step and has NaN.
        """
        found = torch.full((len(edited),), torch.nan, device=edited.device)
        sweeps: dict[tuple[int, str], list[int]] = defaultdict(list)
        for number, place in enumerate(places):
            if place.position != 0:
                sweeps[place.owner, place.sweep].append(number)
        for (owner, _), numbers in sweeps.items():
            strengths = {number: places[number].position or 0.0 for number in numbers}
            order = sorted(numbers, key=strengths.__getitem__)
            below = [number for number in order if strengths[number] < 0]
            above = order[len(below) :]
            way = torch.cat([edited[below], unedited[owner, None], edited[above]])
            found[order] = step_agreement(way, self.text(places[order[0]].prompts).direction)
        return found
