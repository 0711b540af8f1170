"""rosinality's stylegan2-pytorch names <-> NVIDIA's, one rule per tensor for both directions.

The two projects compute the same function from the same numbers: weights are not even flipped. Only
names, leading axes of length one and the gain folded into the upsampling kernel differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from styleclip_core.errors import CheckpointError

_CONV = {
    "weight": ("conv.weight", (1, 0)), "bias": ("activate.bias", (0, 0)),
    "affine.weight": ("conv.modulation.weight", (0, 0)), "affine.bias": ("conv.modulation.bias", (0, 0)),
    "noise_strength": ("noise.weight", (1, 0)),
}  # fmt: skip
_TORGB = {
    "weight": ("conv.weight", (1, 0)), "bias": ("bias", (1, 2)),
    "affine.weight": ("conv.modulation.weight", (0, 0)), "affine.bias": ("conv.modulation.bias", (0, 0)),
}  # fmt: skip


def _pairs(mapping_layers: int, blocks: int) -> Iterator[tuple[str, str, tuple[int, int]]]:
    """Yield NVIDIA's name, rosinality's, and how many axes of length one theirs has before and behind."""
    for index in range(mapping_layers):
        for part in ("weight", "bias"):
            yield f"mapping.fc{index}.{part}", f"style.{index + 1}.{part}", (0, 0)

    yield "synthesis.b4.const", "input.input", (1, 0)

    # the block of 4 pixels has one convolution, every later one an upsampling one before it
    for index in range(blocks):
        block = f"synthesis.b{4 << index}"
        convs = [("conv1", "conv1", 0)] if index == 0 else [
            ("conv0", f"convs.{2 * index - 2}", 2 * index - 1),
            ("conv1", f"convs.{2 * index - 1}", 2 * index),
        ]  # fmt: skip

        for ours, theirs, noise in convs:
            for part, (their_part, shape) in _CONV.items():
                yield f"{block}.{ours}.{part}", f"{theirs}.{their_part}", shape
            yield f"{block}.{ours}.noise_const", f"noises.noise_{noise}", (2, 0)

        theirs = "to_rgb1" if index == 0 else f"to_rgbs.{index - 1}"
        for part, (their_part, shape) in _TORGB.items():
            yield f"{block}.torgb.{part}", f"{theirs}.{their_part}", shape


def _counts(state: Mapping[str, Tensor]) -> tuple[int, int]:
    layers = sum(name.startswith("style.") and name.endswith(".weight") for name in state)
    blocks = 1 + sum(name.startswith("to_rgbs.") and name.endswith(".conv.weight") for name in state)
    return layers, blocks


def to_nvidia(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return rosinality's generator weights under NVIDIA's names, without ``mapping.w_avg``.

    Snapshots from before the noise was stored get none, so its strength has no effect.

    Raises:
        CheckpointError: If a tensor is missing, or one is left over: sizes are counted from names, and a
            file that lost its last layer must not pass for a smaller generator.
    """
    left = dict(state)
    ours: dict[str, Tensor] = {}
    stored_noise = any(name.startswith("noises.") for name in state)

    # old snapshots have no noise at all; a single missing one is a damaged file
    for name, theirs, (leading, trailing) in _pairs(*_counts(state)):
        if theirs not in left:
            if theirs.startswith("noises.") and not stored_noise:
                continue
            raise CheckpointError(f"its tensor {theirs!r} is missing")

        # rosinality keeps axes of length one for broadcasting; one that is longer means another layer
        value = left.pop(theirs)
        if any(n != 1 for n in (*value.shape[:leading], *value.shape[value.ndim - trailing :])):
            raise CheckpointError(f"its tensor {theirs!r} has the shape {list(value.shape)}")

        ours[name] = value.reshape(value.shape[leading : value.ndim - trailing])

    unused = sorted(name for name in left if not name.endswith(".kernel"))
    if unused:
        raise CheckpointError(
            f"its tensor {', '.join(unused[:4])} belongs to no layer; a neighbor of it is missing"
        )

    # rosinality stores it times the upsampling gain
    kernel = state.get("convs.0.conv.blur.kernel")
    if kernel is not None:
        ours["resample_filter"] = kernel / kernel.sum()

    return ours


def from_nvidia(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return NVIDIA's generator weights under rosinality's names, kernels included.

    Raises:
        CheckpointError: If the generator is conditional, which rosinality's is not.
    """
    if "mapping.embed.weight" in state:
        raise CheckpointError(
            "a conditional generator has no counterpart in rosinality's code; convert it to .safetensors"
        )

    layers = sum(name.startswith("mapping.fc") and name.endswith(".weight") for name in state)
    blocks = sum(name.startswith("synthesis.") and name.endswith(".torgb.weight") for name in state)

    theirs: dict[str, Tensor] = {}
    for name, their_name, (leading, trailing) in _pairs(layers, blocks):
        value = state[name]
        theirs[their_name] = value.reshape((1,) * leading + tuple(value.shape) + (1,) * trailing)

    # times 4, the gain of an upsampling that fills three of four places with zeros
    for index in range(1, blocks):
        kernel = state[f"synthesis.b{4 << index}.resample_filter"] * 4
        theirs[f"convs.{2 * index - 2}.conv.blur.kernel"] = kernel
        theirs[f"to_rgbs.{index - 1}.upsample.kernel"] = kernel

    return {name: tensor.clone() for name, tensor in theirs.items()}


def looks_like_rosinality(state: Mapping[str, object]) -> bool:
    """Return whether names are those of rosinality's generator."""
    return "input.input" in state or "conv1.conv.weight" in state or "style.1.weight" in state


def estimated_average(
    mapping: torch.nn.Module, z_dim: int, *, samples: int = 10_000, seed: int = 0
) -> Tensor:
    """Return the mean w of normal latents, for files that do not hold it, ``[w_dim]``."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        average: Tensor = mapping(torch.randn(samples, z_dim, generator=source)).mean(dim=0)
    return average
