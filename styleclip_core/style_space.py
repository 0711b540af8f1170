"""Style space S of StyleGAN2: which style channels exist, in what order, and codes made of them.

Every modulated convolution scales its input channels by one style vector, an affine map of its
row of w_plus. All style vectors of an image, side by side, are its style code. The layout names
them as NVIDIA's code does: ``b4.conv1``, ``b4.torgb``, ``b8.conv0``, ... A flat channel index
counts convolution layers only, in that order; toRGB channels are stored and never edited by default.

Shapes: B batch, C channels of one layer, N editable (convolution) channels, M all channels.
This module holds no weights; a generator derives its layout from itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from styleclip_core.errors import LayoutMismatchError


@dataclass(frozen=True, slots=True)
class StyleLayer:
    """One modulated convolution of the synthesis network.

    Attributes:
        name: NVIDIA's name, e.g. ``"b16.conv1"``.
        resolution: Side of the layer's output in pixels.
        channels: Number of style channels, the input channels of the convolution.
        ws_index: Row of w_plus that the layer's affine map reads.
        is_torgb: Whether the layer writes colour instead of features.
    """

    name: str
    resolution: int
    channels: int
    ws_index: int
    is_torgb: bool = False


@dataclass(frozen=True)
class StyleLayout:
    """Order and names of the style channels of one generator."""

    layers: tuple[StyleLayer, ...]

    @cached_property
    def by_name(self) -> dict[str, StyleLayer]:
        """Return the layers by their name."""
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def editable(self) -> tuple[StyleLayer, ...]:
        """Return the convolution layers: all but toRGB."""
        return tuple(layer for layer in self.layers if not layer.is_torgb)

    @cached_property
    def num_channels(self) -> int:
        """Return the number of all style channels, M."""
        return sum(layer.channels for layer in self.layers)

    @cached_property
    def num_editable(self) -> int:
        """Return the number of editable style channels, N."""
        return sum(layer.channels for layer in self.editable)

    @cached_property
    def editable_slices(self) -> dict[str, slice]:
        """Return the range of flat indices of every editable layer."""
        slices, start = {}, 0

        for layer in self.editable:
            slices[layer.name] = slice(start, start + layer.channels)
            start += layer.channels

        return slices

    @cached_property
    def editable_index(self) -> Tensor:
        """Return the places of the editable channels in a flat style code, ``[N]`` int64."""
        mask = torch.cat([torch.full((layer.channels,), not layer.is_torgb) for layer in self.layers])
        return mask.nonzero().squeeze(1)

    def layer(self, name: str) -> StyleLayer:
        """Return the layer called ``name``.

        Raises:
            LayoutMismatchError: If the generator has no such layer.
        """
        if name not in self.by_name:
            raise LayoutMismatchError(
                f"no style layer {name!r}; this generator has {', '.join(self.by_name)}"
            )
        return self.by_name[name]

    def channel_of(self, flat_index: int) -> tuple[str, int]:
        """Return layer name and channel of an editable channel's flat index."""
        for name, part in self.editable_slices.items():
            if part.start <= flat_index < part.stop:
                return name, flat_index - part.start
        raise IndexError(f"style channel {flat_index} is outside 0..{self.num_editable - 1}")


class StyleCode(Mapping[str, Tensor]):
    """Style codes of a batch of images: layer name -> ``[B, C]``. A value, never changed in place."""

    def __init__(self, layout: StyleLayout, styles: Mapping[str, Tensor]) -> None:
        sizes = {len(style) for style in styles.values()}
        shapes_fit = all(
            layer.name in styles and styles[layer.name].shape[1:] == (layer.channels,)
            for layer in layout.layers
        )

        if len(styles) != len(layout.layers) or not shapes_fit or len(sizes) != 1:
            got = {name: list(style.shape) for name, style in styles.items()}
            want = {layer.name: ["B", layer.channels] for layer in layout.layers}
            raise LayoutMismatchError(f"a style code must have {want}, got {got}")

        # in the layout's order, whatever order they came in: flat() relies on it
        self.layout = layout
        self._styles = {layer.name: styles[layer.name] for layer in layout.layers}

    def __getitem__(self, name: str) -> Tensor:
        return self._styles[self.layout.layer(name).name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._styles)

    def __len__(self) -> int:
        return len(self._styles)

    @property
    def batch_size(self) -> int:
        """Return B, the number of codes."""
        return len(next(iter(self._styles.values())))

    def replace(self, name: str, style: Tensor) -> StyleCode:
        """Return a code whose layer ``name`` is ``style`` ``[B, C]``; this one is left as it is.

        Raises:
            LayoutMismatchError: If the layer does not exist or the shape differs.
        """
        self.layout.layer(name)
        return StyleCode(self.layout, {**self._styles, name: style})

    def select(self, index: Tensor | slice) -> StyleCode:
        """Return the codes of some images of the batch."""
        return StyleCode(self.layout, {name: style[index] for name, style in self._styles.items()})

    def to(self, device: torch.device | str) -> StyleCode:
        """Return the code on another device."""
        return StyleCode(self.layout, {name: style.to(device) for name, style in self._styles.items()})

    def flat(self) -> Tensor:
        """Return all layers side by side, toRGB too, ``[B, M]``."""
        return torch.cat(list(self._styles.values()), dim=1)

    def editable(self) -> Tensor:
        """Return the layers that edits may change side by side, without toRGB, ``[B, N]``."""
        return torch.cat([self._styles[layer.name] for layer in self.layout.editable], dim=1)

    @property
    def device(self) -> torch.device:
        """Return where the codes lie."""
        return next(iter(self._styles.values())).device

    @classmethod
    def from_flat(cls, layout: StyleLayout, flat: Tensor) -> StyleCode:
        """Build codes from ``flat()``'s form, ``[B, M]``.

        Raises:
            LayoutMismatchError: If the width is not the layout's.
        """
        if flat.ndim != 2 or flat.shape[1] != layout.num_channels:
            raise LayoutMismatchError(
                f"a flat style code of this generator is [B, {layout.num_channels}], got {list(flat.shape)}"
            )

        parts = flat.split([layer.channels for layer in layout.layers], dim=1)
        return cls(layout, {layer.name: part for layer, part in zip(layout.layers, parts, strict=True)})

    def add(self, direction: Tensor) -> StyleCode:
        """Return the code moved by ``direction`` over the editable channels, ``[N]`` or ``[B, N]``."""
        if direction.shape[-1] != self.layout.num_editable:
            raise LayoutMismatchError(
                f"a style direction of this generator has {self.layout.num_editable} channels, "
                f"got {direction.shape[-1]}"
            )

        # toRGB keeps its styles, and the tensors themselves, bit for bit
        moved = dict(self._styles)
        for name, part in self.layout.editable_slices.items():
            moved[name] = moved[name] + direction[..., part]

        return StyleCode(self.layout, moved)
