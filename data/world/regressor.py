"""The factor regressor: an independent network that reads factors off a portrait.

It measures edits and nothing else: no step of the pipeline sees it, and no training of the
generator, the encoder or CLIP uses it. Readings are visible strengths in units of their standard
deviation over random portraits, so that 1.0 means the same for every factor.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from styleclip.data.world.dataset import RenderedPortraits
from styleclip.data.world.renderer import FACTORS, NUM_FACTORS, factors_of, render, visible
from styleclip.data.world.training import Run, Schedule, blur_and_noise, device, draw, mixed_precision
from styleclip_core.errors import CheckpointError
from styleclip_core.files.checkpoint import read_state, write_state
from styleclip_core.models.network import Network, filled

SEED = 31
SCHEDULE = Schedule(steps=2400, learning_rate=2e-3)
BATCH = 128
_FORMAT = "styleclip-world-regressor-1"


class FactorRegressor(Network):
    """Reads standardized strengths ``[B, K]`` off images ``[B, 3, 64, 64]`` in -1..1."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        widths = (3, 24, 48, 96, 128)
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            if before != 3:
                layers += [nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 16, 192), nn.ReLU())
        self.head = nn.Linear(192, NUM_FACTORS)
        self.register_buffer("mean", torch.zeros(NUM_FACTORS))
        self.register_buffer("std", torch.ones(NUM_FACTORS))

    def forward(self, image: Tensor) -> Tensor:
        """Return raw readings, which may leave the range that a portrait can have."""
        readings: Tensor = self.head(self.features(image))
        return readings

    def standardize(self, shown: Tensor) -> Tensor:
        """Return true visible strengths ``[B, K]`` in the units of the readings."""
        return (shown - self.mean) / self.std

    @torch.no_grad()
    def read(self, image: Tensor, *, batch: int = 96) -> Tensor:
        """Return readings kept inside the range of each factor, ``[B, K]``."""
        raw = torch.cat([self(part.clamp(-1, 1)) for part in image.split(batch)])
        low, high = -self.mean / self.std, (1 - self.mean) / self.std
        return torch.minimum(torch.maximum(raw, low), high)


def train(build: Path) -> Path:
    """Train or resume, and write ``regressor.safetensors``; returns its path."""
    where = device()
    portraits = RenderedPortraits.prepare(build)
    shown = visible(portraits.factors)
    torch.manual_seed(SEED)
    regressor = FactorRegressor()
    regressor.mean.copy_(shown.mean(dim=0))
    regressor.std.copy_(shown.std(dim=0))
    regressor.to(where).train()
    target = regressor.standardize(shown.to(where))
    optimizer = torch.optim.AdamW(regressor.parameters(), weight_decay=0.02)
    run = Run(
        "regressor", build / "regressor.checkpoint.pt", {"regressor": regressor, "optimizer": optimizer}
    )
    run.resume()
    for step in run.steps(SCHEDULE, seed=SEED):
        chosen = step.integers(len(portraits), BATCH)
        images = blur_and_noise(portraits.images(chosen), step).to(where)
        with mixed_precision(where):
            readings = regressor(images)
        loss = F.smooth_l1_loss(readings.float(), target[chosen.to(where)])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        run.loss = loss.item()
    path = build / "regressor.safetensors"
    state = {n: t.half() if t.is_floating_point() else t for n, t in regressor.cpu().state_dict().items()}
    write_state(path, state, {"format": _FORMAT, "factors": json.dumps(FACTORS)})
    return path


def load_regressor(path: Path) -> FactorRegressor:
    """Read a regressor.

    Raises:
        CheckpointError: If the file is damaged or was trained on other factors.
    """
    state, metadata = read_state(path)
    if metadata.get("format") != _FORMAT or json.loads(metadata.get("factors", "[]")) != list(FACTORS):
        raise CheckpointError(f"{path} is no regressor of these {NUM_FACTORS} factors; run `make models`")
    return filled(FactorRegressor, state, what="factor regressor")


@torch.no_grad()
def explained_variance(regressor: FactorRegressor, *, seed: int = 977, count: int = 1000) -> dict[str, float]:
    """Return R^2 of every factor on fresh renders."""
    factors = factors_of(draw(seed, 0).normal(count, 64))
    truth = regressor.standardize(visible(factors))
    residual = (regressor.read(render(factors)) - truth).square().mean(dim=0)
    return dict(zip(FACTORS, (1 - residual / truth.var(dim=0)).tolist(), strict=True))
