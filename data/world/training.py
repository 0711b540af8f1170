"""What the trainings of the embedded world share: seeds per step, schedules, resumable state.

A training draws everything it needs for step k from a generator seeded with (seed, k), and saves
model, optimizer and step together. A resumed run therefore continues as if it had never stopped.
"""

from __future__ import annotations

import logging
import math
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

logger = logging.getLogger("styleclip.world")


@dataclass(frozen=True, slots=True)
class Schedule:
    """Warm-up, a flat stretch, then a cosine to 2 % of the learning rate.

    Attributes:
        steps: Length of the training.
        learning_rate: Rate on the flat stretch.
        warmup: Steps of linear warm-up.
        flat: Fraction of the steps before the cosine begins.
    """

    steps: int
    learning_rate: float
    warmup: int = 60
    flat: float = 0.0

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        t = max(0.0, step / self.steps - self.flat) / (1 - self.flat)
        cosine = 0.5 * (1 + math.cos(math.pi * t)) * 0.98 + 0.02
        return self.learning_rate * min(1.0, (step + 1) / self.warmup) * cosine


@dataclass(frozen=True, slots=True)
class Draw:
    """The random sources of one step."""

    step: int
    torch: torch.Generator
    python: random.Random

    def normal(self, *shape: int) -> Tensor:
        """Return normal numbers of a shape."""
        return torch.randn(*shape, generator=self.torch)

    def uniform(self, *shape: int) -> Tensor:
        """Return numbers in 0..1 of a shape."""
        return torch.rand(*shape, generator=self.torch)

    def integers(self, high: int, count: int) -> Tensor:
        """Return ``count`` integers below ``high``."""
        return torch.randint(0, high, (count,), generator=self.torch)


def draw(seed: int, step: int) -> Draw:
    """Return the random sources of one step of one training."""
    mixed = (seed * 1_000_003 + step) % (2**63)
    return Draw(step, torch.Generator().manual_seed(mixed), random.Random(mixed))


@dataclass
class Run:
    """One resumable training: parts with a state, saved together at ``path``."""

    name: str
    path: Path
    parts: dict[str, nn.Module | torch.optim.Optimizer]
    seconds: float = 0.0
    step: int = 0
    loss: float = math.nan
    _started: float = field(default_factory=time.monotonic)

    def resume(self) -> None:
        """Continue from the last save, if there is one."""
        if not self.path.exists():
            return
        saved = torch.load(self.path, weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(saved[name])
        self.step, self.seconds = saved["step"], saved["seconds"]
        logger.info("%s: resumed at step %d", self.name, self.step)

    def save(self) -> None:
        """Save all parts; the file is replaced whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = {name: part.state_dict() for name, part in self.parts.items()}
        aside = self.path.with_suffix(".tmp")
        torch.save({**state, "step": self.step, "seconds": self.elapsed}, aside)
        os.replace(aside, self.path)  # noqa: PTH105 - the atomic call, by its usual name

    @property
    def elapsed(self) -> float:
        """Return the training time so far in seconds, earlier sessions included."""
        return self.seconds + time.monotonic() - self._started

    def steps(
        self, schedule: Schedule, *, seed: int, until: int | None = None, save_every: int = 250
    ) -> Iterator[Draw]:
        """Yield the draws of the remaining steps; sets learning rates, counts, saves and logs."""
        optimizers = [part for part in self.parts.values() if isinstance(part, torch.optim.Optimizer)]
        stop = schedule.steps if until is None else min(until, schedule.steps)
        while self.step < stop:
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = schedule.rate(self.step) * group.get("lr_scale", 1.0)
            yield draw(seed, self.step)
            self.step += 1
            if self.step % save_every == 0 or self.step == stop:
                self.save()
                logger.info(
                    "%s: step %d of %d, loss %.4f, %.0f s",
                    self.name, self.step, schedule.steps, self.loss, self.elapsed,
                )  # fmt: skip


def device() -> torch.device:
    """Return the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def mixed_precision(where: torch.device) -> torch.autocast:
    """Return bfloat16 autocast on a GPU, float32 elsewhere (many processors emulate bfloat16 slowly)."""
    return torch.autocast(where.type, torch.bfloat16, enabled=where.type == "cuda")


def blur_and_noise(images: Tensor, random_source: Draw) -> Tensor:
    """Augment images in -1..1 as a soft generator would spoil them: blur, gain, tint, noise."""
    count = len(images)
    blurred = nn.functional.avg_pool2d(nn.functional.pad(images, (1, 1, 1, 1), mode="reflect"), 3, 1)
    share = random_source.uniform(count, 1, 1, 1) * (random_source.uniform(count, 1, 1, 1) < 0.5)
    images = images + (blurred - images) * share
    gain = 1 + 0.12 * (random_source.uniform(count, 1, 1, 1) - 0.5)
    tint = 0.16 * (random_source.uniform(count, 3, 1, 1) - 0.5)
    grain = random_source.normal(*images.shape) * 0.1 * random_source.uniform(count, 1, 1, 1)
    return (images * gain + tint + grain).clamp(-1, 1)
