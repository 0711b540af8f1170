"""What docs/reproducibility.md promises, with kernels varied: one machine stands for many.

Each setting is a process of its own, as torch chooses its kernels once. What descends or decides has the same
bits in every batch; plain forward passes, and other kernels, differ by rounding.
"""

import os
import subprocess
import sys
from pathlib import Path

import promise_run
import pytest
import torch

KERNELS = {
    "this processor's": ({}, 1),
    "two threads, Intel's compatible kernels": ({"MKL_CBWR": "COMPATIBLE"}, 2),
    "an old processor's": (
        {
            "ONEDNN_MAX_CPU_ISA": "SSE41",
            "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
            "ATEN_CPU_CAPABILITY": "default",
        },
        1,
    ),
}
FORWARD = 1e-5  # of numbers of about 1
DESCENT = 2e-2  # after few steps; rounding grows along the way


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What every setting computes, by its name."""
    folder = tmp_path_factory.mktemp("promise")
    promise_run.write_networks(folder / "networks.pt")
    running = []
    for number, (variables, threads) in enumerate(KERNELS.values()):
        result = folder / f"{number}.pt"
        command = [
            sys.executable, "-W", "ignore", promise_run.__file__, str(folder / "networks.pt"), str(result),
            str(threads),
        ]  # fmt: skip
        path = {"PYTHONPATH": str(Path(__file__).parents[2])}
        running.append((result, subprocess.Popen(command, env={**os.environ, **path, **variables})))

    assert [process.wait() for _, process in running] == [0] * len(KERNELS)
    return {
        name: torch.load(result, weights_only=True)
        for name, (result, _) in zip(KERNELS, running, strict=True)
    }


@pytest.mark.parametrize("kernels", KERNELS)
def test_what_descends_or_decides_has_the_same_bits_in_every_batch(found, kernels):
    computed = found[kernels]["descents"]
    assert len(computed) == 6
    for name, batches in computed.items():
        alone, *others = batches.values()
        for other in others:
            assert torch.equal(other, alone), name


@pytest.mark.parametrize("kernels", KERNELS)
def test_forward_passes_differ_between_batches_by_rounding(found, kernels):
    computed = found[kernels]["forwards"]
    assert len(computed) == 7
    for name, batches in computed.items():
        assert (batches[33] - batches[1]).abs().max() <= FORWARD, name


@pytest.mark.parametrize("kernels", list(KERNELS)[1:])
def test_other_kernels_stay_within_the_tolerances(found, kernels):
    mine, other = found["this processor's"], found[kernels]
    for kind, tolerance in (("forwards", FORWARD), ("descents", DESCENT)):
        for name, batches in mine[kind].items():
            for size, figures in batches.items():
                assert (other[kind][name][size] - figures).abs().max() <= tolerance, (name, size)


def test_kernels_are_really_varied(found):
    images = [computed["forwards"]["images"][33] for computed in found.values()]
    assert not torch.equal(images[0], images[2])
