"""The portrait renderer of the embedded world: known factors in, anti-aliased portraits out.

Every portrait is a function of K independent factors in 0..1, each of them smooth: signed
distances give every shape a soft edge about one pixel wide, so pixels are differentiable in every
factor. What a factor *does* (a beard is absent below some value and full above another) is its
strength, and strengths are what captions, the factor regressor and all measurements speak of.

Shapes: B batch, K factors, H side in pixels. Plane coordinates run from -1 to 1, y downwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

FACTORS: tuple[str, ...] = (
    "skin_dark", "hair_light", "hair_red", "hair_grey", "hair_dye", "dye_hue", "hair_long",
    "hair_volume", "smile", "mouth_open", "lip_red", "eye_size", "eye_blue", "brow_thick",
    "glasses", "beard", "hat", "face_width", "shift_x", "shift_y", "tilt", "bg_hue", "bg_light",
    "light_dir",
)  # fmt: skip
NUM_FACTORS = len(FACTORS)
INDEX = {name: index for index, name in enumerate(FACTORS)}

# Where a present-or-absent factor begins to show and where it is complete; all others show linearly.
_ONSET = {
    "hair_grey": (0.50, 0.85),
    "hair_red": (0.50, 0.88),
    "hair_dye": (0.62, 0.90),
    "lip_red": (0.40, 0.90),
    "glasses": (0.54, 0.82),
    "beard": (0.48, 0.85),
    "hat": (0.52, 0.85),
}
_RENDER_BATCH = 16  # small batches stay in cache: 2-3x faster per portrait than large ones


def factors_of(z: Tensor) -> Tensor:
    """Map normal latents ``[B, z_dim]`` to independent uniform factors ``[B, K]`` in 0..1.

    z is normalized to unit mean square first, as the mapping network does, so the factors belong
    to what the generator sees of z.
    """
    z = z * (z.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()
    return 0.5 * (1 + torch.erf(z[:, :NUM_FACTORS] / math.sqrt(2)))


def strengths(factors: Tensor) -> Tensor:
    """Return how strongly each factor shows, ``[B, K]`` in 0..1."""
    shown = factors.clone()
    for name, (start, full) in _ONSET.items():
        t = ((factors[:, INDEX[name]] - start) / (full - start)).clamp(0, 1)
        shown[:, INDEX[name]] = t * t * (3 - 2 * t)
    return shown


def visible(factors: Tensor) -> Tensor:
    """Return what of each factor can be seen, ``[B, K]`` in 0..1.

    As ``strengths``, but for hair colours that hide each other: dye covers grey, both cover red and
    lightness, and a hue of dye shows only where there is dye. Lightness and hue fade to their middle.
    """
    seen = strengths(factors)
    dye, grey = seen[:, INDEX["hair_dye"]], seen[:, INDEX["hair_grey"]]
    uncovered = (1 - dye) * (1 - grey)
    seen[:, INDEX["hair_red"]] *= uncovered
    seen[:, INDEX["hair_light"]] = 0.5 + (seen[:, INDEX["hair_light"]] - 0.5) * uncovered
    seen[:, INDEX["dye_hue"]] = 0.5 + (seen[:, INDEX["dye_hue"]] - 0.5) * dye
    seen[:, INDEX["hair_grey"]] = grey * (1 - dye)
    return seen


def render(factors: Tensor, size: int = 64) -> Tensor:
    """Draw portraits.

    Args:
        factors: ``[B, K]`` in 0..1.
        size: Side of the images in pixels.

    Returns:
        ``[B, 3, size, size]`` float32 in -1..1.
    """
    return render_strengths(strengths(factors), size)


def render_strengths(shown: Tensor, size: int = 64) -> Tensor:
    """Draw portraits from strengths ``[B, K]`` in 0..1, as ``render`` does from factors.

    What lies between two strengths lies between two pictures, without the onsets of the factors.
    """
    return torch.cat([_draw(part, size) for part in shown.split(_RENDER_BATCH)])


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours of a batch of portraits, each ``[B, 3]`` in 0..1."""

    skin: Tensor
    hair: Tensor
    lips: Tensor
    eyes: Tensor
    background: Tensor


def palette(shown: Tensor) -> Palette:
    """Return the colours that strengths ``[B, K]`` ask for."""

    def mix(a: tuple[float, ...] | Tensor, b: tuple[float, ...] | Tensor, name: str) -> Tensor:
        a, b = torch.as_tensor(a), torch.as_tensor(b)
        return a + (b - a) * shown[:, INDEX[name], None]

    skin = mix((0.98, 0.83, 0.72), (0.40, 0.25, 0.17), "skin_dark")
    natural = mix((0.09, 0.07, 0.06), (0.95, 0.80, 0.42), "hair_light")
    ginger = mix((0.50, 0.13, 0.04), (0.88, 0.38, 0.12), "hair_light")
    hair = mix(natural, ginger, "hair_red")
    hair = mix(hair, (0.70, 0.70, 0.71), "hair_grey")
    dye = _wheel(shown[:, INDEX["dye_hue"]], ((0.95, 0.30, 0.62), (0.20, 0.35, 0.92), (0.15, 0.72, 0.30)))
    hair = mix(hair, dye, "hair_dye")
    lips = mix(skin * torch.tensor((0.80, 0.62, 0.60)), (0.84, 0.03, 0.12), "lip_red")
    eyes = mix((0.28, 0.15, 0.06), (0.20, 0.50, 0.92), "eye_blue")
    hues = _wheel(shown[:, INDEX["bg_hue"]], ((0.98, 0.36, 0.34), (0.38, 0.86, 0.40), (0.36, 0.48, 1.0)))
    background = hues * mix((0.38,), (0.98,), "bg_light")
    return Palette(skin, hair, lips, eyes, background)


def hair_mask(factors: Tensor, size: int = 64) -> Tensor:
    """Return where hair colour shows, ``[B, 1, size, size]``, 1 inside and 0 outside."""
    grey = factors.clone()
    grey[:, INDEX["hair_dye"]] = 0
    dark = grey.clone()
    grey[:, INDEX["hair_grey"]], dark[:, INDEX["hair_grey"]] = 1, 0
    dark[:, INDEX["hair_light"]] = 0
    difference = (render(grey, size) - render(dark, size)).abs().amax(dim=1, keepdim=True)
    return (difference > 0.12).float()


class _Canvas:
    """A batch of images that shapes are painted over, back to front."""

    def __init__(self, background: Tensor, size: int) -> None:
        self.image = background
        self.sharpness = 1.21 * size

    def cover(self, distance: Tensor) -> Tensor:
        """Return the coverage of a shape from its signed distance."""
        return torch.sigmoid(-distance * self.sharpness)

    def paint(self, distance: Tensor, color: Tensor, opacity: Tensor | float = 1.0) -> None:
        """Paint a shape ``[B, 1, H, H]`` in ``color`` ``[B, 3, 1, 1]`` or ``[B, 3, H, H]``."""
        self.image = self.image + (color - self.image) * (self.cover(distance) * opacity)


def _draw(shown: Tensor, size: int) -> Tensor:
    colors = palette(shown)
    hair, skin = colors.hair[:, :, None, None], colors.skin[:, :, None, None]
    s = {name: shown[:, index].view(-1, 1, 1, 1) for name, index in INDEX.items()}
    axis = (torch.arange(size, dtype=torch.float32) + 0.5) / size * 2 - 1
    plane_y, plane_x = (grid[None, None] for grid in torch.meshgrid(axis, axis, indexing="ij"))
    background = colors.background[:, :, None, None] * (1 - 0.12 * (plane_y + 1) / 2)
    canvas = _Canvas(background.expand(len(shown), 3, size, size), size)

    # pose: small, as in aligned photographs
    angle = (s["tilt"] - 0.5) * 0.24
    body_x = plane_x - (s["shift_x"] - 0.5) * 0.13
    body_y = plane_y - (s["shift_y"] - 0.5) * 0.11 - 0.05
    x = body_x * angle.cos() + body_y * angle.sin()
    y = -body_x * angle.sin() + body_y * angle.cos()
    width = _lerp(0.40, 0.55, s["face_width"])
    light = (s["light_dir"] - 0.5) * 2

    _back_hair(canvas, x, y, width, s, hair)
    canvas.paint(_ellipse(body_x, body_y, 0.0, 1.20, 0.80, 0.42), _color(0.35, 0.38, 0.48))
    canvas.paint(_box(x, y, 0.17, 0.0, 0.82), skin * 0.80)
    face = _ellipse(x, y, 0.0, 0.06, width, 0.62)
    canvas.paint(face, (skin * (1 - 0.32 * (1 - light * x / 0.45).clamp(0, 2) * 0.5)).clamp(0, 1))
    _beard(canvas, x, y, face, s)
    _nose(canvas, x, y, skin)
    _mouth(canvas, x, y, s, colors.lips[:, :, None, None])
    _eyes(canvas, x, y, s, colors.eyes[:, :, None, None])
    volume = _lerp(0.05, 0.21, s["hair_volume"])
    cap = torch.maximum(
        _ellipse(x, y, 0.0, -0.12, width + volume * 0.9, 0.54 + volume),
        y + 0.30 + 0.08 * torch.cos(x * 5 + 0.6),
    )
    canvas.paint(cap, hair * (0.92 + 0.08 * light * x))
    crown = torch.maximum(_ellipse(x, y, 0.0, -0.42, width + 0.10, 0.44 + volume * 0.3), y + 0.38)
    brim = torch.maximum((y + 0.39).abs() - 0.06, x.abs() - (width + 0.24))
    canvas.paint(torch.minimum(crown, brim), _color(0.20, 0.22, 0.55), s["hat"])
    return canvas.image.clamp(0, 1) * 2 - 1


def _back_hair(
    canvas: _Canvas, x: Tensor, y: Tensor, width: Tensor, s: dict[str, Tensor], hair: Tensor
) -> None:
    volume, length = _lerp(0.05, 0.21, s["hair_volume"]), _lerp(-0.15, 0.82, s["hair_long"])
    top = _ellipse(x, y, 0.0, -0.12, width + volume, 0.56 + volume)
    sides = torch.maximum(torch.maximum(x.abs() - (width + volume * 0.85), -(y + 0.12)), y - length)
    canvas.paint(torch.minimum(torch.maximum(top, y - length.clamp(min=-0.1)), sides), hair * 0.82)


def _beard(canvas: _Canvas, x: Tensor, y: Tensor, face: Tensor, s: dict[str, Tensor]) -> None:
    below = torch.maximum(face, -(y - 0.20 - 0.06 * torch.cos(x * 6)))
    mouth_hole = canvas.cover(_ellipse(x, y, 0.0, 0.36, 0.25, 0.13))
    canvas.paint(below, _color(0.17, 0.11, 0.08), s["beard"] * 0.94 * (1 - mouth_hole))


def _nose(canvas: _Canvas, x: Tensor, y: Tensor, skin: Tensor) -> None:
    canvas.paint(_ellipse(x, y, 0.0, 0.15, 0.055, 0.042), skin * 0.74, 0.8)
    canvas.paint(_ellipse(x, y, 0.03, 0.06, 0.022, 0.11), skin * 0.86, 0.6)


def _mouth(canvas: _Canvas, x: Tensor, y: Tensor, s: dict[str, Tensor], lips: Tensor) -> None:
    smile, opening = (s["smile"] - 0.5) * 2, _lerp(0.0, 0.10, s["mouth_open"])
    half = _lerp(0.20, 0.27, s["smile"])
    relative = x / half
    curve = 0.37 - smile * 0.17 * (relative.square() - 0.45).clamp(-1, 1.1)
    profile = ((1 - relative.square()).clamp(min=0) + 1e-4).sqrt()
    outer = torch.maximum((y - curve).abs() - (0.042 + opening * 0.8) * profile, x.abs() - half)
    inner = torch.maximum((y - curve).abs() - opening * 0.75 * profile + 0.006, x.abs() - half + 0.03)
    canvas.paint(outer, lips)
    canvas.paint(inner, _color(0.25, 0.05, 0.06))
    canvas.paint(torch.maximum(inner, (y - curve) + opening * 0.25), _color(0.95, 0.94, 0.90), 0.9)


def _eyes(canvas: _Canvas, x: Tensor, y: Tensor, s: dict[str, Tensor], iris: Tensor) -> None:
    size, brow, frame = _lerp(0.058, 0.108, s["eye_size"]), _lerp(0.014, 0.056, s["brow_thick"]), 0.024
    black, center_y = _color(0.05, 0.05, 0.07), -0.05
    for center_x in (-0.195, 0.195):
        canvas.paint(_ellipse(x, y, center_x, center_y, size * 1.35, size), _color(0.97, 0.97, 0.97))
        canvas.paint(_ellipse(x, y, center_x, center_y, size * 0.78, size * 0.86), iris)
        canvas.paint(_ellipse(x, y, center_x, center_y, 0.030, 0.030), _color(0.03, 0.03, 0.04))
        arch = center_y - 0.195 + 0.05 * ((x - center_x) / 0.15).square()
        bar = torch.maximum((y - arch).abs() - brow, (x - center_x).abs() - 0.125)
        canvas.paint(bar, _color(0.10, 0.07, 0.06), 0.95)
        lens = _ellipse(x, y, center_x, center_y, 0.172, 0.148)
        canvas.paint(lens, _color(0.80, 0.92, 1.0), s["glasses"] * 0.22)
        canvas.paint(lens.abs() - frame, black, s["glasses"])
    bridge = torch.maximum((y - center_y).abs() - 0.02, x.abs() - 0.035)
    canvas.paint(bridge, black, s["glasses"])


def _ellipse(x: Tensor, y: Tensor, cx: float, cy: float, rx: Tensor | float, ry: Tensor | float) -> Tensor:
    radius = (((x - cx) / rx).square() + ((y - cy) / ry).square() + 1e-6).sqrt()
    return (radius - 1) * torch.minimum(torch.as_tensor(rx), torch.as_tensor(ry))


def _box(x: Tensor, y: Tensor, half: float, top: float, bottom: float) -> Tensor:
    return torch.maximum(x.abs() - half, torch.maximum(y - bottom, top - y))


def _color(red: float, green: float, blue: float) -> Tensor:
    return torch.tensor((red, green, blue)).view(1, 3, 1, 1)


def _lerp(a: float, b: float, t: Tensor) -> Tensor:
    return a + (b - a) * t


def _wheel(hue: Tensor, stops: tuple[tuple[float, float, float], ...]) -> Tensor:
    """Blend colours that sit evenly on 0..1 with smooth, overlapping weights; ``[B, 3]``."""
    places = torch.linspace(0, 1, len(stops))
    weights = torch.softmax(-(((hue[:, None] - places) / 0.22) ** 2), dim=1)
    return weights @ torch.tensor(stops)
