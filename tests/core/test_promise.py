"""What docs/reproducibility.md promises, with kernels varied: one machine stands for many.

Each other setting is a process of its own, as torch chooses its kernels once. What descends or decides has
the same bits in every batch; plain forward passes, and other kernels, differ by rounding.

``python tests/core/test_promise.py`` prints the table of that page.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import promise_run
import pytest
import torch

HERE = "this processor's"  # computed in this process: an import costs more than all that is asked
KERNELS = {
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
QUOTIENT = 2e-2  # of small changes: rounding is divided by how small they are
TOLERANCES = dict.fromkeys(("exact relevance", "directional similarity", "scores"), QUOTIENT)


def compute(folder):
    """Return what every setting computes, by its name."""
    promise_run.write_networks(folder / "networks.pt")
    running = {}
    for name, (variables, threads) in KERNELS.items():
        result = folder / f"{name}.pt"
        command = [
            sys.executable, "-W", "ignore", promise_run.__file__, str(folder / "networks.pt"), str(result),
            str(threads),
        ]  # fmt: skip
        # threads that wait for each other in a loop would wait for whatever else has a core
        given = {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_WAIT_POLICY": "PASSIVE", **variables}
        running[result] = subprocess.Popen(command, env=os.environ | given)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = {HERE: promise_run.run(folder / "networks.pt")}
    torch.set_num_threads(threads)

    assert [process.wait() for process in running.values()] == [0] * len(running)
    return found | {result.stem: torch.load(result, weights_only=True) for result in running}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return compute(tmp_path_factory.mktemp("promise"))


def between_batches(batches):
    """Return the largest difference between an item of one batch and the same one of the largest."""
    largest = batches[max(batches)]
    return max((each - largest[: len(each)]).abs().max().item() for each in batches.values())


def between_kernels(mine, others):
    """Return the largest difference between two settings, over batches of the same sizes."""
    return max((others[size] - figures).abs().max().item() for size, figures in mine.items())


@pytest.mark.parametrize("kernels", [HERE, *KERNELS])
def test_what_descends_or_decides_has_the_same_bits_in_every_batch(found, kernels):
    computed = found[kernels]["descents"]
    assert len(computed) == 8
    for name, batches in computed.items():
        assert all(torch.equal(each, batches[1]) for each in batches.values()), name


@pytest.mark.parametrize("kernels", [HERE, *KERNELS])
def test_forward_passes_differ_between_batches_by_rounding(found, kernels):
    computed = found[kernels]["forwards"]
    assert len(computed) == 10
    for name, batches in computed.items():
        assert list(batches) == [1, 2, 5, 12, 33]
        assert between_batches(batches) <= TOLERANCES.get(name, FORWARD), name


@pytest.mark.parametrize("kernels", KERNELS)
def test_other_kernels_stay_within_the_tolerances(found, kernels):
    for name, batches in found[HERE]["forwards"].items():
        other = found[kernels]["forwards"][name]
        assert between_kernels(batches, other) <= TOLERANCES.get(name, FORWARD), name
    for name, batches in found[HERE]["descents"].items():
        assert between_kernels(batches, found[kernels]["descents"][name]) <= DESCENT, name


def test_kernels_are_really_varied(found):
    images = [computed["forwards"]["images"][33] for computed in found.values()]
    assert not torch.equal(images[0], images[2])


def table(computed):
    """Yield the lines of the page's table."""
    for kind in ("forwards", "descents"):
        for name, batches in computed[HERE][kind].items():
            apart = [between_kernels(batches, computed[each][kind][name]) for each in KERNELS]
            figures = [batches[max(batches)].square().mean().sqrt().item(), between_batches(batches), *apart]
            yield " | ".join([f"| {name}", *(f"{figure:.2g}" for figure in figures)]) + " |\n"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        sys.stdout.writelines(table(compute(Path(scratch))))
