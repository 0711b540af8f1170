"""Functions of tensors made into kernels by ``torch.compile``, where there is a compiler for them.

What was compiled is kept as torch keeps it: for the process, and on disk below ``TORCHINDUCTOR_CACHE_DIR``.
Where compiling fails the function runs as it is written, and that is said once: no result depends on it but
for rounding.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from types import FunctionType
from typing import Literal, cast

import torch
from torch import Tensor
from torch.utils._triton import has_triton

Choice = Literal["auto", "on", "off"]
_log = logging.getLogger(__name__)


class Compiled:
    """Calls functions compiled.

    Attributes:
        failed: Whether a function could not be compiled, so that all run as they are written since.
    """

    def __init__(self) -> None:
        self.failed = False

    def __call__(
        self,
        function: Callable[..., Tensor],
        plain: Callable[..., Tensor],
        name: str,
        batches: Sequence[Tensor],
        *others: Tensor | float | None,
    ) -> Tensor:
        """Call a function of tensors.

        Args:
            function: A plain function of a module, without a state; it changes none of its arguments.
            plain: What does the same where nothing is compiled; it may be the same function.
            name: Of the layer: each has a compiled form of its own, for its own shapes.
            batches: Its first arguments; their first axis has any length from two.
            others: The rest, of one shape.

        Raises:
            torch.OutOfMemoryError: Of the function; smaller batches are the remedy.
        """
        if self.failed or len(batches[0]) < 2:
            return plain(*batches, *others)

        # what a later batch may differ in is said now, or it would be compiled again for that
        for each in batches:
            torch._dynamo.maybe_mark_dynamic(each, 0)
        try:
            return _compiled(function, name)(*batches, *others)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers, their drivers and headers fail in ways of their own
            self.failed = True
            reason = " ".join(str(error).split())[:200]
            _log.warning("%s could not be compiled, so layers run as they are written: %s", name, reason)
        return plain(*batches, *others)


@cache
def _compiled(function: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    # a code object of its own: torch allows each but a few compiled forms, and layers have other shapes
    code = cast(FunctionType, function).__code__.replace(co_name=f"{function.__name__}_{name}")
    own = FunctionType(code, cast(FunctionType, function).__globals__, code.co_name)
    return cast(Callable[..., Tensor], torch.compile(own))


def compiler(choice: Choice, device: torch.device) -> Compiled | None:
    """Return what compiles on a device; None where functions run as they are written.

    Args:
        choice: ``"auto"`` compiles on a GPU where Triton is there, ``"on"`` everywhere, ``"off"`` nowhere.
        device: Where the functions will run.
    """
    if choice == "off" or (choice == "auto" and not (device.type == "cuda" and has_triton())):
        return None
    return _shared()


@lru_cache(maxsize=1)
def _shared() -> Compiled:
    return Compiled()  # one of a process, so that a failure is said once
