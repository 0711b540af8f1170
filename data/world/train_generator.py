"""Train the embedded world's StyleGAN2 by regression on the renderer.

The class is the one that reads FFHQ weights; only the training differs: there is no
discriminator, because the renderer knows the true image of every z. Four things carry it:

- *Mapping fit*: w first learns to spell out strengths and colours, so small parts follow z.
- *Style mixing with ground truth*: coarse, middle and fine rows of w_plus come from different z,
  and the target is rendered from the mixed factors. So layers own what they own in large models.
- *Sparse affine maps*: every style channel begins by listening to three directions of w, of those
  that its layer owns, toRGB to none, and a penalty keeps it so. Style space becomes as
  disentangled as it is in large models.
- *Perceptual loss* from the world's own CLIP in the second half ("detail"), after a first half
  without it ("structure") that can run while CLIP is still in training.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from styleclip.data.world.renderer import INDEX, NUM_FACTORS, factors_of, palette, render, strengths
from styleclip.data.world.training import Draw, Run, Schedule, device, draw, logger, mixed_precision
from styleclip_core.models.stylegan2 import Generator, GeneratorConfig, ModulatedConv, ToRGBLayer

SEED = 21
CONFIG = GeneratorConfig(
    resolution=64, z_dim=64, w_dim=128, mapping_layers=4, channel_base=2304, channel_max=96
)
SCHEDULE = Schedule(steps=5600, learning_rate=4e-3, warmup=100, flat=0.58)
STRUCTURE_STEPS = 3000
MAPPING_SCHEDULE = Schedule(steps=8000, learning_rate=2e-2)
BATCH, MIXED_SHARE = 16, 0.6
_LISTENS_TO = 3
MAPPING_GAIN = 100.0  # the mapping network stores its weights 100 times larger than they act
MAPPING_LR_SCALE = 10.0  # so this is a tenth of the others' rate: what it was taught should stay
_GROUPS = (  # rows of w_plus and the factors they own
    (range(0, 3), ("shift_x", "shift_y", "tilt", "face_width", "hair_long", "hair_volume")),
    (range(3, 6), ("smile", "mouth_open", "eye_size", "brow_thick", "glasses", "beard", "hat")),
    (range(6, 10), (
        "skin_dark", "hair_light", "hair_red", "hair_grey", "hair_dye", "dye_hue", "lip_red", "eye_blue",
        "bg_hue", "bg_light", "light_dir",
    )),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Weights:
    """How much each term of the loss counts."""

    sparsity: float = 0.25
    torgb: float = 0.03
    perceptual: float = 0.12


WEIGHTS = Weights()


def appearance(factors: Tensor) -> Tensor:
    """Return what w should spell out: strengths and the colours they mix to, ``[B, K + 15]``."""
    shown = strengths(factors)
    colors = palette(shown)
    return torch.cat([shown, colors.skin, colors.hair, colors.lips, colors.eyes, colors.background], dim=1)


@torch.no_grad()
def begin_sparse(generator: Generator) -> None:
    """Let every style channel listen to few directions of w to begin with, toRGB to none."""
    source = torch.Generator().manual_seed(SEED)
    colors = list(range(NUM_FACTORS, NUM_FACTORS + 15))
    for layer in generator.layout.layers:
        block, _, part = layer.name.partition(".")
        rows = getattr(getattr(generator.synthesis, block), part).affine.weight
        rows.zero_()
        if layer.is_torgb:
            continue
        owned = next(names for owners, names in _GROUPS if layer.ws_index in owners)
        columns = [INDEX[name] for name in owned] + (colors if "skin_dark" in owned else [])
        for row in rows:
            chosen = torch.randperm(len(columns), generator=source)[:_LISTENS_TO]
            row[[columns[i] for i in chosen]] = 3 * torch.randn(_LISTENS_TO, generator=source)


def fit_mapping(generator: Generator) -> float:
    """Teach the mapping network to spell out the appearance in w; returns the last error."""
    reference = appearance(factors_of(draw(SEED, -1).normal(20_000, CONFIG.z_dim)))
    mean, std = reference.mean(dim=0), reference.std(dim=0)
    width = len(mean)
    optimizer = torch.optim.Adam(generator.mapping.parameters(), betas=(0.9, 0.99))
    error = torch.zeros([])
    for step in range(MAPPING_SCHEDULE.steps):
        optimizer.param_groups[0]["lr"] = MAPPING_SCHEDULE.rate(step) * MAPPING_GAIN
        z = draw(SEED + 1, step).normal(512, CONFIG.z_dim)
        w = generator.mapping(z)
        error = F.mse_loss(w[:, :width], (appearance(factors_of(z)) - mean) / std)
        optimizer.zero_grad(set_to_none=True)
        (error + 0.01 * w[:, width:].square().mean()).backward()
        optimizer.step()
    return error.item()


def mixed_batch(
    step: Draw, generator: Generator, count: int = BATCH, mixed_share: float = MIXED_SHARE
) -> tuple[Tensor, Tensor]:
    """Draw w_plus ``[B, L, W]`` with mixed rows and the factors ``[B, K]`` they stand for."""
    z = step.normal(len(_GROUPS), count, CONFIG.z_dim)
    z[1:, int(count * mixed_share) :] = z[0, int(count * mixed_share) :]
    factors = factors_of(z[0])
    w_plus = []
    for source, (rows, names) in zip(z, _GROUPS, strict=True):
        columns = [INDEX[name] for name in names]
        factors[:, columns] = factors_of(source)[:, columns]
        where = generator.mapping.w_avg.device
        w = generator.mapping(source.to(where))
        w_plus.append(w[:, None].expand(-1, len(rows), -1))
    return torch.cat(w_plus, dim=1), factors


def pixel_loss(image: Tensor, target: Tensor, emphasis: Tensor) -> Tensor:
    """Return L1, L2 and gradient differences, weighted towards the face, and coarse L1."""
    difference = image - target
    loss = (difference.abs() * emphasis).mean() + 0.5 * (difference.square() * emphasis).mean()
    for axis in (2, 3):
        size = difference.shape[axis] - 1
        gradient = difference.diff(dim=axis).abs() * emphasis.narrow(axis, 1, size)
        loss = loss + 0.5 * gradient.mean()
    for factor in (2, 4):
        loss = loss + 0.3 * F.avg_pool2d(difference, factor).abs().mean()
    return loss


def face_emphasis(size: int = 64) -> Tensor:
    """Return pixel weights ``[1, 1, size, size]`` of mean 1: the face counts more, mouth and eyes most."""
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    x, y = axis[None, :], axis[:, None]
    weight = 1 + 2 * torch.exp(-((x / 0.45) ** 2 + ((y - 0.1) / 0.5) ** 2))
    weight = weight + 6 * torch.exp(-((x / 0.30) ** 2 + ((y - 0.42) / 0.18) ** 2))
    weight = weight + 2 * torch.exp(-((x / 0.40) ** 2 + (y / 0.15) ** 2))
    return (weight / weight.mean())[None, None]


def sparsity(generator: Generator) -> tuple[Tensor, Tensor]:
    """Return how far affine rows are from one direction of w each (0..1), and the size of toRGB's."""
    spread, torgb = [], []
    for module in generator.synthesis.modules():
        if isinstance(module, ModulatedConv):
            rows = module.affine.weight
            if isinstance(module, ToRGBLayer):
                torgb.append(rows.abs().mean())
            else:
                ratio = rows.abs().sum(dim=1) / rows.norm(dim=1).clamp(min=1e-3)
                spread.append((ratio - 1) / (math.sqrt(rows.shape[1]) - 1))
    return torch.cat(spread).mean(), torch.stack(torgb).mean()


class ClipPerceptual:
    """Distance between images in the features of the world's CLIP image tower."""

    def __init__(self, weights: Path, where: torch.device) -> None:
        from styleclip_core.models.clip import load_clip

        self.clip = load_clip(str(weights), device=str(where))
        self.where = where

    def __call__(self, image: Tensor, target: Tensor) -> Tensor:
        """Return the mean relative feature distance plus one minus the embeddings' cosine."""
        with mixed_precision(self.where):
            ours, ours_embedding = self._features(image)
            with torch.no_grad():
                theirs, their_embedding = self._features(target)
        distance = sum((a - b).abs().mean() / b.abs().mean() for a, b in zip(ours, theirs, strict=True)) / 3
        return distance + (1 - F.cosine_similarity(ours_embedding.float(), their_embedding.float())).mean()

    def _features(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        tower = cast(Any, self.clip.model.visual)
        x = self.clip.preprocess(image).contiguous(memory_format=torch.channels_last)
        for index in (1, 2, 3):
            x = getattr(tower, f"bn{index}")(getattr(tower, f"conv{index}")(x)).relu()
        stem = x
        first = tower.layer1(tower.avgpool(x))
        second = tower.layer2(first)
        return [stem.float(), first.float(), second.float()], tower.attnpool(
            tower.layer4(tower.layer3(second))
        )


def train(build: Path, *, until: int | None = None) -> Generator:
    """Train or resume up to step ``until`` (the end if None); returns the averaged generator."""
    where = device()
    torch.manual_seed(SEED)
    generator = Generator(CONFIG)
    begin_sparse(generator)
    average = copy.deepcopy(generator)
    mapping = {"params": list(generator.mapping.parameters()), "lr_scale": MAPPING_LR_SCALE}
    noise = [p for n, p in generator.synthesis.named_parameters() if n.endswith("noise_strength")]
    rest = [p for p in generator.synthesis.parameters() if all(p is not other for other in noise)]
    generator.to(where), average.to(where)
    optimizer = torch.optim.Adam([mapping, {"params": rest, "lr_scale": 1.0}], betas=(0.9, 0.99))
    run = Run("generator", build / "generator.checkpoint.pt",
              {"generator": generator, "average": average, "optimizer": optimizer})  # fmt: skip
    run.resume()
    if run.step == 0:
        logger.info("generator: mapping error %.4f", fit_mapping(generator.cpu()))
        generator.to(where)
    emphasis = face_emphasis().to(where)
    perceptual: ClipPerceptual | None = None
    for step in run.steps(SCHEDULE, seed=SEED, until=until):
        if step.step >= STRUCTURE_STEPS and perceptual is None:
            perceptual = ClipPerceptual(build / "clip.pt", where)
        w_plus, factors = mixed_batch(step, generator)
        target = render(factors).to(where)
        with mixed_precision(where):
            image = generator.synthesize(generator.styles(w_plus), noise="none")
        loss = pixel_loss(image, target, emphasis)
        spread, torgb = sparsity(generator)
        loss = loss + WEIGHTS.sparsity * spread + WEIGHTS.torgb * torgb
        if perceptual is not None:
            loss = loss + WEIGHTS.perceptual * perceptual(image, target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(generator.parameters(), 1.0)
        optimizer.step()
        run.loss = loss.item()
        _follow(average, generator, step.step)
    return average


@torch.no_grad()
def _follow(average: Generator, generator: Generator, step: int) -> None:
    decay = min(0.998, step / (step + 50))
    for ours, theirs in zip(average.parameters(), generator.parameters(), strict=True):
        ours.lerp_(theirs, 1 - decay)


@torch.no_grad()
def finish(average: Generator) -> Generator:
    """Set the average w from 100,000 seeded z, as the published models carry it."""
    average = average.cpu().eval()
    z = torch.randn(100_000, CONFIG.z_dim, generator=torch.Generator().manual_seed(SEED))
    average.mapping.w_avg.copy_(average.mapping(z).mean(dim=0))
    return average.requires_grad_(False)
