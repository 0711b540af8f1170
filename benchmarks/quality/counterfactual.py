"""The true picture that an edit should have become, and how far the edit is from it.

The renderer draws the same portrait again with what a prompt names changed, and nothing else. Its
*counterfactuals* lie on a line of strengths, from the portrait as it is (value 0) to the prompt fulfilled
(value 1). An edit has reached the value of the counterfactual nearest to it in squared error of pixels,
sought over that value alone; what differs from this picture is the edit's error.

Hair colours hide each other, so those prompts take away what would cover theirs: grey hair is undyed, black
hair is neither grey nor red nor dyed. All other prompts move their factor alone.

*Region* is where the end of the line differs from the portrait. A portrait that shows the prompt already
has none, and no figure inside it.

Shapes: B portraits, K factors, V values tried, H side in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import structural_similarity
from torch import Tensor

from styleclip.data.world.quality import Prompt
from styleclip.data.world.renderer import INDEX, render_strengths
from styleclip_core.images import psnr

_COVERS = {  # what of a portrait's hair would hide the factor
    "hair_grey": ("hair_dye",),
    "hair_red": ("hair_dye", "hair_grey"),
    "hair_light": ("hair_dye", "hair_grey", "hair_red"),
}
_VISIBLE = 0.12  # of -1..1: a difference that ``hair_mask`` counts too
_SMALLEST = 12  # pixels of a region, below which it says nothing
_EDGE = (
    2  # pixels around a region that belong to neither side: an inversion does not place edges to the pixel
)
_COARSE, _FINER, _ROUNDS = 17, 5, 2  # values tried at once, and how often again around the best


def fulfilled(prompt: Prompt, shown: Tensor) -> Tensor:
    """Return the strengths ``[B, K]`` of portraits that the prompt has become true of."""
    ends = shown.clone()
    ends[:, INDEX[prompt.factor]] = 1.0 if prompt.sign > 0 else 0.0
    for name in _COVERS.get(prompt.factor, ()):
        ends[:, INDEX[name]] = 0.0
    if prompt.factor == "dye_hue":  # a hue shows only where there is dye
        ends[:, INDEX["hair_dye"]] = 1.0
    return ends


@dataclass(frozen=True, eq=False)
class Nearest:
    """The counterfactuals nearest to some images.

    Attributes:
        value: How far along the line they lie, ``[B]`` in 0..1.
        images: ``[B, 3, H, H]``.
    """

    value: Tensor
    images: Tensor


class Counterfactuals:
    """The line of true pictures of some portraits for one prompt."""

    def __init__(self, prompt: Prompt, shown: Tensor) -> None:
        self._start, self._end = shown, fulfilled(prompt, shown)

    def at(self, value: Tensor) -> Tensor:
        """Draw every portrait at its value ``[B]``, as ``[B, 3, H, H]`` in -1..1."""
        return render_strengths(torch.lerp(self._start, self._end, value[:, None]))

    @cached_property
    def region(self) -> Tensor:
        """Return where the end of the line differs from the portrait, ``[B, H, H]`` bool."""
        nothing = torch.zeros(len(self._start))
        return (self.at(nothing + 1) - self.at(nothing)).abs().amax(dim=1) > _VISIBLE

    @cached_property
    def _line(self) -> Tensor:
        """Return pictures at evenly spaced values, ``[V, B, 3, H, H]``."""
        return torch.stack([self.at(torch.full((len(self._start),), v)) for v in _spread(_COARSE)])

    def nearest(self, images: Tensor) -> Nearest:
        """Return for every image ``[B, 3, H, H]`` the counterfactual of least squared error, to a 64th.

        The line is tried evenly first, as its error may have several minima (a hue passes through others),
        then twice more around the best.
        """
        images = images.clamp(-1, 1)
        errors = (self._line - images).square().mean(dim=(2, 3, 4))
        best = torch.tensor(_spread(_COARSE))[errors.argmin(dim=0)]

        width = 1 / (_COARSE - 1)
        for _ in range(_ROUNDS):
            tried = [(best + width * (2 * v - 1)).clamp(0, 1) for v in _spread(_FINER)]
            errors = torch.stack([(self.at(v) - images).square().mean(dim=(1, 2, 3)) for v in tried])
            best = torch.stack(tried).gather(0, errors.argmin(dim=0)[None])[0]
            width /= (_FINER - 1) / 2
        return Nearest(best, self.at(best))


def _spread(count: int) -> list[float]:
    return torch.linspace(0, 1, count).tolist()


def errors(images: Tensor, truth: Tensor, before: Tensor, region: Tensor) -> dict[str, Tensor]:
    """Return how far images are from the truth, each ``[B]``.

    Args:
        images: Edited portraits, ``[B, 3, H, H]`` in -1..1.
        truth: The pictures that they should be.
        before: The portraits before the edit, as the generator draws them.
        region: Where the truth of the prompt differs from the portrait, ``[B, H, H]`` bool.

    Returns:
        ``psnr`` in dB and ``ssim`` of the whole picture; ``inside``, the mean CIEDE2000 to the truth in the
        region, NaN where there is hardly any; ``outside``, the mean CIEDE2000 to ``before`` two pixels and
        more away from it; ``chroma`` and ``chroma_before``, the mean of the largest less the smallest of red,
        green and blue in the region, 0..1.
    """
    images, before = images.clamp(-1, 1), before.clamp(-1, 1)
    inside = region & (region.sum(dim=(1, 2)) >= _SMALLEST)[:, None, None]
    outside = F.max_pool2d(region[:, None].float(), 2 * _EDGE + 1, 1, _EDGE)[:, 0] == 0
    similar = [
        structural_similarity(a, b, channel_axis=0, data_range=2.0)  # type: ignore[no-untyped-call]
        for a, b in zip(images.numpy(), truth.numpy(), strict=True)
    ]
    return {
        "psnr": psnr(images, truth),
        "ssim": torch.tensor(np.array(similar, dtype=np.float32)),
        "inside": _mean_in(difference(images, truth), inside),
        "outside": _mean_in(difference(images, before), outside),
        "chroma": _mean_in(_chroma(images), inside),
        "chroma_before": _mean_in(_chroma(before), inside),
    }


def difference(one: Tensor, other: Tensor) -> Tensor:
    """Return CIEDE2000 of every pixel of images in -1..1, ``[B, H, H]``; 1 is hardly seen, 10 at a glance."""
    found = deltaE_ciede2000(_lab(one), _lab(other))  # type: ignore[no-untyped-call]
    return torch.from_numpy(np.asarray(found, dtype=np.float32))


def _lab(images: Tensor) -> np.ndarray:
    rgb = ((images.clamp(-1, 1) + 1) / 2).double().permute(0, 2, 3, 1)
    return np.asarray(rgb2lab(rgb.numpy()))


def _chroma(images: Tensor) -> Tensor:
    return (images.amax(dim=1) - images.amin(dim=1)) / 2


def _mean_in(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of values ``[B, H, H]`` where a mask is set, NaN where it nowhere is."""
    return (values * mask).sum(dim=(1, 2)) / mask.sum(dim=(1, 2))
