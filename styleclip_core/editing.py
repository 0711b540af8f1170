"""From a text direction to a style direction, and from there to an edited style code.

StyleCLIP's global directions (section 6): channels whose relevance reaches beta take part in
proportion to it. As in the published code, relevance is divided by the largest one and multiplied
by the channel's standard deviation. So alpha is in standard deviations of the most relevant channel.

An alternative are *least-squares* weights for the same channels: relevance looks at every channel by itself,
these weights bring what all of them do together nearest to the text direction. Channels that do the same
share the weight, and the side effects of one are cancelled by others.

Shapes: N editable style channels, D width of the CLIP embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from styleclip_core.decisions import ranked
from styleclip_core.errors import LayoutMismatchError, NoRelevantChannelError
from styleclip_core.relevance import RelevanceTable
from styleclip_core.settings.editing import END_OF_WAY
from styleclip_core.settings.editing import ChannelSelection as ChannelSelection
from styleclip_core.settings.editing import Weights as Weights
from styleclip_core.settings.editing import allowed_layers as allowed_layers
from styleclip_core.style_space import StyleCode, StyleLayout
from styleclip_core.tuned import AnyGenerator

_RIDGE = 0.03  # of the squared lengths of the rows that take part; chosen on prompts that judge nothing


@dataclass(frozen=True, slots=True, eq=False)
class StyleDirection:
    """A direction in style space.

    Attributes:
        delta: Change of the editable channels at alpha = 1, ``[N]`` float32.
        relevance: Relevance of all channels, ``[N]`` float32, before selection.
        channels: Number of channels that take part.
        layers: Layers they lie in, in the layout's order.
        pull: Share of its distance from ``centre`` that a channel loses at alpha = 1, ``[N]``, so that
            ``delta`` is what happens at the centre; None where all images move alike. See
            ``styleclip_core.matching``.
        centre: ``[N]``; with ``pull``.
        further: Change for each 1 of alpha beyond ``END_OF_WAY``, ``[N]``, in place of ``delta`` and
            ``pull``; None where the way goes straight on.
    """

    delta: Tensor
    relevance: Tensor
    channels: int
    layers: tuple[str, ...]
    pull: Tensor | None = None
    centre: Tensor | None = None
    further: Tensor | None = None

    def change(self, alpha: float, codes: StyleCode | None = None) -> Tensor:
        """Return the change of the editable channels of some codes at an alpha, ``[N]`` or ``[B, N]``.

        The codes may be left out where a direction does not depend on them.
        """
        step = self.delta if codes is None else self.step(codes)
        if self.further is None or alpha <= END_OF_WAY:
            return alpha * step
        return END_OF_WAY * step + (alpha - END_OF_WAY) * self.further.to(step)

    def step(self, codes: StyleCode) -> Tensor:
        """Return the change of the editable channels of some codes at alpha = 1, ``[N]`` or ``[B, N]``."""
        if self.pull is None or self.centre is None:
            return self.delta.to(codes.device)
        styles = codes.editable()
        return self.delta.to(styles) - self.pull.to(styles) * (styles - self.centre.to(styles))


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
        """Return a copy with another w_plus and the same offset."""
        return EditedLatents(w_plus, self.offset)

    def add(self, step: Tensor) -> EditedLatents:
        """Return a copy with a step in flat style space, ``[B, M]`` or ``[M]``, added."""
        step = step.expand(len(self.w_plus), -1)
        return EditedLatents(self.w_plus, step if self.offset is None else self.offset + step)


def editable_mask(layout: StyleLayout, include: Sequence[str], exclude: Sequence[str]) -> Tensor:
    """Return which editable channels the layer patterns allow, ``[N]`` bool.

    Raises:
        LayoutMismatchError: If a pattern matches no layer, or together they leave none: a misspelt mask must
            not pass for an edit.
    """
    allowed = allowed_layers([layer.name for layer in layout.editable], include, exclude)
    mask = torch.zeros(layout.num_editable, dtype=torch.bool)
    for name in allowed:
        mask[layout.editable_slices[name]] = True
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
    relevance = table.relevance(text_direction)
    kept = _kept(table.layout, relevance, std, selection)

    if selection.weights == "relevance":
        return _direction(table.layout, relevance, relevance, kept, std)

    # least squares over the channels that relevance chose: a prompt edits the same ones either way
    weights = torch.zeros_like(relevance)
    weights[kept] = least_squares(table.direction[kept], text_direction)
    return _direction(table.layout, relevance, weights, kept, std)


def select_channels(
    layout: StyleLayout, relevance: Tensor, std: Tensor, selection: ChannelSelection
) -> StyleDirection:
    """Turn the relevance of every channel, ``[N]``, into a style direction; see ``style_direction``.

    Raises:
        ValueError: If the selection asks for least-squares weights: they need a table's rows.
    """
    if selection.weights != "relevance":
        raise ValueError(f"{selection.weights} weights need a relevance table, not relevance alone")
    return _direction(layout, relevance, relevance, _kept(layout, relevance, std, selection), std)


def least_squares(rows: Tensor, text_direction: Tensor) -> Tensor:
    """Return the weights w of rows by which their sum comes nearest to a text direction.

    A row is a mean of unit changes, one of each code. On a single image channel c changes the embedding by
    its row give or take ``1 - |row_c|^2``, the variance of its unit changes. So this minimizes the expected
    squared distance on a single image, ``|sum_c w_c row_c - t|^2 + sum_c w_c^2 (1 - |row_c|^2)``, as if
    channels erred independently; as they do not, ``r |w|^2`` is added, where r is 3 % of the sum of the
    squared lengths of the rows.

    Args:
        rows: Of the channels that take part, ``[k, D]``, of lengths 0..1.
        text_direction: Unit vector t, ``[D]``.

    Returns:
        ``[k]``, in the rows' number format.
    """
    few, text = rows.double(), text_direction.to(rows.device, torch.float64)
    size = few.square().sum(dim=1)
    light = few / ((1 - size).clamp(min=0) + _RIDGE * size.sum())[:, None]

    # (R R' + P)^-1 R t = P^-1 R (1 + R' P^-1 R)^-1 t: thousands of channels, hundreds of dimensions
    inner = torch.eye(few.shape[1], dtype=few.dtype, device=few.device) + few.T @ light
    weights: Tensor = light @ torch.linalg.solve(inner, text)
    return weights.to(rows)


def _kept(layout: StyleLayout, relevance: Tensor, std: Tensor, selection: ChannelSelection) -> Tensor:
    """Return which channels take part, ``[N]`` bool; at least one, of fitting relevance and deviations."""
    if std.shape != (layout.num_editable,) or relevance.shape != std.shape:
        raise LayoutMismatchError(
            f"the layout has {layout.num_editable} channels, their deviations {list(std.shape)}, their "
            f"relevance {list(relevance.shape)}"
        )
    return chosen_channels(layout, relevance, selection)


def chosen_channels(layout: StyleLayout, relevance: Tensor, selection: ChannelSelection) -> Tensor:
    """Return which channels of some relevance ``[N]`` take part, ``[N]`` bool; at least one.

    Raises:
        NoRelevantChannelError: If no channel reaches beta; the message has the nearest beta that works.
        LayoutMismatchError: If a layer pattern does not fit the layout.
    """
    allowed = editable_mask(layout, selection.include, selection.exclude)
    size = torch.where(allowed, relevance.abs(), torch.zeros_like(relevance))

    if selection.beta is not None:
        kept = (size >= selection.beta) & (size > 0)
    else:
        most = ranked(size)[: selection.top_k]
        kept = torch.zeros_like(allowed)
        kept[most] = size[most] > 0

    # an edit of no channel would leave every image as it was, and the run would look like a success
    if not kept.any():
        strongest, (layer, channel) = size.max().item(), layout.channel_of(int(size.argmax()))
        wanted = f"beta={selection.beta:g}" if selection.beta is not None else "a relevance above 0"
        raise NoRelevantChannelError(
            f"no style channel reaches {wanted}: the largest |relevance| is {strongest:.3f}, at "
            f"{layer}[{channel}]; give beta <= {strongest:.3f} or prompts that differ more"
        )

    return kept


def _direction(
    layout: StyleLayout, relevance: Tensor, weights: Tensor, kept: Tensor, std: Tensor
) -> StyleDirection:
    """Return the direction of weights ``[N]``, of which the largest becomes 1."""
    # the published normalization: alpha counts deviations of the channel that matters most
    strongest = weights[kept].abs().max()
    delta = torch.where(kept, weights / strongest * std.to(weights), torch.zeros_like(weights))

    return StyleDirection(delta, relevance, int(kept.sum()), layers_of(layout, kept))


def layers_of(layout: StyleLayout, kept: Tensor) -> tuple[str, ...]:
    """Return the layers that some channels, ``[N]`` bool, lie in, in the layout's order."""
    return tuple(name for name, part in layout.editable_slices.items() if kept[part].any())


def beta_for(layout: StyleLayout, relevance: Tensor, selection: ChannelSelection, channels: int) -> float:
    """Return the largest beta that lets this many channels take part, of those that the layer masks allow.

    0 if fewer of them have any relevance.

    Raises:
        LayoutMismatchError: If a layer pattern does not fit the layout.
    """
    allowed = editable_mask(layout, selection.include, selection.exclude)
    # beta is compared with >=, so the size of the last channel itself lets in exactly so many
    size = relevance.abs()[allowed].sort(descending=True).values
    return size[channels - 1].item() if channels <= len(size) else 0.0
