"""Pivotal tuning: a small change of the generator for each image, so that it draws the photograph.

PTI (Roich et al. 2021, "Pivotal Tuning for Latent-based Editing of Real Images"): an inverted latent, the
pivot w_p, stays as it is, and the generator G is tuned to G' by descent on

    distance(G'(w_p), photograph) + locality * distance(G'(w_r), G(w_r))

where w_r lies on the way from the pivot to a random code (section 3.3), so that G' differs from G near
the pivot alone. Where the paper tunes all weights, and keeps all of them for every image, this tunes changes
of low rank (see ``tuned``). Each image has its own loss, Adam moments and early stop, and all are
computed in chunks of one size, so that a result is the same, bit for bit, whatever its batch.

Shapes: P images, A of them still active, K numbers of a tuning, L rows of w_plus, W w_dim, Z random codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from styleclip_core.descent import Chunks, Progress, Status, cosine_fall, evaluate, only
from styleclip_core.inversion import PerceptualLoss, reconstruction_loss
from styleclip_core.models.stylegan2 import Generator
from styleclip_core.sampling import sample_z
from styleclip_core.settings.pivotal import PivotalSettings as PivotalSettings
from styleclip_core.tuned import Tuning, TuningForm, layer_changes, take_changes

_SPREAD_CODES = 256


@dataclass(frozen=True, slots=True, eq=False)
class PivotalState:
    """State after an evaluation.

    Attributes:
        step: Number of steps done.
        form: What the numbers stand for.
        values: Best numbers so far of all images, ``[P, K]``.
        loss: Their losses, ``[P]``; infinite where none was a number.
        status: How each image stands, ``[P]``, values of ``descent.Status``.
    """

    step: int
    form: TuningForm
    values: Tensor
    loss: Tensor
    status: Tensor

    def tuning(self, index: int) -> Tuning | None:
        """Return the tuning of an image as it is stored, in float16; None if the image diverged."""
        stored = self.values[index].half().cpu()
        if self.status[index] == Status.DIVERGED or not stored.isfinite().all():
            return None
        return Tuning(self.form, stored)


def tune(
    generator: Generator,
    target: Tensor,
    w_plus: Tensor,
    settings: PivotalSettings,
    *,
    perceptual: PerceptualLoss | None = None,
) -> Iterator[PivotalState]:
    """Tune the generator to each image and yield after every evaluation; the last state holds the result.

    Args:
        generator: What is tuned; its own weights stay as they are.
        target: Images to reproduce, ``[P, 3, H, V]`` in -1..1, of the generator's size.
        w_plus: The pivot of each, ``[P, L, W]``; left unchanged.
        settings: Steps, rates and weights.
        perceptual: Two batches of images -> distance per image, ``[B]``, or None.

    Yields:
        The best changes so far; the first state is the generator without a change.

    Raises:
        ValueError: If the target does not have the generator's size, or there is no image.
    """
    expected = [len(w_plus), 3, *generator.image_size]
    if list(target.shape) != expected or not len(w_plus):
        raise ValueError(f"target must be {expected} for these pivots, got {list(target.shape)}")

    # the numbers of all changes in one row per image, and the random codes that hold the generator elsewhere
    form = TuningForm.of(generator, settings.rank)
    spread = _spread(generator, settings.seed)
    chunks = Chunks(settings.chunk)
    problem = _Problem(generator, form, settings, perceptual, target, w_plus.detach(), spread, chunks)
    numbers = _first_numbers(form, settings.seed).to(w_plus).repeat(len(w_plus), 1)

    optimizer = torch.optim.Adam([numbers], lr=settings.learning_rate)
    progress = Progress(numbers, settings.patience)
    for step in range(settings.steps + 1):
        loss, gradient = problem.evaluate(numbers, progress.running, step)
        fine = loss.isfinite() & gradient.isfinite().all(dim=1)

        # judged before the step, so that the state is of what was evaluated
        kept = progress.judge(numbers, loss, fine, last=step == settings.steps)
        yield PivotalState(
            step, form, progress.result.clone(), progress.loss.clone(), progress.status.clone()
        )
        if not len(progress.running):
            return

        optimizer.param_groups[0]["lr"] = settings.learning_rate * _rate(step, settings.steps)
        numbers.grad = gradient
        optimizer.step()
        if kept is not None:
            numbers, optimizer = only(kept, numbers, optimizer)


@dataclass(frozen=True, slots=True, eq=False)
class _Problem:
    """The objective: what is compared, and with what."""

    generator: Generator
    form: TuningForm
    settings: PivotalSettings
    perceptual: PerceptualLoss | None
    target: Tensor
    w_plus: Tensor
    spread: Tensor
    chunks: Chunks

    def evaluate(self, numbers: Tensor, images: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return the loss of each of the images, ``[A]``, and its gradient, ``[A, K]``."""
        random = self._random_codes(step) if self.settings.locality_weight else None
        losses, gradient = evaluate(
            numbers, images,
            lambda moving, these: self._loss(moving, these, random)[None],
            chunks=self.chunks,
        )  # fmt: skip
        return losses[0].to(numbers), gradient

    def _loss(self, moving: Tensor, images: Tensor, random: Tensor | None) -> Tensor:
        generator, target, pivot = self.generator, self.target[images], self.w_plus[images]
        changes = layer_changes(generator, self.form, moving)
        loss = self._distance(generator.synthesize(generator.styles(pivot), changes=changes), target)
        if random is None:
            return loss

        # section 3.3: as far from the pivot as the settings say, towards each random code
        away = random[None, :, None] - pivot[:, None]  # [B, Z, L, W]
        length = away.square().sum(dim=3).mean(dim=2).sqrt()[..., None, None]
        between = (pivot[:, None] + self.settings.locality_distance * self.spread * away / length).flatten(
            0, 1
        )
        each = torch.arange(len(pivot), device=pivot.device).repeat_interleave(len(random))
        styles = generator.styles(between)
        with torch.no_grad():
            before = generator.synthesize(styles)
        after = generator.synthesize(styles, changes=take_changes(changes, each))
        held = self._distance(after, before).view(len(pivot), len(random)).mean(dim=1)
        return loss + self.settings.locality_weight * held

    def _distance(self, image: Tensor, target: Tensor) -> Tensor:
        loss = reconstruction_loss(image, target)
        if self.perceptual is None:
            return loss
        return loss + self.settings.perceptual_weight * self.perceptual(image, target)

    def _random_codes(self, step: int) -> Tensor:
        """Return the random codes of a step, the same for all images, ``[Z, W]``."""
        count = self.settings.locality_codes
        first = _SPREAD_CODES + step * count
        return _codes(self.generator, self.settings.seed, range(first, first + count)).to(self.w_plus)


@torch.no_grad()
def _codes(generator: Generator, seed: int, ids: range) -> Tensor:
    """Return random codes, of random classes if the generator has classes, ``[n, W]``."""
    config, average = generator.config, generator.mapping.w_avg
    z, label = sample_z(seed, ids, config.z_dim).to(average), None
    if config.c_dim:
        source = torch.Generator().manual_seed(seed)
        classes = torch.randint(config.c_dim, (ids.stop,), generator=source)[ids.start :]
        label = F.one_hot(classes, config.c_dim).to(average)
    w: Tensor = generator.mapping(z, label)
    return w


def _spread(generator: Generator, seed: int) -> Tensor:
    """Return the mean distance of a random w from the average w."""
    away: Tensor = _codes(generator, seed, range(_SPREAD_CODES)) - generator.mapping.w_avg
    length: Tensor = away.norm(dim=1)
    return length.mean()


def _first_numbers(form: TuningForm, seed: int) -> Tensor:
    """Return numbers that change nothing, ``[1, K]``: random readers and kernels, and nothing is written."""
    source, values = torch.Generator().manual_seed(seed), torch.zeros(1, form.size)
    for parts in form.split(values).values():
        for name in ("read", "kernel"):
            parts[name].copy_(torch.randn(parts[name].shape, generator=source))
    return values


def _rate(step: int, steps: int) -> float:
    """Return the learning rate factor: up over ten steps, then a cosine down over the last half."""
    return cosine_fall(step / steps, 0.5) * min(1.0, (step + 1) / 10)
