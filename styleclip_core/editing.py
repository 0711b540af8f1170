"""From a text direction to a style direction, and from there to an edited style code.

StyleCLIP's global directions (section 6): channels whose relevance reaches beta take part in
proportion to it. As in the published code, relevance is divided by the largest one and multiplied
by the channel's standard deviation. So alpha is in standard deviations of the most relevant channel.

Shapes: N editable style channels, D width of the CLIP embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from styleclip_core.errors import LayoutMismatchError, NoRelevantChannelError
from styleclip_core.relevance import RelevanceTable
from styleclip_core.style_space import StyleCode, StyleLayout
from styleclip_core.tuned import AnyGenerator


@dataclass(frozen=True, slots=True)
class ChannelSelection:
    """Which channels take part in an edit.

    Attributes:
        beta: Threshold on |relevance|, 0..1; lower values edit more channels. None to use ``top_k``.
        top_k: Number of most relevant channels. None to use ``beta``.
        include: Patterns of layer names that may be edited, e.g. ``("b4.*", "b8.*")``; empty for all.
        exclude: Patterns of layer names that stay, e.g. ``("b64.*",)`` to leave fine colours alone.
    """

    beta: float | None = None
    top_k: int | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.beta is None) == (self.top_k is None):
            raise ValueError(f"give beta or top_k, one of them; got beta={self.beta}, top_k={self.top_k}")
        if self.beta is not None and not 0 <= self.beta <= 1:
            raise ValueError(f"beta is a threshold on |relevance| from 0 to 1, got {self.beta}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is a number of channels from 1, got {self.top_k}")


@dataclass(frozen=True, slots=True, eq=False)
class StyleDirection:
    """A direction in style space.

    Attributes:
        delta: Change of the editable channels at alpha = 1, ``[N]`` float32.
        relevance: Relevance of all channels, ``[N]`` float32, before selection.
        channels: Number of channels that take part.
        layers: Layers they lie in, in the layout's order.
    """

    delta: Tensor
    relevance: Tensor
    channels: int
    layers: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class EditedLatents:
    """Where edits have brought a batch, so that the next one can start there. A value, never changed.

    W+ methods move ``w_plus``; what moves style space adds to ``offset``. The style code is that of
    ``w_plus``, plus the offset.

    Attributes:
        w_plus: Rows of w, ``[B, L, W]``.
        offset: What was added to the flat style codes, ``[B, M]``; None for nothing yet.
    """

    w_plus: Tensor
    offset: Tensor | None = None

    def codes(self, generator: AnyGenerator) -> StyleCode:
        """Return the style codes."""
        styles = generator.styles(self.w_plus)
        if self.offset is None:
            return styles
        return StyleCode.from_flat(generator.layout, styles.flat() + self.offset)

    def at(self, w_plus: Tensor) -> EditedLatents:
        """Return these with another w_plus and the same offset."""
        return EditedLatents(w_plus, self.offset)

    def add(self, step: Tensor) -> EditedLatents:
        """Return these with a step in flat style space, ``[B, M]`` or ``[M]``, added."""
        step = step.expand(len(self.w_plus), -1)
        return EditedLatents(self.w_plus, step if self.offset is None else self.offset + step)


def editable_mask(layout: StyleLayout, include: Sequence[str], exclude: Sequence[str]) -> Tensor:
    """Return which editable channels the layer patterns allow, ``[N]`` bool.

    Raises:
        LayoutMismatchError: If a pattern matches no layer: a misspelt mask must not pass for an edit.
    """
    names = [layer.name for layer in layout.editable]
    for pattern in (*include, *exclude):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise LayoutMismatchError(
                f"layer pattern {pattern!r} matches no editable layer; there are {', '.join(names)}"
            )
    mask = torch.zeros(layout.num_editable, dtype=torch.bool)
    for name, part in layout.editable_slices.items():
        wanted = not include or any(fnmatchcase(name, pattern) for pattern in include)
        mask[part] = wanted and not any(fnmatchcase(name, pattern) for pattern in exclude)
    return mask


def style_direction(
    table: RelevanceTable, text_direction: Tensor, std: Tensor, selection: ChannelSelection
) -> StyleDirection:
    """Turn a text direction into a direction in style space (StyleCLIP, section 6).

    Args:
        table: CLIP direction of every editable style channel.
        text_direction: Unit vector from the neutral to the target prompt, ``[D]``.
        std: Standard deviation of every editable channel, ``[N]``.
        selection: Which channels take part.

    Returns:
        The direction; the edit is ``s + alpha * delta``.

    Raises:
        NoRelevantChannelError: If no channel reaches beta; the message has the nearest beta that works.
        LayoutMismatchError: If ``std`` or a layer pattern does not fit the table's layout.
        ValueError: If ``text_direction`` is not ``[D]``.
    """
    return select_channels(table.layout, table.relevance(text_direction), std, selection)


def select_channels(
    layout: StyleLayout, relevance: Tensor, std: Tensor, selection: ChannelSelection
) -> StyleDirection:
    """Turn the relevance of every channel, ``[N]``, into a style direction; see ``style_direction``."""
    if std.shape != (layout.num_editable,) or relevance.shape != std.shape:
        raise LayoutMismatchError(
            f"the layout has {layout.num_editable} channels, their deviations {list(std.shape)}, their "
            f"relevance {list(relevance.shape)}"
        )
    allowed = editable_mask(layout, selection.include, selection.exclude)
    size = torch.where(allowed, relevance.abs(), torch.zeros_like(relevance))
    strongest = size.max().item()
    if selection.beta is not None:
        kept = (size >= selection.beta) & (size > 0)
    else:
        ranked = size.argsort(descending=True, stable=True)[: selection.top_k]
        kept = torch.zeros_like(allowed)
        kept[ranked] = size[ranked] > 0
    if not kept.any():
        layer, channel = layout.channel_of(int(size.argmax()))
        wanted = f"beta={selection.beta:g}" if selection.beta is not None else "a relevance above 0"
        raise NoRelevantChannelError(
            f"no style channel reaches {wanted}: the largest |relevance| is {strongest:.3f}, at "
            f"{layer}[{channel}]; give beta <= {strongest:.3f} or prompts that differ more"
        )
    delta = torch.where(kept, relevance / strongest * std.to(relevance), torch.zeros_like(relevance))
    slices = layout.editable_slices
    layers = tuple(name for name, part in slices.items() if kept[part].any())
    return StyleDirection(delta, relevance, int(kept.sum()), layers)


def beta_for(layout: StyleLayout, relevance: Tensor, selection: ChannelSelection, channels: int) -> float:
    """Return the largest beta at which so many channels take part, of those that the layer masks allow.

    0 where there are not so many with any relevance.

    Raises:
        LayoutMismatchError: If a layer pattern does not fit the layout.
    """
    allowed = editable_mask(layout, selection.include, selection.exclude)
    size = relevance.abs()[allowed].sort(descending=True).values
    return size[channels - 1].item() if channels <= len(size) else 0.0
