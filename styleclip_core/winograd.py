"""Convolutions of 3 x 3 with a quarter of the products, for processors.

Winograd's minimal filtering F(4 x 4, 3 x 3) (Lavin and Gray 2016, section 4.3): tiles of 6 x 6 pixels and the
weights are each brought into 36 numbers, whose products are brought back to 4 x 4 pixels. Additions take the
place of products, so it pays where channels are many. Results are a convolution's but for rounding, some 3e-6
of the output in float32, two to three times that of a direct convolution. A GPU's library chooses such ways
by itself.

Shapes: B images, C channels in, O out, H V pixels. Work is channels-last, on as many tiles as caches hold.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_FEWEST = 96  # channels, in and out, below which a direct convolution is faster
_CACHE = 16 << 20  # bytes of transformed tiles and products at once

# six points: 0, 1, -1, 2, -2 and infinity
_WEIGHTS = (
    (1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1),
)  # fmt: skip


def pays(weight: Tensor, height: int, width: int) -> bool:
    """Return whether this is a faster way to convolve images of so many pixels with ``[O, C, 3, 3]``."""
    fits = height % 4 == 0 and width % 4 == 0 and min(weight.shape[:2]) >= _FEWEST
    return fits and height * width >= 64 and weight.device.type == "cpu" and weight.dtype == torch.float32


def transform(weight: Tensor) -> Tensor:
    """Bring weights ``[O, C, 3, 3]`` into the form that ``convolve`` takes, ``[36, C, O]``."""
    points = torch.tensor(_WEIGHTS, dtype=torch.float64)
    both = torch.einsum("ij,kl->ikjl", points, points).reshape(36, 9).float()
    out, channels = weight.shape[:2]
    return (both @ weight.permute(2, 3, 1, 0).reshape(9, channels * out)).view(36, channels, out)


def convolve(x: Tensor, transformed: Tensor) -> Tensor:
    """Return what ``F.conv2d(x, weight, padding=1)`` does.

    Args:
        x: ``[B, C, H, V]`` float32; H and V are multiples of 4.
        transformed: Of ``transform``.

    Returns:
        ``[B, O, H, V]``, channels-last in memory.
    """
    (batch, channels, height, width), out = x.shape, transformed.shape[2]
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    result = torch.empty(batch, height, width, out)
    down, across = height // 4, width // 4  # tiles

    # whole images if they are small, else some rows of one: an image's bits then depend on no other
    row = 36 * x.itemsize * (channels + out) * across
    rows = max(1, min(down, _CACHE // row))
    images = 1 if rows < down else max(1, _CACHE // (row * down))

    for first in range(0, batch, images):
        some = slice(first, min(first + images, batch))
        for top in range(0, down, rows):
            bottom = min(top + rows, down)
            tiles = _into(padded[some, 4 * top : 4 * bottom + 2], bottom - top, across)
            products = torch.bmm(tiles.flatten(0, 1).flatten(1, 3), transformed)
            shape = (6, 6, *tiles.shape[2:5], out)
            _out_of(products.view(shape), result[some, 4 * top : 4 * bottom])
    return result.permute(0, 3, 1, 2)


def _into(pixels: Tensor, down: int, across: int) -> Tensor:
    """Bring rows of pixels ``[b, 4 m + 2, V + 2, C]`` into 36 numbers a tile, ``[6, 6, b, m, n, C]``."""
    batch, height, _, channels = pixels.shape
    half = pixels.new_empty(6, batch, height, across, channels)
    _six([pixels[:, :, k : k + 4 * across - 3 : 4] for k in range(6)], half)
    whole = pixels.new_empty(6, 6, batch, down, across, channels)
    _six([half[:, :, k : k + 4 * down - 3 : 4] for k in range(6)], whole)
    return whole


def _out_of(products: Tensor, pixels: Tensor) -> None:
    """Bring the products of tiles ``[6, 6, b, m, n, O]`` back to rows of pixels ``[b, 4 m, 4 n, O]``."""
    _, _, batch, down, across, out = products.shape
    half = products.new_empty(4, *products.shape[1:])
    _four(products, half)
    spread = pixels.view(batch, down, 4, across, 4, out)
    for k in range(4):
        _four(half[k], [spread[:, :, k, :, j] for j in range(4)])


def _six(d: Sequence[Tensor], out: Tensor) -> None:
    """Write what six neighbours become at the six points: B^T d."""
    a, b = torch.sub(d[4], d[2], alpha=4), torch.sub(d[3], d[1], alpha=4)
    torch.add(a, b, out=out[1])
    torch.sub(a, b, out=out[2])
    torch.sub(a.add_(d[0], alpha=4), d[2], out=out[0])

    torch.add(d[5], d[1], alpha=4, out=b)
    torch.sub(b, d[3], alpha=5, out=out[5])
    torch.sub(d[4], d[2], out=a)
    torch.sub(d[3], d[1], out=b)
    torch.add(a, b, alpha=2, out=out[3])
    torch.sub(a, b, alpha=2, out=out[4])


def _four(m: Tensor, out: Sequence[Tensor] | Tensor) -> None:
    """Write the four pixels of which the values at the six points are known: A^T m."""
    near, far = m[1] + m[2], m[3] + m[4]
    near_odd, far_odd = m[1] - m[2], m[3] - m[4]
    torch.add(near_odd, far_odd, alpha=2, out=out[1])
    torch.add(near, far, alpha=4, out=out[2])
    torch.add(near.add_(far), m[0], out=out[0])
    torch.add(near_odd.add_(far_odd, alpha=8), m[5], out=out[3])
