"""The networks that evaluate edits, and the scores they give to images before and after.

Unlike ``styleclip.tasks.editing.scoring``, which scores while images are made, by the networks that make
them, this reads finished images and knows nothing of latents.

Shapes: B edited images, A attributes, D width of the CLIP embedding, H V pixels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from styleclip.tasks.artifacts.outcomes import Row
from styleclip.tasks.evaluation.attributes import AttributePrompts, embedded_pairs
from styleclip.tasks.running.run import Run
from styleclip.tasks.running.texts import target_embedding, text_vector
from styleclip.tasks.settings.edits import StepVariant
from styleclip_core.metrics import clip_similarity, directional_similarity, pixel_scores, step_agreement
from styleclip_core.zero_shot import attribute_logits, label_probabilities

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

    def __init__(self, run: Run, templates: str, attributes: Sequence[AttributePrompts] = ()) -> None:
        self._run, self._templates = run, templates
        self._clip, self._identity, self._perceptual = run.clip, run.identity, run.perceptual
        self._pairs = embedded_pairs(run, attributes, templates) if attributes else None

    def text(self, prompts: Prompts) -> EditText:
        """Embed what an edit asks for."""
        neutral, target = (
            torch.stack([target_embedding(self._run, each, self._templates) for each in side]).mean(dim=0)
            for side in zip(*prompts, strict=True)
        )

        steps = [
            text_vector(self._run, StepVariant(neutral=one, target=other, templates=self._templates))
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
        device = self._run.device
        unedited, edited = unedited.to(device), edited.to(device)
        owners = torch.tensor([place.owner for place in places], device=device)

        # an unedited image is embedded once, however many edits it has
        whole, after = self._clip.embed_whole(unedited), self._clip.embed_whole(edited)
        before = whole[owners]

        scores = {
            **self._clip_scores(before, after, [place.prompts for place in places]),
            "agreement": self._agreement(whole, after, places),
            **pixel_scores(edited, unedited[owners]),
        }
        if self._identity is not None:
            known = self._identity.embed(unedited)[owners]
            scores["identity"] = (self._identity.embed(edited) * known).sum(dim=1)
        if self._perceptual is not None:
            scores["lpips"] = self._perceptual.distance(edited, unedited[owners])

        # together, so that the device is waited for once
        figures = torch.stack(list(scores.values())).tolist()
        columns: dict[str, list[Any]] = dict(zip(scores, figures, strict=True))
        if self._pairs:
            for name, seen in (("logits_before", before), ("logits_after", after)):
                columns[name] = attribute_logits(seen, *self._pairs, self._clip.logit_scale).tolist()
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def _clip_scores(self, before: Tensor, after: Tensor, prompts: list[Prompts]) -> dict[str, Tensor]:
        names = ("clip_before", "clip_after", "directional", "target_before", "target_after")
        scores = {name: torch.zeros(len(after), device=after.device) for name in names}

        # a batch holds few different edits, and each is embedded for all its images at once
        for asked in dict.fromkeys(prompts):
            mine = _index([place for place, each in enumerate(prompts) if each == asked], after)
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

            # the unedited image, of strength 0, lies between the two sides
            parts = (edited[_index(below, edited)], unedited[owner, None], edited[_index(above, edited)])
            agreement = step_agreement(torch.cat(parts), self.text(places[order[0]].prompts).direction)
            found[_index(order, edited)] = agreement
        return found


def _index(places: list[int], beside: Tensor) -> Tensor:
    """Return places as an index that lies where what it is for lies."""
    return torch.tensor(places, dtype=torch.int64, device=beside.device)
