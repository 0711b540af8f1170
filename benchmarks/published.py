"""The published optimization script, operation by operation: what one step of it asks of a machine.

``benchmarks.reference.reference_optimization`` has its loop around our networks. Here the networks work as
its own do, too: every convolution has weights of its own for each image, filters run over a picture with
zeros between its pixels, CLIP sees an enlarged image averaged again, both towers run at every step, and
gradients are taken of all weights, as nothing is frozen. The numbers are the same but for rounding.
"""

from __future__ import annotations

import math
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor

from styleclip_core.models.clip import ClipModel
from styleclip_core.models.stylegan2 import (
    LRELU_GAIN,
    Generator,
    LayerChange,
    Noise,
    SynthesisLayer,
    ToRGBLayer,
)
from styleclip_core.optimization import OptimizationSettings, learning_rate_factor


def _filtered(x: Tensor, kernel: Tensor, *, up: int, before: int, after: int) -> Tensor:
    """Filter ``[B, C, H, V]`` with ``up - 1`` zeros after every pixel, and more around all."""
    batch, channels, height, width = x.shape
    spread = F.pad(x.reshape(-1, 1, height, 1, width, 1), [0, up - 1, 0, 0, 0, up - 1])
    spread = spread.reshape(-1, 1, height * up, width * up)
    spread = F.pad(spread, [before, after, before, after])

    filtered = F.conv2d(spread, kernel.flip(0, 1)[None, None])
    return filtered.view(batch, channels, *filtered.shape[2:])


class _Layer(SynthesisLayer):
    def forward(self, x: Tensor, style: Tensor, noise: Noise, change: LayerChange | None = None) -> Tensor:
        del noise, change  # the stored noise, and nobody's tuning
        batch, inner, height, width = x.shape
        weight = self.weight * style.view(batch, 1, inner, 1, 1)
        factor = (weight.square().sum(dim=(2, 3, 4)) + 1e-8).rsqrt()
        weight = weight * factor[:, :, None, None, None]  # [B, out, in, 3, 3]

        # a group for each image, which has its own weights
        x, outer = x.reshape(1, batch * inner, height, width), weight.shape[1]
        if self.up:
            weight = weight.transpose(1, 2).reshape(batch * inner, outer, 3, 3)
            x = F.conv_transpose2d(x, weight, stride=2, groups=batch)
            x = x.view(batch, outer, *x.shape[2:])
            x = _filtered(x, self.resample_filter * 4, up=1, before=1, after=1)
        else:
            x = F.conv2d(x, weight.view(batch * outer, inner, 3, 3), padding=1, groups=batch)
            x = x.view(batch, outer, height, width)

        x = x + self.noise_strength * self.noise_const
        return F.leaky_relu(x + self.bias[:, None, None], 0.2) * LRELU_GAIN


class _ToRGB(ToRGBLayer):
    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        batch, inner, height, width = x.shape
        weight = self.weight_gain * self.weight * style.view(batch, 1, inner, 1, 1)
        x = x.reshape(1, batch * inner, height, width)
        x = F.conv2d(x, weight.view(batch * 3, inner, 1, 1), groups=batch)
        return x.view(batch, 3, height, width) + self.bias[:, None, None]


class _Generator(Generator):
    def upsample(self, image: Tensor, resolution: int) -> Tensor:
        kernel = self.synthesis.block(resolution).resample_filter * 4
        return _filtered(image, kernel, up=2, before=2, after=1)


_AS_PUBLISHED = {SynthesisLayer: _Layer, ToRGBLayer: _ToRGB, Generator: _Generator}


class PublishedScript:
    """Copies of a generator and of a CLIP of OpenAI's, that work as in the published script."""

    def __init__(self, generator: Generator, clip: ClipModel) -> None:
        self.generator = deepcopy(generator).requires_grad_(True)
        for module in self.generator.modules():
            module.__class__ = _AS_PUBLISHED.get(type(module), type(module))
        self.clip = deepcopy(clip.model).requires_grad_(True)
        self._tokenize, self._side = clip.network.tokenize, clip.input_resolution

    def optimize(self, w_source: Tensor, prompt: str, settings: OptimizationSettings) -> Tensor:
        """Return the code ``[1, L, W]`` of the last image that is drawn on the way to a prompt.

        Args:
            w_source: Where it begins, ``[1, L, W]``; L2 is measured from there.
            prompt: As it is, without templates.
            settings: Steps, rate and the weight of L2; in W+, without the identity term.
        """
        tokens = self._tokenize([prompt])
        drawn = latent = w_source.detach().clone().requires_grad_(True)
        optimizer = torch.optim.Adam([latent], lr=settings.learning_rate, eps=settings.epsilon)
        for step in range(settings.steps):
            rate = settings.learning_rate * learning_rate_factor(step, settings.steps)
            optimizer.param_groups[0]["lr"] = rate
            drawn = latent.detach().clone()
            image = self.generator.synthesize(self.generator.styles(latent))
            loss = self.clip_loss(image, tokens) + settings.l2_weight * (latent - w_source).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return drawn

    def clip_loss(self, image: Tensor, tokens: Tensor) -> Tensor:
        """Return one minus the cosine of an image ``[1, 3, H, H]`` and tokens ``[1, 77]``, ``[]``."""
        # of 1024 pixels for 224, that is by 7, and means of 32 by 32
        shared = math.gcd(image.shape[-1], self._side)
        enlarged = F.interpolate(image, scale_factor=self._side // shared)
        pixels = F.avg_pool2d(enlarged, image.shape[-1] // shared)
        logits, _ = self.clip(pixels, tokens)  # cosines times the temperature, 100 in the published CLIP
        cosine: Tensor = (logits / self.clip.get_parameter("logit_scale").exp()).squeeze()
        return 1 - cosine
