"""Counts what work asks of a machine: products, bytes and kernels, whatever it runs on, fake tensors too.

Products are counted as torch's own counter does. Bytes are those of the inputs and outputs of every
operation, as if each came from memory and went back there; caches make them fewer. Every operation that is no
view is one kernel: a library may launch several for one, and a compiler one for several.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True, slots=True)
class Cost:
    """What work asks for.

    Attributes:
        flops: Floating-point operations of matrix products and convolutions.
        moved: Bytes read and written.
        kernels: Operations that are no views.
    """

    flops: float = 0.0
    moved: float = 0.0
    kernels: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.moved + other.moved, self.kernels + other.kernels)

    def __mul__(self, factor: float) -> Cost:
        return Cost(self.flops * factor, self.moved * factor, self.kernels * factor)

    def seconds(self, flops_rate: float, bytes_rate: float) -> float:
        """Return the least time at these rates, each per second: of the products or of the bytes."""
        return max(self.flops / flops_rate, self.moved / bytes_rate)


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = Cost()

    def __torch_dispatch__(
        self,
        func: OpOverload[..., object],
        types: Collection[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Run an operation and add what it costs."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        # what asks for a tensor's device is no work, nor is another shape for the same memory
        if func.is_view or func.namespace != "aten" or func is torch.ops.aten._unsafe_view.default:
            return result

        tensors = [each for each in tree_flatten((args, kwargs, result))[0] if isinstance(each, Tensor)]
        count = flop_registry.get(func._overloadpacket)
        flops = count(*args, **kwargs, out_val=result) if count else 0
        self.found += Cost(flops, sum(each.nbytes for each in tensors), 1)
        return result


def count(work: Callable[[], object]) -> Cost:
    """Run ``work`` once and return what it asked for; gradients as the caller has them."""
    counter = _Counter()
    with counter:
        work()
    return counter.found


def count_quiet(work: Callable[[], object]) -> Cost:
    """Return the same without gradients."""
    with torch.no_grad():
        return count(work)
