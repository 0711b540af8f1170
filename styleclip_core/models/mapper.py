"""Latent mappers: a code -> the step that brings it to what a prompt says (StyleCLIP, section 5).

The published networks under their published names, so that their checkpoints load: one small
fully connected network for all rows of w_plus (``single``), one per level (``levels``), or one per layer
of style space, with toRGB (``style-full``) or without (``style``). Ours alone is ``style-relevant``: the
way of a matched edit (``styleclip_core.matching``) to which networks per style layer add, in the channels
that the prompt concerns, and in their deviations.

Shapes: B batch, L rows of w_plus, W w_dim, C channels of one style layer, N those of all that move.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from styleclip_core.errors import CheckpointError, LayoutMismatchError
from styleclip_core.files.checkpoint import Checkpoint
from styleclip_core.models.network import Network, filled
from styleclip_core.models.stylegan2 import FullyConnected
from styleclip_core.models.weights import read_network, refusing, save_network
from styleclip_core.settings.mapper_training import PUBLISHED_STRENGTH as PUBLISHED_STRENGTH
from styleclip_core.settings.mapper_training import Kind
from styleclip_core.style_space import StyleCode

_FORMAT = "styleclip-mapper-1"
_LEVELS = {"course": slice(0, 4), "medium": slice(4, 8), "fine": slice(8, None)}  # the published spelling
_MAX_LAYERS = 64  # 26 at 1024 pixels


@dataclass(frozen=True, slots=True)
class MapperConfig:
    """What fixes the architecture of a mapper.

    Attributes:
        kind: Which networks there are.
        levels: For ``"levels"``, the levels that move: of ``course``, ``medium``, ``fine``.
        widths: For the style kinds, number of the style layer (toRGB counted) -> its channels.
        w_dim: Width of w.
    """

    kind: Kind
    levels: tuple[str, ...] = ()
    widths: tuple[tuple[int, int], ...] = ()
    w_dim: int = 512


class _Network(nn.Module):
    """Four fully connected layers behind a normalization over axis 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # a hundredth of the learning rate, as StyleGAN2's own mapping network (lr_mul of the published code)
        layers = [FullyConnected(width, width, activate=True, lr_multiplier=0.01) for _ in range(4)]
        self.mapping = nn.Sequential(nn.Identity(), *layers)  # the published numbering starts at 1

    def forward(self, x: Tensor) -> Tensor:
        """Map rows ``[B, R, width]`` or vectors ``[B, width]``.

        The published normalization is over axis 1: the rows, or the vector's elements.
        """
        step: Tensor = self.mapping(x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt())
        return step


class Way(nn.Module):
    """Where all images are brought before a network adds to it; see ``styleclip_core.relevant``.

    Attributes:
        delta: Change at the centre, ``[N]``.
        pull: Share of its distance from the centre that a channel loses, ``[N]``.
        centre: ``[N]``.
        width: What the networks' outputs are multiplied by, ``[N]``; 0 where a channel stays.
    """

    delta: Tensor
    pull: Tensor
    centre: Tensor
    width: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("delta", "pull", "centre", "width"):
            self.register_buffer(name, torch.zeros(channels))

    def forward(self, styles: Tensor, added: Tensor) -> Tensor:
        """Return the step of editable channels, from their values and the networks' outputs, ``[B, N]``."""
        step = self.delta - self.pull * (styles - self.centre) + self.width * added
        return torch.where(self.width > 0, step, 0.0)


class Mapper(Network):
    """A latent mapper."""

    def __init__(self, config: MapperConfig) -> None:
        super().__init__()
        self.config = config

        if config.kind == "single":
            self.mapping = _Network(config.w_dim)
        elif config.kind == "levels":
            for level in config.levels:
                setattr(self, f"{level}_mapping", _Network(config.w_dim))
        else:
            for layer, width in config.widths:
                setattr(self, f"mapper_{layer}", _Network(width))
            if config.kind == "style-relevant":
                self.way = Way(sum(width for _, width in config.widths))

    @property
    def in_style_space(self) -> bool:
        """Return whether it moves style codes instead of w_plus."""
        return self.config.kind.startswith("style")

    def step(self, w_plus: Tensor) -> Tensor:
        """Return the step of w_plus ``[B, L, W]``, of the same shape, before any strength.

        Levels that the mapper does not move are zero. The published edit is ``w_plus + 0.1 * step``.

        Raises:
            ValueError: If this mapper moves style codes, or w_plus has another shape.
        """
        if self.in_style_space:
            raise ValueError("this mapper moves style codes; give it one (style_step)")
        if w_plus.ndim != 3 or w_plus.shape[2] != self.config.w_dim:
            raise ValueError(f"w_plus must be [B, L, {self.config.w_dim}], got {list(w_plus.shape)}")

        if self.config.kind == "single":
            whole: Tensor = self.mapping(w_plus)
            return whole

        # a level that was not trained has no network: its rows stay where they are
        out = torch.zeros_like(w_plus)
        for level in self.config.levels:
            rows = _LEVELS[level]
            out[:, rows] = getattr(self, f"{level}_mapping")(w_plus[:, rows])

        return out

    def style_step(self, styles: StyleCode) -> StyleCode:
        """Return the step of style codes, before any strength; layers it does not move are zero.

        Raises:
            ValueError: If this mapper moves w_plus.
            LayoutMismatchError: If the codes have other layers than the mapper was made for.
        """
        if not self.in_style_space:
            raise ValueError("this mapper moves w_plus; give it one (step)")

        layers = styles.layout.layers

        widths = tuple(
            (index, layer.channels)
            for index, layer in enumerate(layers)
            if self.config.kind == "style-full" or not layer.is_torgb
        )

        # networks are numbered, not named: those of another generator may fit by chance, and edit nonsense
        if widths != self.config.widths:
            raise LayoutMismatchError(
                f"this mapper was made for style layers of the widths {dict(self.config.widths)}, the codes "
                f"have {dict(widths)}; give the generator it was trained with"
            )

        moved = dict(self.config.widths)
        if self.config.kind == "style-relevant":
            whole = self.way(styles.editable(), self.added(styles))
            return StyleCode.from_flat(
                styles.layout,
                torch.zeros_like(styles.flat()).index_copy(
                    1, styles.layout.editable_index.to(whole.device), whole
                ),
            )

        # a layer without a network keeps its style: a step of zeros, so that callers need not know the kind
        return StyleCode(
            styles.layout,
            {
                layer.name: getattr(self, f"mapper_{index}")(styles[layer.name])
                if index in moved
                else torch.zeros_like(styles[layer.name])
                for index, layer in enumerate(layers)
            },
        )

    def added(self, styles: StyleCode) -> Tensor:
        """Return what the networks add to the way of relevant channels, in widths, ``[B, N]``."""
        layers = styles.layout.layers
        return torch.cat(
            [getattr(self, f"mapper_{index}")(styles[layers[index].name]) for index, _ in self.config.widths],
            dim=1,
        )

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Self:
        """Build a mapper of the published names in evaluation mode.

        Raises:
            CheckpointError: If the names are of no mapper, or a tensor is missing, left over, of another
                shape or not finite.
        """
        config = _infer_config(state)
        return filled(lambda: cls(config), state, what="latent mapper")


def _infer_config(state: Mapping[str, Tensor]) -> MapperConfig:
    levels = tuple(level for level in _LEVELS if f"{level}_mapping.mapping.1.weight" in state)

    layers = sorted(
        (int(match[1]), tensor.shape[0])
        for name, tensor in state.items()
        if (match := re.fullmatch(r"mapper_(\d+)\.mapping\.1\.weight", name))
    )

    if levels:
        return MapperConfig("levels", levels, w_dim=state[f"{levels[0]}_mapping.mapping.1.weight"].shape[0])
    # "mapping" twice: the network's own name, and that of the layers in it
    if "mapping.mapping.1.weight" in state:
        return MapperConfig("single", w_dim=state["mapping.mapping.1.weight"].shape[0])

    if len(layers) > _MAX_LAYERS:
        raise CheckpointError(f"it has {len(layers)} layers, more than any style space")
    if layers:
        kind: Kind = "style-full" if 1 in dict(layers) else "style"  # layer 1 is the first toRGB
        kind = "style-relevant" if "way.width" in state and kind == "style" else kind
        return MapperConfig(kind, widths=tuple(layers))
    raise CheckpointError(
        "these weights are of no latent mapper (no 'course_mapping', 'mapping' or 'mapper_0')"
    )


def load_mapper(path: str | Path, device: str | torch.device = "cpu") -> Mapper:
    """Read a latent mapper.

    Args:
        path: A checkpoint of the published training (``state_dict`` with ``mapper.*``, whatever levels
            it has), the mapper's own state dict, or the safetensors that ``save_mapper`` writes.
        device: Where its weights go.

    Raises:
        CheckpointError: If the file is missing, damaged, hostile or no mapper.
    """
    return read_network(
        path,
        device,
        ours=lambda path, state, _: _build(path, state),
        theirs=lambda file: _build(file.path, _mapper_state(file)),
    )


def save_mapper(mapper: Mapper, path: str | Path) -> None:
    """Write a mapper as safetensors."""
    save_network(mapper, path, _FORMAT, asdict(mapper.config))


def _build(path: Path, state: dict[str, Tensor]) -> Mapper:
    with refusing(str(path), "give a latent mapper's checkpoint"):
        return Mapper.from_state(state)


def _mapper_state(file: Checkpoint) -> dict[str, Tensor]:
    weights = file.weights
    names = weights if isinstance(weights, dict) else {}
    return file.state(weights, "mapper." if any(str(name).startswith("mapper.") for name in names) else "")
