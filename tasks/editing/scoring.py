"""What a batch of images looks like to the networks that judge edits, and the scores that follow.

Shapes: B images, D width of the CLIP embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from styleclip.tasks.photographs.seen import Seen, see
from styleclip.tasks.running.run import Run
from styleclip.tasks.running.texts import target_embedding, text_vector
from styleclip.tasks.settings.edits import StepVariant
from styleclip_core.metrics import clip_similarity, directional_similarity


class Judge:
    """The networks that score edits."""

    def __init__(self, run: Run) -> None:
        self._run, self._perceptual = run, run.perceptual

    def see(self, image: Tensor) -> Seen:
        """Embed images ``[B, 3, H, V]`` in -1..1."""
        return see(self._run, image)

    def score(self, edits: Sequence[tuple[StepVariant, ...]], before: Seen, after: Seen) -> dict[str, Tensor]:
        """Return the scores of edits, ``[B]`` each.

        Over several steps, CLIP similarity is the mean over their targets, and the text direction is the one
        that all steps together point in.

        Args:
            edits: Of each image the steps of its edit.
            before: The images before.
            after: The images after.
        """
        texts = {steps: self._texts(steps) for steps in dict.fromkeys(edits)}
        # where all images have one edit, its text is no matrix of equal rows
        chosen = [texts[steps] for steps in (edits if len(texts) > 1 else edits[:1])]
        target, wanted = (torch.stack(each).squeeze(0) for each in zip(*chosen, strict=True))
        scores = {
            "clip_before": clip_similarity(before.clip, target),
            "clip_after": clip_similarity(after.clip, target),
            "directional": directional_similarity(before.clip, after.clip, wanted),
        }

        if before.identity is not None and after.identity is not None:
            scores["identity"] = (before.identity * after.identity).sum(dim=1)
        if self._perceptual and before.image is not None and after.image is not None:
            # a generator may overshoot, and the distance is one of pictures
            scores["lpips"] = self._perceptual.distance(after.image.clamp(-1, 1), before.image.clamp(-1, 1))
        return scores

    def _texts(self, steps: tuple[StepVariant, ...]) -> tuple[Tensor, Tensor]:
        """Return what an edit is to look like, and the unit direction to there, ``[D]`` each."""
        run = self._run
        targets = torch.stack([target_embedding(run, step.target, step.templates) for step in steps])
        wanted = torch.stack([text_vector(run, step) for step in steps]).sum(dim=0)
        return targets.mean(dim=0), F.normalize(wanted, dim=0)
