"""Counts what work asks of a machine: products, bytes and kernels, whatever it runs on, fake tensors too.

Products are counted as torch's own counter does. Bytes are those of the inputs and outputs of every
operation, as if each came from memory and went back there; caches make them fewer. Every operation that is no
view is one kernel: a library may launch several for one, and a compiler one for several.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._functorch.aot_autograd import make_boxed_func  # type: ignore[attr-defined]
from torch._inductor.compile_fx import compile_fx
from torch._inductor.debug import DebugContext
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._ops import OpOverload
from torch.fx import GraphModule
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
        types: Sequence[type],
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


def count_compiled(function: Callable[..., object], *given: object) -> Cost:
    """Return the bytes and kernels of a function as ``torch.compile`` would cut it up; of products, none.

    Counted are the nodes of inductor's scheduler after fusion: a kernel each, but for those that do nothing,
    with every buffer that it reads or writes once, however often. No code is made and no compiler asked, so
    fake tensors will do; they lie on a CPU, whose rules of fusion stand in for a GPU's.
    """
    found = Cost()

    def look(module: GraphModule, inputs: Sequence[Tensor], **_: object) -> Any:  # noqa: ANN401
        nonlocal found
        graph = GraphLowering(module)
        with V.set_graph_handler(graph), V.set_debug_handler(DebugContext()):
            graph.run(*inputs)
            graph._update_scheduler()
            moved, nodes, _runtimes = graph.count_bytes()
        found += Cost(0, moved, sum(size > 0 for _, size in nodes))
        return make_boxed_func(module.forward)

    def backend(module: GraphModule, inputs: list[Tensor]) -> Any:  # noqa: ANN401
        return compile_fx(module, inputs, inner_compile=look)

    torch._dynamo.reset()  # or what was counted before would not be compiled again
    torch.compile(function, backend=backend)(*given)
    return found


def count_quiet(work: Callable[[], object]) -> Cost:
    """Return the same without gradients."""
    with torch.no_grad():
        return count(work)
