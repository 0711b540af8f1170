"""Batches that fit into memory: as large as asked for, smaller where the device cannot hold that.

A batch size is a wish. Where a device reports its free memory, the first batch is cut to what should fit;
if that was still too much, it is halved and stays so. Results differ by rounding at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

_T = TypeVar("_T")
_Items = TypeVar("_Items", Tensor, list[Any])
_USABLE = 0.8  # of the free memory; the rest is for what the allocator cannot place


class Batches:
    """Cuts work into batches and remembers which size fits.

    Attributes:
        size: Items at once.
    """

    def __init__(self, size: int, *, free: int | None = None, bytes_per_item: int = 0) -> None:
        """Begin with ``size`` items, or with as many as fit into ``free`` bytes where that is known.

        Raises:
            ValueError: If ``size`` is below one.
        """
        if size < 1:
            raise ValueError(f"a batch holds at least one item, got {size}")

        fitting = size if free is None or not bytes_per_item else int(_USABLE * free) // bytes_per_item
        self.size = max(1, min(size, fitting))

    def run(
        self, items: _Items, work: Callable[[_Items], _T], *, even: bool = False
    ) -> Iterator[tuple[_Items, _T]]:
        """Yield every batch of ``items`` with what ``work`` makes of it, in order.

        Args:
            items: What is cut into batches.
            work: What is done with each.
            even: Cut as many batches, but nearly equal ones: no small one is left over.

        Raises:
            torch.OutOfMemoryError: If a single item does not fit.
        """
        while len(items):
            count = -(-len(items) // self.size)
            batch = items[: -(-len(items) // count) if even else self.size]

            try:
                done = work(batch)
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise
                # half of what failed, and it stays so: memory that was too small will not have grown
                self.size = len(batch) // 2
            else:
                yield batch, done
                items = items[len(batch) :]
                continue

            # outside the handler: the error's traceback holds the tensors that did not fit
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def free_memory(device: torch.device) -> int | None:
    """Return the free bytes of a GPU, with those that torch keeps for itself; None for other devices."""
    if device.type != "cuda":
        return None
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + kept
