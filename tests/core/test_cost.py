"""What the hot paths ask of a machine: counted by hand where that can be, and no more than it was.

Counts are of operations, not of times: they are the same on every machine. A change that makes one larger by
more than a hundredth fails here; one that makes it smaller may put the new count in its place.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks import cost
from benchmarks.cost import BYTES_BEFORE, H200, measure, paths, table_kernels, tail_compiled
from benchmarks.counting import Cost, count, count_compiled, count_quiet
from benchmarks.report import Options

# kernels a batch, MB moved, GFLOP: of an image, or of a channel moved both ways
TODAY = {
    (256, "float32"): {
        "synthesis": (247, 1241.1, 90.74),
        "CLIP": (175, 155.4, 8.82),
        "channel pair, exact": (243.0, 1954.0, 165.2),
        "code of all layers, exact: what its channels share": (2807, 16464, 325.4),
    },
    (1024, "float32"): {
        "synthesis": (323, 5335.9, 150.7),
        "CLIP": (175, 246.2, 8.82),
        "channel pair, exact": (262.8, 8115.0, 275.5),
        "code of all layers, exact: what its channels share": (4793, 61633, 828.2),
    },
    (1024, "bfloat16"): {
        "synthesis": (434, 2766.7, 150.7),
        "CLIP": (329, 224.6, 8.82),
        "channel pair, exact": (274.6, 4548.2, 275.5),
        "code of all layers, exact: what its channels share": (5146, 65891, 828.2),
    },
}
MORE = 1.01


@pytest.mark.parametrize(("resolution", "precision"), TODAY)
def test_hot_paths_ask_for_no_more_than_they_did(resolution, precision):
    found = paths(resolution, precision)
    asked = {
        name: (each.kernels, each.each.moved / 1e6, each.each.flops / 1e9) for name, each in found.items()
    }
    assert asked.keys() == TODAY[resolution, precision].keys()
    more = {
        name: (numbers, TODAY[resolution, precision][name])
        for name, numbers in asked.items()
        if any(new > MORE * old for new, old in zip(numbers, TODAY[resolution, precision][name], strict=True))
    }
    assert not more


def test_a_whole_exact_table_launches_three_million_kernels_at_most_by_default():
    assert table_kernels(1024, "float32") <= 3e6
    assert table_kernels(1024, "bfloat16") <= 3e6


def test_compiled_in_16_bits_an_image_moves_two_fifths_of_the_bytes_it_did_at_most():
    found = tail_compiled(1024, "bfloat16")
    assert found.moved <= 0.4 * BYTES_BEFORE
    assert found.moved <= MORE * 1.184e9
    # two kernels for a convolution, three with a low-pass or over an image, and casts of small tensors
    assert found.kernels < 60


def test_a_compiled_function_is_counted_as_by_hand():
    def work(x, weight):
        return torch.relu(x @ weight * 2 + 1)  # one product, and one kernel of three operations

    with FakeTensorMode():
        found = count_compiled(work, torch.empty(64, 32), torch.empty(32, 16))
    product, rest = 64 * 32 + 32 * 16 + 64 * 16, 2 * 64 * 16
    assert found == Cost(0, 4 * (product + rest), 2)


def test_a_product_is_counted_as_by_hand():
    a, b = torch.zeros(3, 5), torch.zeros(5, 7)
    assert count(lambda: a @ b) == Cost(2 * 3 * 5 * 7, 4 * (15 + 35 + 21), 1)
    assert count(lambda: a.t()[1:]) == Cost()  # views move nothing
    assert count(lambda: a + 1) == Cost(0, 4 * 30, 1)
    assert count(lambda: a.reshape(5, 3).device) == Cost()


def test_a_convolution_is_counted_as_by_hand_and_the_same_without_memory():
    def work():
        image, kernel = torch.zeros(2, 3, 8, 8), torch.zeros(4, 3, 3, 3)
        return count_quiet(lambda: F.conv2d(image, kernel, padding=1))

    expected = Cost(2 * 2 * 4 * 64 * 27, 4 * (2 * 3 * 64 + 4 * 27 + 2 * 4 * 64), 1)
    assert work() == expected
    with FakeTensorMode():
        assert work() == expected


def test_a_backward_pass_is_counted_too():
    a, b = torch.zeros(3, 5, requires_grad=True), torch.zeros(5, 7, requires_grad=True)
    forward = count(lambda: a @ b)
    both = count(lambda: torch.autograd.grad((a @ b).sum(), (a, b)))
    assert both.flops == 3 * forward.flops
    assert count_quiet(lambda: a @ b) == forward


def test_the_least_time_is_that_of_the_slower_limit():
    both = Cost(6.0, 8.0, 1) + Cost(2.0, 0.0, 1)
    assert both * 0.5 == Cost(4.0, 4.0, 1)
    assert both.seconds(2.0, 1.0) == 8.0
    assert both.seconds(0.5, 1.0) == 16.0


def test_the_table_has_every_path_of_every_size_and_precision(monkeypatch):
    # one number format is compiled above; to compile the other takes as long and shows nothing new
    monkeypatch.setattr(cost, "tail_compiled", lambda resolution, _: tail_compiled(resolution, "bfloat16"))
    table, least, whole = measure(Options())
    assert len(table.rows) == 16
    for (resolution, precision), found in TODAY.items():
        for name in found:
            path = paths(resolution, precision)[name]
            (row,) = (row for row in table.rows if row[0] == f"{resolution} px, {precision}: {name}")
            assert row[1] == f"{path.kernels:.0f}"
            assert row[5] == f"{path.each.moved / H200.moved * 1e3:.3f}"
    # 16 bits move about half the bytes, and a table of larger images takes longer
    minutes = [float(row[1]) for row in least.rows]
    assert minutes[1] < minutes[0] < minutes[2]
    assert minutes[3] < minutes[2]
    assert [row[0] for row in whole.rows] == ["float32", "bfloat16"]
    assert whole.figures["kernels of an exact table, float32"] == table_kernels(1024, "float32")
