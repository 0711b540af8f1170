"""OpenAI's image tower, written anew: for machines that hold torch and not the package it is published in.

The names of the parameters are the published ones, so a published state fits; a test holds the two against
each other. Only images can be embedded: a text's embedding is a unit vector, wherever it comes from.

Shapes: B images, T patches and the class token, W width, D width of the embedding, R side in pixels.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from styleclip_core.models.clip import ClipModel
from styleclip_core.models.clip_openai import OpenAiNetwork


@dataclass(frozen=True, slots=True)
class TowerSize:
    """Sizes of an image tower; those of ViT-B/32 by default.

    Attributes:
        side: R, of the images it reads, in pixels.
        patch: Side of a patch in pixels.
        width: W.
        layers: Number of blocks.
        heads: Number of heads of a block's attention.
        embedding: D.
    """

    side: int = 224
    patch: int = 32
    width: int = 768
    layers: int = 12
    heads: int = 12
    embedding: int = 512


class _Norm(nn.LayerNorm):
    """A layer norm in float32, whatever it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).type(x.dtype)


class _QuickGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1, self.ln_2 = _Norm(width), _Norm(width)
        inner = (
            ("c_fc", nn.Linear(width, 4 * width)),
            ("gelu", _QuickGelu()),
            ("c_proj", nn.Linear(4 * width, width)),
        )
        self.mlp = nn.Sequential(OrderedDict(inner))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[T, B, W]`` to itself."""
        read = self.ln_1(x)
        x = x + self.attn(read, read, read, need_weights=False)[0]
        return x + cast(Tensor, self.mlp(self.ln_2(x)))


class _Blocks(nn.Module):
    def __init__(self, size: TowerSize) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(_Block(size.width, size.heads) for _ in range(size.layers)))


class ImageTower(nn.Module):
    """The vision transformer.

    Attributes:
        input_resolution: R.
    """

    def __init__(self, size: TowerSize) -> None:
        super().__init__()
        self.input_resolution = size.side
        self.conv1 = nn.Conv2d(3, size.width, size.patch, size.patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(size.width))
        tokens = (size.side // size.patch) ** 2 + 1
        self.positional_embedding = nn.Parameter(torch.empty(tokens, size.width))
        self.ln_pre, self.ln_post = _Norm(size.width), _Norm(size.width)
        self.transformer = _Blocks(size)
        self.proj = nn.Parameter(torch.empty(size.width, size.embedding))

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode images ``[B, 3, R, R]`` -> ``[B, D]``."""
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)  # [B, T - 1, W]
        first = self.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        x = torch.cat([first, patches], dim=1) + self.positional_embedding.to(patches.dtype)

        x = self.transformer.resblocks(self.ln_pre(x).transpose(0, 1)).transpose(0, 1)
        return cast(Tensor, self.ln_post(x[:, 0]) @ self.proj)


class ImageClip(nn.Module):
    """What ``OpenAiNetwork`` needs of a CLIP that embeds images alone."""

    def __init__(self, size: TowerSize | None = None) -> None:
        super().__init__()
        size = size or TowerSize()
        self.visual = ImageTower(size)
        self.text_projection = nn.Parameter(torch.empty(size.embedding, size.embedding))
        self.logit_scale = nn.Parameter(torch.tensor(100.0).log())

    @property
    def dtype(self) -> torch.dtype:
        """Return the precision that it computes in."""
        return self.visual.conv1.weight.dtype

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Encode images ``[B, 3, R, R]`` -> ``[B, D]``."""
        return cast(Tensor, self.visual(pixels.type(self.dtype)))

    def halve(self) -> None:
        """Put what multiplies into float16 and leave norms and positions in float32, as is published."""
        for part in self.modules():
            if isinstance(part, nn.Conv2d | nn.Linear | nn.MultiheadAttention):
                part.half()
        for weight in (self.visual.proj, self.text_projection):
            weight.data = weight.data.half()


def image_clip(network: ImageClip, device: torch.device) -> ClipModel:
    """Return a network as the model that the rest of the software takes."""
    return ClipModel(OpenAiNetwork(network), name="ViT-B/32 generated", fingerprint="", device=device)
