"""Deterministic weights for parity tests.

The golden arrays in this folder are outputs of the public reference implementations, run on weights that
this module generates from nothing but each tensor's name and shape.  A test builds the project's own
network, loads ``{key: tensor}`` made by ``fill_state`` with ``strict=True``, and compares outputs.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Mapping

import numpy as np


def fill(key: str, shape: tuple[int, ...], *, equalized: bool, salt: str = "") -> np.ndarray:
    """One float32 array for the tensor called `key`.

    `equalized`: the layer rescales its weight at run time (StyleGAN2's equalised learning rate), so weights
    are drawn from N(0, 1); otherwise weights of two or more dimensions are drawn from N(0, 1/fan_in).
    `salt` changes every draw (another seed, the same rule).
    """
    rng = np.random.default_rng(zlib.crc32((salt + key).encode()))
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if key.endswith("running_var"):
        return (0.5 + rng.random(shape)).astype(np.float32)
    x = rng.standard_normal(shape, dtype=np.float32)
    if key.endswith("noise_strength") or key.endswith("noise.weight"):
        return 0.05 * x
    if key.endswith("affine.bias") or key.endswith("modulation.bias"):
        return 1.0 + 0.1 * x
    if "noise_const" in key or "noises." in key:
        return x
    if len(shape) >= 2:
        if equalized:
            return x
        return x / np.float32(np.sqrt(np.prod(shape[1:])))
    if key.endswith("weight"):  # batch-norm gain, PReLU slope
        return 1.0 + 0.1 * x
    return 0.1 * x


def fill_state(
    shapes: Mapping[str, tuple[int, ...]],
    *,
    equalized: bool | Callable[[str], bool],
    keep: Collection[str] = (),
    salt: str = "",
) -> dict[str, np.ndarray]:
    """`fill` for a whole state dict.

    `equalized`: a bool, or a predicate on the key.  Keys that contain a word of `keep` (fixed FIR kernels)
    are left out: keep the network's own values for those.
    """
    return {
        key: fill(
            key, tuple(shape), equalized=equalized(key) if callable(equalized) else equalized, salt=salt
        )
        for key, shape in shapes.items()
        if not any(word in key for word in keep)
    }
