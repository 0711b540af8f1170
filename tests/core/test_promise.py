"""What docs/reproducibility.md promises, with kernels varied: one machine stands for many.

Each other setting is a process of its own, as torch chooses its kernels once. What descends or decides has
the same bits in every batch; plain forward passes, and other kernels, differ by rounding.
"""

import os
import subprocess
import sys
from pathlib import Path

import promise_run
import pytest
import torch

KERNELS = {
    "this processor's": ({}, 1),  # computed here: an import costs more than all that is asked
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
QUOTIENT = 2e-2  # of small changes, where rounding is divided by how small
QUOTIENTS = ("exact relevance", "directional similarity")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What every setting computes, by its name."""
    folder = tmp_path_factory.mktemp("promise")
    promise_run.write_networks(folder / "networks.pt")
    running = {}
    for name, (variables, threads) in list(KERNELS.items())[1:]:
        result = folder / f"{name}.pt"
        command = [
            sys.executable, "-W", "ignore", promise_run.__file__, str(folder / "networks.pt"), str(result),
            str(threads),
        ]  # fmt: skip
        path = {"PYTHONPATH": str(Path(__file__).parents[2])}
        running[result] = subprocess.Popen(command, env={**os.environ, **path, **variables})

    mine, threads = next(iter(KERNELS)), torch.get_num_threads()
    torch.set_num_threads(1)
    computed = {mine: promise_run.run(folder / "networks.pt")}
    torch.set_num_threads(threads)

    assert [process.wait() for process in running.values()] == [0, 0]
    return computed | {result.stem: torch.load(result, weights_only=True) for result in running}


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
    assert len(computed) == 10
    for name, (alone, *batches) in ((name, each.values()) for name, each in computed.items()):
        for figures in batches:
            assert (figures - alone).abs().max() <= tolerance(name), name


@pytest.mark.parametrize("kernels", list(KERNELS)[1:])
def test_other_kernels_stay_within_the_tolerances(found, kernels):
    mine, other = found["this processor's"], found[kernels]
    for name, batches in mine["forwards"].items():
        for size, figures in batches.items():
            assert (other["forwards"][name][size] - figures).abs().max() <= tolerance(name), (name, size)
    for name, batches in mine["descents"].items():
        for size, figures in batches.items():
            assert (other["descents"][name][size] - figures).abs().max() <= DESCENT, (name, size)


def tolerance(name):
    return QUOTIENT if name in QUOTIENTS else FORWARD


def test_kernels_are_really_varied(found):
    images = [computed["forwards"]["images"][33] for computed in found.values()]
    assert not torch.equal(images[0], images[2])
