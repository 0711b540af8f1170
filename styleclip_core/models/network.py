"""What all our networks have in common: a name for their weights, and weights that fit exactly or not at all.

Knows nothing of files; how a network is stored is in ``weights``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from styleclip_core.errors import CheckpointError

_SHOWN = 4  # names in an error message

NetworkT = TypeVar("NetworkT", bound="Network")


class Network(nn.Module):
    """A network whose weights come from a file; they are random until a state is loaded.

    Attributes:
        fingerprint: SHA-256 of the weights file, set by the loader; empty if there was none.
    """

    fingerprint: str = ""


def filled(make: Callable[[], NetworkT], state: Mapping[str, Tensor], *, what: str) -> NetworkT:
    """Build a network around ``state``, in evaluation mode and frozen.

    Raises:
        CheckpointError: If a tensor is missing, left over, of another shape or not finite.
    """
    # no memory and no random numbers for weights that are replaced, or that a file only promises
    with torch.device("meta"):
        network = make()

    load_exactly(network, state, what=what)
    return network.eval().requires_grad_(False)


def load_exactly(module: nn.Module, state: Mapping[str, Tensor], *, what: str) -> None:
    """Put ``state`` in the place of all tensors of ``module``, refusing any difference in names or shapes.

    Floating-point tensors become float32. The module may lie on the meta device.

    Raises:
        CheckpointError: With the first few names that are missing, left over, of another shape or of
            another kind of number, or that hold a value which is no finite number.
    """
    # every kind of difference is told at once: which ones come together says what file it is
    expected = module.state_dict()
    both = [name for name in expected if name in state]
    differences = {
        "missing": sorted(expected.keys() - state.keys()),
        "unexpected": sorted(state.keys() - expected.keys()),
        "shape": [
            f"{name}: {list(state[name].shape)} instead of {list(expected[name].shape)}"
            for name in both
            if state[name].shape != expected[name].shape
        ],
        "type": [
            f"{name}: {state[name].dtype} instead of {expected[name].dtype}"
            for name in both
            if state[name].is_floating_point() != expected[name].is_floating_point()
        ],
    }
    problems = [f"{label} {_first(names)}" for label, names in differences.items() if names]
    if problems:
        raise CheckpointError(f"weights do not fit the {what}: {'; '.join(problems)}")

    # float16 is how weights are stored, never how they are computed with
    tensors = {name: each.float() if each.is_floating_point() else each for name, each in state.items()}
    broken = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if broken:
        raise CheckpointError(f"weights of the {what} are not finite: {', '.join(broken[:_SHOWN])}")

    module.load_state_dict(tensors, assign=True)


def is_finite(tensor: Tensor) -> bool:
    """Return whether all elements are finite numbers; a finite sum says so without a copy."""
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def _first(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


class CompactTrunk(Network):
    """What the compact encoder and identity network share: stages that halve the side, and one dense layer.

    Args:
        resolution: Side of the images it reads, in pixels.
        widths: Channels of its stages.
        hidden: Width of the features.
    """

    def __init__(self, resolution: int, widths: tuple[int, ...], hidden: int) -> None:
        super().__init__()
        self.side = resolution

        stages: list[nn.Module] = []
        for before, after in pairwise((3, *widths)):
            stages.append(_conv(before, after, stride=2))
            if before != 3:
                stages.append(_conv(after, after, stride=1))

        self.stages = nn.Sequential(*stages)
        self.trunk = nn.Linear(widths[-1] * (resolution >> len(widths)) ** 2, hidden)

    def features(self, image: Tensor) -> Tensor:
        """Return what the heads read, ``[B, hidden]``.

        Args:
            image: ``[B, 3, H, W]`` in -1..1; another size than the network's is resized by area.
        """
        if image.shape[-2:] != (self.side, self.side):
            image = F.interpolate(image, size=(self.side, self.side), mode="area")
        features: Tensor = self.trunk(self.stages(image).flatten(1)).relu()
        return features


def _conv(before: int, after: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())
