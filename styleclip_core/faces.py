"""Photographs <-> aligned faces: the FFHQ recipe, and the way back.

From Karras et al. 2019 (FFHQ), as e4e and pSp publish it. With the eye centres e_l, e_r, the mouth
corners m_l, m_r, their midpoints e and m, d = e_r - e_l and v = m - e,

    x = unit(d - flip(v) * (-1, 1)) * max(2 |d|, 1.8 |v|)      y = flip(x) * (-1, 1)
    c = e + 0.1 v                                              quad = c -x-y, c -x+y, c +x+y, c +x-y

and the quad is drawn as an upright square, from a photograph that is shrunk first where it is much
larger, and padded with its own blurred reflection where the quad leaves it. Unlike the published
code, the quad is kept, so that an edited face can be put back.

Coordinates are pixels (x, y) of the upright photograph, the centre of its first pixel is (0, 0).
Left and right are the viewer's. Knows no detector: landmarks come from ``models.mtcnn``, or from anyone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image

from styleclip_core.errors import FaceError, LandmarksError

Form = Literal["68", "5"]

_LEFT_EYE, _RIGHT_EYE, _MOUTH_CORNERS = slice(36, 42), slice(42, 48), (48, 54)  # of the 68 points
_MIN_SIDE, _MAX_COORDINATE = 4.0, 1e6
_BAND = 256  # rows of a photograph that are placed in a quad at once
_MAX_ENLARGEMENT = 4  # a quad this many times as large as its photograph is a mistake of units


@dataclass(frozen=True, eq=False)
class Face:
    """A face that was found in a photograph.

    Attributes:
        landmarks: ``[68, 2]`` in dlib's order, or ``[5, 2]``: eye centres left and right, tip of the
            nose, mouth corners left and right. Pixels.
        score: How sure the detector is, 0 to 1; 1 for landmarks that a person gave.
    """

    landmarks: np.ndarray
    score: float

    @property
    def form(self) -> Form:
        """Return which of the two forms the landmarks have."""
        return "68" if len(self.landmarks) == 68 else "5"


@dataclass(frozen=True, eq=False)
class FaceQuad:
    """The part of a photograph that an aligned face shows, a parallelogram.

    Attributes:
        corners: Top left, bottom left, bottom right, top right of the face, ``[4, 2]`` in pixels.
    """

    corners: np.ndarray

    def __post_init__(self) -> None:
        corners = self.corners
        if corners.shape != (4, 2) or not np.isfinite(corners).all():
            raise FaceError(f"a quad has four finite corners [4, 2], got {_brief(corners)}")

        slant = np.abs(corners[0] + corners[2] - corners[1] - corners[3]).max()
        if slant > 1e-3 * max(self.size, 1.0):
            raise FaceError(f"the quad {_brief(corners)} is no parallelogram; give one that alignment made")

        # landmarks as fractions of the photograph, from other tools, come out as a face of no size
        if not self.size >= _MIN_SIDE:
            raise FaceError(
                f"the face is {self.size:.3g} pixels wide; landmarks and quads are in pixels of the "
                "photograph, not in fractions of it"
            )

    @property
    def size(self) -> float:
        """Return the side of the square, in pixels; of a parallelogram, the root of its area."""
        right, down = self._axes()
        return float(np.sqrt(abs(right[0] * down[1] - right[1] * down[0])))

    def _axes(self) -> tuple[np.ndarray, np.ndarray]:
        return self.corners[3] - self.corners[0], self.corners[1] - self.corners[0]

    def into_unit_square(self) -> np.ndarray:
        """Return what maps pixels, counted from the first corner, into 0..1 of the face; ``[2, 2]``."""
        return np.linalg.inv(np.stack(self._axes(), axis=1))

    def to_list(self) -> list[float]:
        """Return the corners as x0, y0, ..., x3, y3."""
        return [float(value) for value in self.corners.ravel()]

    @classmethod
    def from_list(cls, values: Sequence[float]) -> Self:
        """Return the quad of what ``to_list`` gave.

        Raises:
            FaceError: If these are not four corners of a parallelogram.
        """
        corners = np.asarray(values, dtype=np.float64)
        if corners.shape != (8,):
            raise FaceError(f"a quad is eight numbers x0, y0, ..., x3, y3, got {_brief(corners)}")
        return cls(corners.reshape(4, 2))


@dataclass(frozen=True, eq=False)
class AlignedFace:
    """A face, upright and of the size that encoders read.

    Attributes:
        image: RGB, square.
        quad: What of the photograph it shows; what ``paste_faces`` needs.
        padded: Whether part of it lies outside the photograph, and is invented.
    """

    image: Image.Image
    quad: FaceQuad
    padded: bool


def check_landmarks(landmarks: npt.ArrayLike) -> np.ndarray:
    """Return landmarks as ``[68, 2]`` or ``[5, 2]`` float64.

    Raises:
        LandmarksError: If they have another shape, or are not finite, or no pixel coordinates.
    """
    try:
        points = np.array(landmarks, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise LandmarksError(f"landmarks must be numbers [68, 2] or [5, 2]: {error}") from error

    if points.shape not in ((68, 2), (5, 2)):
        raise LandmarksError(
            f"landmarks have the shape {list(points.shape)}; give 68 points in dlib's order, [68, 2], or "
            "eye centres, nose and mouth corners, [5, 2]"
        )

    if not np.isfinite(points).all():
        row = int(np.argmin(np.isfinite(points).all(axis=1)))
        raise LandmarksError(f"landmark {row} is {points[row].tolist()}; leave out faces with hidden points")

    if np.abs(points).max() > _MAX_COORDINATE:
        raise LandmarksError(
            f"a landmark lies at {np.abs(points).max():.3g}; landmarks are pixels of the photograph"
        )
    return points


def quad_from_landmarks(landmarks: npt.ArrayLike) -> FaceQuad:
    """Return the square that FFHQ cuts out for a face.

    Args:
        landmarks: ``[68, 2]`` in dlib's order or ``[5, 2]``, in pixels; see ``Face``.

    Raises:
        LandmarksError: If the landmarks are not finite numbers in one of the two shapes, or lie so
            close together that they span no face.
    """
    points = check_landmarks(landmarks)
    if len(points) == 68:
        eye_left, eye_right = points[_LEFT_EYE].mean(axis=0), points[_RIGHT_EYE].mean(axis=0)
        mouth_left, mouth_right = points[_MOUTH_CORNERS, :]
    else:
        eye_left, eye_right, _, mouth_left, mouth_right = points

    eyes = (eye_left + eye_right) * 0.5
    eye_to_eye = eye_right - eye_left
    eye_to_mouth = (mouth_left + mouth_right) * 0.5 - eyes

    # along the eyes and across the line to the mouth, together: x of the formula above
    x = eye_to_eye - np.flipud(eye_to_mouth) * [-1, 1]
    length = np.hypot(*x)
    half = max(np.hypot(*eye_to_eye) * 2.0, np.hypot(*eye_to_mouth) * 1.8)

    if not length > 1e-9 * max(half, 1.0) or 2 * half < _MIN_SIDE:
        raise LandmarksError(
            f"the landmarks span no face: eyes {np.hypot(*eye_to_eye):.3g} and mouth "
            f"{np.hypot(*eye_to_mouth):.3g} pixels apart; give pixels (x, y), not fractions of the photograph"
        )

    x *= half / length
    y = np.flipud(x) * [-1, 1]
    c = eyes + eye_to_mouth * 0.1
    return FaceQuad(np.stack([c - x - y, c - x + y, c + x + y, c + x - y]))


def align_face(
    image: Image.Image,
    landmarks: npt.ArrayLike,
    *,
    output_size: int = 256,
    transform_size: int | None = None,
) -> AlignedFace:
    """Cut a face out of a photograph as FFHQ does.

    Args:
        image: The photograph, upright RGB.
        landmarks: ``[68, 2]`` or ``[5, 2]``, in pixels of ``image``; see ``Face``.
        output_size: Side of the result in pixels: 256 as e4e and pSp read it, 1024 as in FFHQ.
        transform_size: Side in pixels at which the quad is sampled, before it is scaled down: 4096
            in FFHQ; None samples at ``output_size``, as e4e does.

    Returns:
        The aligned face. Its quad is that of the landmarks, but for the fraction of a pixel by which
        the recipe shifts what it shrinks first. No picture between is larger than the photograph, or than
        ``(9 * output_size) ** 2`` pixels where it is padded, or than ``transform_size ** 2``.

    Raises:
        LandmarksError: If the landmarks span no face.
        FaceError: If the face lies outside the photograph, or is far larger than it.
        ValueError: If the image is not RGB, or a size is not positive.
    """
    transform_size = output_size if transform_size is None else transform_size
    if image.mode != "RGB":
        raise ValueError(f"the photograph must be RGB, got {image.mode}; decode it with decode_image")
    if min(output_size, transform_size) < 1:
        raise ValueError(
            f"output_size and transform_size must be positive, got {output_size}, {transform_size}"
        )

    wanted = quad_from_landmarks(landmarks)
    side = float(np.hypot(*(wanted.corners[3] - wanted.corners[0])))
    _check_place(wanted, image)

    # shrink
    quad, scale = wanted.corners.copy(), np.ones(2)
    shrink = int(np.floor(side / output_size * 0.5))
    if shrink > 1:
        full = image.size
        image = image.resize(
            (max(round(full[0] / shrink), 1), max(round(full[1] / shrink), 1)), Image.Resampling.LANCZOS
        )
        quad, side, scale = quad / shrink, side / shrink, np.divide(full, image.size)
    shown = FaceQuad((quad + 0.5) * scale - 0.5) if shrink > 1 else wanted

    # crop
    border = max(int(np.rint(side * 0.1)), 3)
    low, high = np.floor(quad.min(axis=0)).astype(int), np.ceil(quad.max(axis=0)).astype(int)
    first, last = np.maximum(low - border, 0), np.minimum(high + border, image.size)
    if (last - first < image.size).any():
        image = image.crop((*first.tolist(), *last.tolist()))
        quad = quad - first

    # pad
    low, high = np.floor(quad.min(axis=0)).astype(int), np.ceil(quad.max(axis=0)).astype(int)
    pad = np.maximum(np.concatenate([border - low, high - image.size + border]), 0)
    padded = bool(pad.max() > border - 4)
    if padded:
        pad = np.maximum(pad, int(np.rint(side * 0.3)))
        image = _pad_with_blur(image, pad.tolist(), blur=side * 0.02)
        quad = quad + pad[:2]

    # transform
    size = (transform_size, transform_size)
    corners = tuple((quad + 0.5).ravel().tolist())
    image = image.transform(size, Image.Transform.QUAD, corners, Image.Resampling.BILINEAR)
    if output_size < transform_size:
        image = image.resize((output_size, output_size), Image.Resampling.LANCZOS)
    return AlignedFace(image, shown, padded)


def _check_place(quad: FaceQuad, image: Image.Image) -> None:
    """Refuse a quad that has hardly anything to do with the photograph."""
    low, high = quad.corners.min(axis=0), quad.corners.max(axis=0)
    if (high < 2).any() or (low > np.subtract(image.size, 3)).any():
        raise FaceError(
            f"the face at {_brief(quad.corners.mean(axis=0))} lies outside the photograph of "
            f"{image.width} x {image.height} pixels; were its landmarks taken from another size?"
        )

    if quad.size > _MAX_ENLARGEMENT * max(image.size):
        raise FaceError(
            f"the face is {quad.size:.0f} pixels wide, the photograph {image.width} x {image.height}; "
            "were its landmarks taken from another size?"
        )


def _pad_with_blur(image: Image.Image, pad: list[int], blur: float) -> Image.Image:
    """Pad by reflection, blurred towards the edge and faded into the median colour.

    Args:
        image: RGB.
        pad: Pixels left, top, right, bottom; all positive.
        blur: Standard deviation in pixels.
    """
    left, top, right, bottom = pad
    height, width = image.height + top + bottom, image.width + left + right

    y, x = np.ogrid[:height, :width]
    mask = np.maximum(  # 0 at the border of the photograph, 1 at that of the padding, negative inside
        1 - np.minimum(np.float32(x) / left, np.float32(width - 1 - x) / right),
        1 - np.minimum(np.float32(y) / top, np.float32(height - 1 - y) / bottom),
    )

    # one colour after the other, as the floats of a large canvas are most of what aligning takes
    canvas = np.empty((height, width, 3), np.uint8)
    for colour, band in enumerate(image.split()):
        pixels = np.pad(np.asarray(band, np.float32), ((top, bottom), (left, right)), "reflect")

        # blurred, then faded to the median: a reflection as sharp as the face would look like a second one
        pixels += (_gaussian(pixels, blur) - pixels) * np.clip(mask * 3 + 1, 0, 1)
        pixels += (np.median(pixels) - pixels) * np.clip(mask, 0, 1)
        canvas[..., colour] = np.clip(np.rint(pixels), 0, 255)
    return Image.fromarray(canvas, "RGB")


def _gaussian(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Blur ``[H, W]`` as ``scipy.ndimage.gaussian_filter`` does: mirrored edges, cut at 4 sigma."""
    radius = int(4 * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = torch.from_numpy((weights / weights.sum()).astype(np.float32))

    # one axis after the other; scipy's gaussian_filter mirrors with the edge pixel, which is "symmetric"
    blurred = torch.from_numpy(np.pad(pixels, radius, "symmetric"))[None, None]  # [1, 1, H, W]
    blurred = F.conv2d(blurred, kernel.view(1, 1, -1, 1))
    blurred = F.conv2d(blurred, kernel.view(1, 1, 1, -1))
    return blurred[0, 0].numpy()


def paste_faces(
    photograph: Image.Image, faces: Sequence[tuple[Image.Image, FaceQuad]], *, feather: float = 0.08
) -> Image.Image:
    """Put edited faces back where they were cut out.

    The aligned face of one person often shows part of a neighbor, unedited. So where quads overlap, a
    face counts for more the farther a pixel lies from the edge of its quad, and the order of the faces
    does not matter.

    Args:
        photograph: The photograph, upright RGB.
        faces: Edited faces, RGB, of any size, each with its quad from ``align_face``; a face is scaled to
            its quad, antialiased.
        feather: Width of the fade at the edge of a quad, as a fraction of its side.

    Returns:
        The photograph with the faces; pixels outside the quads are the photograph's own. No picture between
        is larger than the photograph or a face.

    Raises:
        ValueError: If an image is not RGB, or ``feather`` is not above 0 and at most 0.5.
    """
    modes = [photograph.mode, *(face.mode for face, _ in faces)]
    if set(modes) != {"RGB"}:
        raise ValueError(f"photograph and faces must be RGB, got {', '.join(modes)}")
    if not 0 < feather <= 0.5:
        raise ValueError(f"feather must be above 0 and at most 0.5, got {feather:g}")

    windows = [_Window.around(quad, photograph.size) for _, quad in faces]

    # the fourth power lets the nearer face win soon, and the border between two of them has no step
    total = np.zeros((photograph.height, photograph.width), np.float32)
    for window in windows:
        total[window.part] += window.depth**4

    pixels = np.array(photograph)
    change = np.zeros(pixels.shape, np.float32)

    for (face, _), window in zip(faces, windows, strict=True):
        # smoothstep: the edge of a face is seen where brightness has a kink, not only where it jumps
        inside = np.clip(window.depth / feather, 0, 1)
        mask = inside * inside * (3 - 2 * inside)  # [h, w]

        weight = window.depth**4
        share = np.divide(weight, total[window.part], out=np.zeros_like(mask), where=weight > 0)
        change[window.part] += (window.draw(face) - pixels[window.part]) * (mask * share)[..., None]

    return Image.fromarray(np.rint(pixels + change).clip(0, 255).astype(np.uint8), "RGB")


@dataclass(frozen=True, eq=False)
class _Window:
    """The part of a photograph around a quad.

    Attributes:
        quad: The quad.
        first: Its first pixel, (x, y).
        depth: Distance of each pixel from the edge of the quad as a fraction of its side, ``[h, w]``; 0
            outside.
    """

    quad: FaceQuad
    first: np.ndarray
    depth: np.ndarray

    @property
    def part(self) -> tuple[slice, slice]:
        """Return the rows and columns of the photograph that it covers."""
        (x, y), (height, width) = self.first.tolist(), self.depth.shape
        return slice(y, y + height), slice(x, x + width)

    @classmethod
    def around(cls, quad: FaceQuad, size: tuple[int, int]) -> Self:
        """Return the window of a quad in a photograph of that size; it is empty if they do not meet."""
        corners = quad.corners
        first = np.clip(np.floor(corners.min(axis=0)), 0, size).astype(int)
        last = np.maximum(np.clip(np.ceil(corners.max(axis=0)) + 1, 0, size).astype(int), first)

        depth = np.empty((last - first)[::-1], np.float32)
        rows, x = quad.into_unit_square(), np.arange(first[0], last[0]) - corners[0, 0]

        # a band at a time: places in double precision take many times what the window itself does
        for top in range(0, len(depth), _BAND):
            band = depth[top : top + _BAND]
            y = np.arange(first[1] + top, first[1] + top + len(band))[:, None] - corners[0, 1]
            u, v = (across * x + down * y for across, down in rows)
            band[:] = np.minimum(np.minimum(u, 1 - u), np.minimum(v, 1 - v)).clip(0)
        return cls(quad, first, depth)

    def draw(self, face: Image.Image) -> np.ndarray:
        """Draw a face into its quad, ``[h, w, 3]`` float32."""
        if not self.depth.size:
            return np.zeros((*self.depth.shape, 3), np.float32)
        # scaled down first where it is finer than the photograph, then sampled
        corners = self.quad.corners
        lengths = [max(1, round(float(np.hypot(*(corners[end] - corners[0]))))) for end in (3, 1)]
        small = (min(face.width, lengths[0]), min(face.height, lengths[1]))
        if small != face.size:
            face = face.resize(small, Image.Resampling.LANCZOS)

        rows = self.quad.into_unit_square() * np.array(small)[:, None]
        shift = rows @ (self.first - corners[0] - 0.5)
        affine = (*rows[0].tolist(), float(shift[0]), *rows[1].tolist(), float(shift[1]))

        size = (self.depth.shape[1], self.depth.shape[0])
        drawn = face.transform(size, Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC)
        return np.asarray(drawn, np.float32)


def _brief(values: np.ndarray) -> str:
    return np.array2string(np.asarray(values), precision=1, separator=", ", threshold=10).replace("\n", "")
