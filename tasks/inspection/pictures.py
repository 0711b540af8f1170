"""Grids of small pictures with a line of text before each row."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from styleclip_core.images import to_uint8

_TILE, _GAP, _GROUP_GAP, _HEADER, _TITLE = 96, 3, 14, 22, 24


@dataclass(frozen=True, slots=True, eq=False)
class Strip:
    """A row of pictures.

    Attributes:
        title: Heading above the row; rows that follow with the same one have none.
        lines: Text before the row.
        images: Groups of pictures, ``[groups, columns, 3, H, W]`` in -1..1.
    """

    title: str
    lines: Sequence[str]
    images: Tensor


def draw_strips(strips: Sequence[Strip], columns: Sequence[str], *, tile: int = _TILE) -> bytes:
    """Draw rows of pictures as PNG.

    Args:
        strips: The rows; all have as many groups.
        columns: What stands over the columns of every group.
        tile: Side of a picture in pixels.

    Raises:
        ValueError: If there is no row.
    """
    if not strips:
        raise ValueError("there is no row to draw; give at least one")

    # the texts decide how wide the sheet is, so they are measured first
    font, small = ImageFont.load_default(size=14), ImageFont.load_default(size=12)
    margin = 16 + int(max(small.getlength(line) for strip in strips for line in strip.lines))
    # a title stands above the first of the rows that share it
    titled = [number == 0 or strip.title != strips[number - 1].title for number, strip in enumerate(strips)]
    groups = len(strips[0].images)
    across = len(columns) * (tile + _GAP) + _GROUP_GAP
    titles = int(max(font.getlength(strip.title) for strip in strips)) + 16
    width = max(margin + groups * across, titles)
    height = _HEADER + len(strips) * (tile + _GAP) + sum(titled) * _TITLE + _GAP

    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    for group in range(groups):
        for place, name in enumerate(columns):
            middle = margin + group * across + place * (tile + _GAP) + tile // 2
            pen.text((middle, _HEADER // 2), name, fill="black", font=small, anchor="mm")

    top = _HEADER
    for strip, begins in zip(strips, titled, strict=True):
        if begins:
            pen.text((8, top + _TITLE // 2), strip.title, fill="black", font=font, anchor="lm")
            top += _TITLE

        pen.multiline_text(
            (8, top + tile // 2), "\n".join(strip.lines), "black", small, anchor="lm", spacing=3
        )

        for group, images in enumerate(strip.images):
            for place, pixels in enumerate(to_uint8(images)):
                left = margin + group * across + place * (tile + _GAP)
                sheet.paste(_fitted(pixels, tile), (left, top))
        top += tile + _GAP

    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _fitted(pixels: np.ndarray, tile: int) -> Image.Image:
    """Return pixels ``[H, W, 3]`` as a square picture, its longer side of the tile's length."""
    image = Image.fromarray(pixels, "RGB")
    scale = tile / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))

    square = Image.new("RGB", (tile, tile), "white")
    scaled = image.resize(size, Image.Resampling.LANCZOS)
    square.paste(scaled, ((tile - size[0]) // 2, (tile - size[1]) // 2))
    return square
