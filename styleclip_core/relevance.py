"""Per-channel CLIP relevance: which style channels move an image along a text direction.

The global-direction method of StyleCLIP (Patashnik et al. 2021, section 6). Each style channel is
moved up and down on a set of style codes; the mean of the unit changes of the CLIP image embedding
is that channel's direction. The table of all directions depends on the generator and on CLIP,
never on a prompt, so it is measured once and serves every edit.

What a row stores are sufficient statistics: how many codes showed a change, and the mean direction,
not renormalized. Two tables over disjoint codes merge into the table over their union, and the
length of the mean, 0..1, says how much the codes agree. Every channel starts from untouched codes;
the published script lets visited channels stay at their mean, which is not copied here.

Shapes: B style codes, C channels of a layer, N editable channels, D width of the CLIP embedding.
This module knows nothing of prompts: a text direction is a unit vector here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from styleclip_core.batches import Batches, free_memory
from styleclip_core.compiling import compiler
from styleclip_core.errors import ArtifactConflictError, LayoutMismatchError, NotFiniteError
from styleclip_core.models.stylegan2 import Generator
from styleclip_core.moves import ChannelMoves, bytes_per_move
from styleclip_core.settings.relevance import RelevanceSettings as RelevanceSettings
from styleclip_core.style_space import StyleCode, StyleLayout

EmbedImages = Callable[[Tensor], Tensor]
_ONE_SIZE = 8  # channels of a batch where rounding must not depend on how many there are
# channels of a batch, each moved both ways: on a CPU more of them leave its caches, on a GPU they fill it
_FASTEST = {"cpu": 16, "cuda": 128}
_INVISIBLE = 1e-6  # a change of the unit embedding below this length has no direction


@dataclass(frozen=True, slots=True, eq=False)
class ChannelDirections:
    """Measured directions of some channels of one layer.

    Attributes:
        layer: Name of the style layer.
        channels: Channel numbers within the layer, ``[C]`` int64.
        n: Codes that showed a change, ``[C]`` int64.
        direction: Mean unit change of the embedding, ``[C, D]`` float32; zero where ``n`` is 0.
    """

    layer: str
    channels: Tensor
    n: Tensor
    direction: Tensor


@torch.no_grad()
def measure_channels(
    generator: Generator,
    embed_images: EmbedImages,
    codes: StyleCode,
    *,
    layer: str,
    channels: Iterable[int],
    mean: Tensor,
    std: Tensor,
    settings: RelevanceSettings,
    expected: Tensor | None = None,
) -> ChannelDirections:
    """Measure the CLIP directions of channels of one layer (StyleCLIP, section 6.1).

    Code by code: what all moves of a code share is computed once, see ``styleclip_core.moves``. Other batches
    change directions by rounding errors, divided by how far the channel moves the embedding.

    With a tolerance, a channel's codes end where its direction is certain. As a rounding error could decide
    that, networks are then given batches of one size: a row is the same, bit for bit, whatever channels are
    measured with it, as long as ``batch_size`` and the memory allow that size.

    Args:
        generator: Draws the images.
        embed_images: Images ``[b, 3, H, H]`` in -1..1 -> unit embeddings ``[b, D]``.
        codes: B style codes, left unchanged.
        layer: Name of an editable layer.
        channels: Channels of that layer.
        mean: Mean of the layer's channels over many codes, ``[C of the layer]``.
        std: Their standard deviation, ``[C of the layer]``.
        settings: How the channels are moved.
        expected: Unit derivatives of the embedding by these channels at every code, ``[B, C, D]``.
            With a tolerance, few codes are then enough: see ``styleclip_core.derivatives``.

    Returns:
        One row per channel, in the order given; ``expected`` rows count all codes they stand for.

    Raises:
        LayoutMismatchError: If the layer does not exist, is a toRGB layer, or has fewer channels.
        NotFiniteError: If an embedding is not finite.
    """
    wanted = list(channels)
    chosen = torch.as_tensor(wanted, dtype=torch.int64)
    check_layer(generator, layer, chosen, mean, std)

    # layers below the moved one are computed once for all channels of a code
    position = [each.name for each in generator.layout.layers].index(layer)
    device, dtype = generator.device, getattr(torch, settings.precision)
    broken = torch.zeros((), dtype=torch.int64, device=device)
    directions, on_device = Accumulator(len(chosen), device, expected), chosen.to(device)

    # each channel is moved both ways
    size = bytes_per_move(generator, layer, dtype) * 2
    together = settings.batch_size // 2 or fastest_batch(device)
    if settings.tolerance:
        together = min(together, _ONE_SIZE)
    batches = Batches(together, free=free_memory(device), bytes_per_item=size)
    compiled = compiler(settings.compile, device)
    for index in range(codes.batch_size):  # alone: a code's images must not depend on its neighbours
        rows = directions.unsettled(settings)
        if not len(rows):
            break

        code = codes.select(slice(index, index + 1))
        # once for all channels, so in float32: rounded here, all of them would move from another image
        below = generator.advance(generator.begin(1), code, position)
        moves = ChannelMoves(generator, code, layer, below, dtype=dtype, compiled=compiled)
        values = _moved(code[layer][0], mean, std, settings)

        def ends(some: Tensor, moves: ChannelMoves = moves, values: Tensor = values) -> Tensor:
            now = on_device[some]
            return _embed(moves.images(now, values[:, now]), embed_images, settings)

        left = len(rows)
        whole = _filled(rows, batches.size) if settings.tolerance else rows
        for some, embedded in batches.run(whole, ends, even=True):
            new, left = min(left, len(some)), max(left - len(some), 0)
            directions.add(some[:new], *(each[:new] for each in embedded.chunk(2)))
            broken += embedded.isfinite().logical_not().any(dim=1).sum()

    # asked once, as the host waits for the answer; such an embedding would count as no change seen
    if int(broken):
        raise NotFiniteError(
            f"{int(broken)} embeddings of moves of {layer} are not finite in {settings.precision}; use "
            "float32, or bfloat16, which reaches as far"
        )
    n = directions.n if expected is None else (directions.n > 0) * codes.batch_size
    return ChannelDirections(layer, chosen, n.cpu(), directions.mean().float().cpu())


def fastest_batch(device: torch.device) -> int:
    """Return how many channels are moved at once where memory allows it and nothing else is said."""
    return _FASTEST.get(device.type, _FASTEST["cpu"])


def _filled(rows: Tensor, size: int) -> Tensor:
    """Return rows ``[n]``, with as many of the first one behind them as make whole batches."""
    return torch.cat([rows, rows[:1].expand(-len(rows) % size)])


def _embed(images: Tensor, embed_images: EmbedImages, settings: RelevanceSettings) -> Tensor:
    if settings.eight_bit:
        levels = images.mul(127.5).add_(127.5).clamp_(0, 255)
        levels = levels.floor_() if settings.eight_bit_by == "truncate" else levels.round_()
        images = levels.div_(127.5).sub_(1)
    # CLIP computes as it was loaded, whatever the generator does: what counts are small changes of its output
    embedded = embed_images(images).float()
    if settings.precision != "float16":
        return embedded

    # what overflows there is white after CLIP's clamp, and must not pass for a picture
    whole = images.sum(dim=(1, 2, 3)).isfinite()
    return torch.where(whole[:, None], embedded, torch.nan)


def check_layer(generator: Generator, layer: str, chosen: Tensor, mean: Tensor, std: Tensor) -> None:
    """Refuse channels that cannot be measured, and statistics of another layer.

    Raises:
        LayoutMismatchError: With what does not fit.
    """
    found = generator.layout.layer(layer)
    if found.is_torgb:
        raise LayoutMismatchError(f"{layer} is a toRGB layer: its channels have no relevance")
    if mean.shape != (found.channels,) or std.shape != (found.channels,):
        raise LayoutMismatchError(
            f"{layer} has {found.channels} channels, but mean is {list(mean.shape)} and std {list(std.shape)}"
        )
    if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < found.channels:
        raise LayoutMismatchError(
            f"{layer} has channels 0..{found.channels - 1}, "
            f"asked for {int(chosen.min())}..{int(chosen.max())}"
        )


def _moved(style: Tensor, mean: Tensor, std: Tensor, settings: RelevanceSettings) -> Tensor:
    """Return what every channel of one code's layer is moved to, up, then down, ``[2, C]``."""
    centre = style if settings.centre == "sample" else mean.to(style)
    step = settings.strength * std.to(style)
    return torch.stack([centre + step, centre - step])


class Accumulator:
    """Sums unit differences per row in float64, on the device: nothing waits for it.

    With ``expected`` ``[B, C, D]`` what is summed is their difference from that.
    """

    def __init__(self, rows: int, device: torch.device, expected: Tensor | None = None) -> None:
        self.seen = 0
        self.n = torch.zeros(rows, dtype=torch.int64, device=device)
        self.squares = torch.zeros(rows, dtype=torch.float64, device=device)
        self.total: Tensor | None = None
        self.open = torch.arange(rows, device=device)
        self.expected = None if expected is None else expected.to(device)
        self.centre = None if expected is None else expected.double().mean(dim=0).to(device)

    def add(self, rows: Tensor, up: Tensor, down: Tensor) -> None:
        """Add the embeddings ``[b, D]`` of some rows moved up and moved down."""
        difference = up.double() - down.double()
        length = difference.norm(dim=1, keepdim=True)
        visible = length > _INVISIBLE
        unit = difference / length
        if self.expected is not None:
            unit = unit - self.expected[self.seen - 1, rows].to(unit)
        unit = torch.where(visible, unit, 0.0)
        if self.total is None:
            self.total = torch.zeros(len(self.n), up.shape[1], dtype=torch.float64, device=up.device)
        where = rows.to(up.device)
        self.total.index_add_(0, where, unit)
        self.squares.index_add_(0, where, unit.square().sum(dim=1))
        self.n.index_add_(0, where, visible[:, 0].long())

    def unsettled(self, settings: RelevanceSettings) -> Tensor:
        """Return the rows that the next code is measured for; call once before every code.

        Where an error lies within rounding of the tolerance, processors may stop at other numbers of
        codes.
        """
        if settings.tolerance and self.seen >= settings.minimum:
            error = self._variance().sqrt()
            length = (self._mean_change() if self.centre is None else self.centre).norm(dim=1)
            settled = ((error <= settings.tolerance * length) & (self.n > 1)) | (self.n == 0)
            self.open = self.open[~settled[self.open]]
        self.seen += 1
        return self.open

    def mean(self) -> Tensor:
        """Return the mean per row, zero where nothing was seen."""
        change = self._mean_change()
        if self.centre is None or self.expected is None or self.total is None:
            return change
        # a correction that is no larger than its error does more harm than good (James and Stein)
        left = 1 - self.n / len(self.expected)
        doubt = self._variance() * left / change.square().sum(dim=1).clamp(min=_INVISIBLE**2)
        direction = self.centre + (1 - doubt).clamp(0, 1)[:, None] * change
        direction = direction / direction.norm(dim=1, keepdim=True).clamp(min=1)
        return torch.where(self.n[:, None] > 0, direction, 0.0)

    def _mean_change(self) -> Tensor:
        if self.total is None:
            return torch.zeros(len(self.n), 0, dtype=torch.float64)
        return self.total / self.n.clamp(min=1)[:, None]

    def _variance(self) -> Tensor:
        """Return the variance of the mean change, summed over coordinates, infinite below two codes."""
        spread = self.squares / self.n.clamp(min=1) - self._mean_change().square().sum(dim=1)
        variance = spread.clamp(min=0) / (self.n - 1).clamp(min=1)
        return torch.where(self.n > 1, variance, torch.inf)


@dataclass(frozen=True, slots=True, eq=False)
class RelevanceTable:
    """CLIP directions of all editable style channels of one generator.

    Attributes:
        layout: Names the N channels, in the order of the rows.
        n: Codes behind each row, ``[N]`` int64; 0 marks a channel that CLIP cannot see.
        direction: Mean unit change of the CLIP embedding, ``[N, D]`` float32, not renormalized.
    """

    layout: StyleLayout
    n: Tensor
    direction: Tensor

    def __post_init__(self) -> None:
        rows = self.layout.num_editable
        if self.direction.ndim != 2 or len(self.direction) != rows or self.n.shape != (rows,):
            raise LayoutMismatchError(
                f"the layout has {rows} editable style channels, but direction is "
                f"{list(self.direction.shape)} and n is {list(self.n.shape)}"
            )

    @property
    def consistency(self) -> Tensor:
        """Return how much the codes agree, ``[N]`` in 0..1: the length of the mean direction."""
        length: Tensor = self.direction.norm(dim=1)
        return length.clamp(max=1)

    @property
    def standard_error(self) -> Tensor:
        """Return the standard error of the mean direction, ``[N]``; infinite below two codes.

        The changes are unit vectors, so their variance around the mean is 1 - |mean|^2.
        """
        return standard_error(self.consistency, self.n)

    def relevance(self, text_direction: Tensor) -> Tensor:
        """Return cos(D_c, text direction) of every channel, ``[N]``; 0 for invisible channels.

        Raises:
            ValueError: If ``text_direction`` is not ``[D]``.
        """
        if text_direction.shape != self.direction.shape[1:]:
            raise ValueError(
                f"the table's CLIP embedding is {self.direction.shape[1]} wide, the text direction "
                f"{list(text_direction.shape)}; use the CLIP that the table was built with"
            )
        usable = (self.n > 0) & self.direction.isfinite().all(dim=1)
        unit = F.normalize(self.direction.nan_to_num(), dim=1)
        return torch.where(usable, unit @ text_direction.to(unit), torch.zeros_like(unit[:, 0]))

    def merge(self, other: RelevanceTable) -> RelevanceTable:
        """Return the table over both sets of codes, which must be disjoint.

        Raises:
            ArtifactConflictError: If the tables describe other channels or another CLIP.
        """
        if other.layout != self.layout or other.direction.shape != self.direction.shape:
            raise ArtifactConflictError(
                f"tables of {len(self.direction)} x {self.direction.shape[1]} and "
                f"{len(other.direction)} x {other.direction.shape[1]} do not describe the same models"
            )
        n = self.n + other.n
        total = self.direction.double() * self.n[:, None] + other.direction.double() * other.n[:, None]
        return RelevanceTable(self.layout, n, (total / n.clamp(min=1)[:, None]).float())

    @classmethod
    def from_parts(cls, layout: StyleLayout, parts: Iterable[ChannelDirections]) -> RelevanceTable:
        """Assemble a table from measured channels; those not measured stay invisible (n = 0).

        Raises:
            ArtifactConflictError: If there is no part, or a channel comes twice.
        """
        measured = list(parts)
        if not measured:
            raise ArtifactConflictError("no measured channels to assemble; build the parts first")
        width = max(part.direction.shape[1] for part in measured)
        n = torch.zeros(layout.num_editable, dtype=torch.int64)
        direction = torch.zeros(layout.num_editable, width)
        seen = torch.zeros(layout.num_editable, dtype=torch.bool)
        for part in measured:
            rows = part.channels + layout.editable_slices[layout.layer(part.layer).name].start
            if seen[rows].any():
                raise ArtifactConflictError(f"channels of {part.layer} are in two parts of one table")
            seen[rows] = True
            n[rows] = part.n
            if part.direction.shape[1]:
                direction[rows] = part.direction
        return cls(layout, n, direction)


def standard_error(consistency: Tensor, n: Tensor) -> Tensor:
    """Return sqrt((1 - consistency^2) / (n - 1)), infinite below two codes."""
    variance = (1 - consistency.square()).clamp(min=0) / (n - 1).clamp(min=1)
    return torch.where(n > 1, variance.sqrt(), torch.full_like(variance, torch.inf))
