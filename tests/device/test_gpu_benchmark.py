"""The benchmark of a GPU on an accelerator that keeps account: nothing mixes the device with the host."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from benchmarks.gpu.__main__ import PARTS
from benchmarks.gpu.networks import Bench
from tests.device.accelerator import DEVICE, accounting

# the machine's limits are timed by CUDA's own clock, and the published code's outputs need no other device
WITHOUT = {"limits", "golden"}


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    """Networks of a rehearsal on the accelerator, which casts nothing by itself: no autocast."""
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "autocast", lambda *given, **named: contextlib.nullcontext())
        made = Bench(DEVICE, small=True)
        made.sizes = replace(made.sizes, rounds=1)
        yield made
    torch.__future__.set_overwrite_module_params_on_conversion(False)


@pytest.mark.parametrize(
    "part", [part for part in PARTS if part.name not in WITHOUT], ids=lambda part: part.name
)
def test_no_part_mixes_device_and_host(bench, part):
    with accounting() as account:
        rows = list(part.measure(bench))
    assert account.of("mismatch") == {}
    assert rows
