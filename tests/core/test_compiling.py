"""Compiled layers: the same images, one compiled form for all codes and batches, and never a failure."""

import logging

import pytest
import torch
from torch._dynamo.utils import counters
from torch.testing import assert_close

from styleclip_core import compiling
from styleclip_core.compiling import Compiled, compiler
from styleclip_core.folded import (
    colour,
    colour_over,
    colour_over_fused,
    convolve,
    convolve_up,
    convolve_up_fused,
    upsample,
    upsample_fused,
)
from styleclip_core.moves import ChannelMoves


@pytest.fixture
def eager(monkeypatch):
    """Compiling without the making of kernels, which takes seconds each."""
    compiled = torch.compile
    compiling._compiled.cache_clear()
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", lambda function: compiled(function, backend="aot_eager"))
    yield
    compiling._compiled.cache_clear()
    torch._dynamo.reset()


def _said(caplog):
    return [each.getMessage() for each in caplog.records if each.name == compiling.__name__]


@torch.no_grad()
def _images(generator, code, layer, count, compiled, dtype=torch.float32):
    names = [each.name for each in generator.layout.layers]
    below = generator.advance(generator.begin(1), code, names.index(layer))
    moves = ChannelMoves(generator, code, layer, below, dtype=dtype, compiled=compiled)
    channels = torch.arange(count)
    return moves.images(channels, torch.stack([code[layer][0, :count] + 2, code[layer][0, :count] - 2]))


@pytest.mark.usefixtures("eager")
def test_codes_batches_and_layers_of_one_tail_share_what_was_compiled(generator, codes):
    compiled, before = Compiled(), counters["stats"]["unique_graphs"]
    seen = []
    for index in range(3):
        for layer in ("b8.conv1", "b16.conv0"):
            for count in (4, 3, 1):
                code = codes.select(slice(index, index + 1))
                found = _images(generator, code, layer, count, compiled)
                plain = _images(generator, code, layer, count, None)
                assert_close(found, plain, atol=2e-6 * plain.abs().max().item(), rtol=0)
                seen.append(counters["stats"]["unique_graphs"] - before)
    # torgb, conv0, conv1, torgb; then torgb alone, as the first one there is none below it to add
    assert seen == [4] * 3 + [5] * 15
    assert not compiled.failed


@pytest.mark.usefixtures("eager")
def test_another_number_format_is_compiled_for_itself(generator, codes):
    compiled, code = Compiled(), codes.select(slice(0, 1))
    for dtype in (torch.float32, torch.bfloat16):
        found = _images(generator, code, "b16.conv0", 3, compiled, dtype)
        plain = _images(generator, code, "b16.conv0", 3, None, dtype)
        assert_close(found, plain, atol=2e-2 * plain.abs().max().item(), rtol=0)
    assert not compiled.failed


def test_kernels_are_made_and_give_the_same_images(generator, codes, caplog):
    code = codes.select(slice(0, 1))
    compiled = Compiled()
    with caplog.at_level(logging.WARNING):
        found = _images(generator, code, "b16.conv0", 3, compiled)
    plain = _images(generator, code, "b16.conv0", 3, None)
    assert_close(found, plain, atol=2e-6 * plain.abs().max().item(), rtol=0)
    # without a compiler that is said, once for two layers
    assert len(_said(caplog)) == compiled.failed


def test_what_cannot_be_compiled_runs_as_it_is_and_says_so_once(generator, codes, monkeypatch, caplog):
    def missing(function):
        def call(*given):
            raise RuntimeError("no compiler\n here")

        return call

    compiling._compiled.cache_clear()
    monkeypatch.setattr(torch, "compile", missing)
    code, compiled = codes.select(slice(0, 1)), Compiled()
    with caplog.at_level(logging.WARNING):
        found = [_images(generator, code, "b8.conv1", 3, compiled) for _ in range(2)]
    compiling._compiled.cache_clear()
    assert torch.equal(found[0], _images(generator, code, "b8.conv1", 3, None))
    assert torch.equal(found[0], found[1])
    assert _said(caplog) == [
        "b8.torgb could not be compiled, so layers run as they are written: no compiler here"
    ]


def test_memory_that_is_too_small_is_no_failure_of_the_compiler(monkeypatch):
    def full(function):
        def call(*given):
            raise torch.OutOfMemoryError("too small")

        return call

    compiling._compiled.cache_clear()
    monkeypatch.setattr(torch, "compile", full)
    compiled = Compiled()
    with pytest.raises(torch.OutOfMemoryError):
        compiled(
            colour,
            colour,
            "any",
            [torch.zeros(2, 1, 4, 4)],
            torch.zeros(3, 1, 1, 1),
            torch.zeros(3, 1, 1),
            None,
        )
    compiling._compiled.cache_clear()
    assert not compiled.failed


def test_it_is_off_on_a_processor_unless_asked_for(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(compiling, "has_triton", lambda: True)
    assert compiler("auto", cpu) is None
    assert compiler("off", cuda) is None
    assert compiler("auto", cuda) is compiler("on", cpu) is not None
    monkeypatch.setattr(compiling, "has_triton", lambda: False)
    assert compiler("auto", cuda) is None


@pytest.mark.parametrize("clamp", [None, 0.5])
def test_what_a_compiler_fuses_is_what_libraries_do(clamp):
    source = torch.Generator().manual_seed(5)

    def made(*shape):
        return torch.randn(*shape, generator=source)

    x, weight, shift, taps = made(2, 3, 5, 6), made(3, 7, 3, 3), made(1, 7, 10, 12), made(4, 4)
    assert_close(
        convolve_up_fused(x, weight, shift, taps, clamp), convolve_up(x, weight, shift, taps, clamp),
        atol=1e-5, rtol=1e-5,
    )  # fmt: skip
    assert_close(upsample_fused(x, taps), upsample(x, taps), atol=1e-5, rtol=1e-5)

    # of features x: colours over an image of half the size
    features, image = made(2, 5, 8, 8), made(2, 3, 4, 4)
    given = made(3, 5, 1, 1), made(3, 1, 1)
    fused, plain = (each(features, image, *given, taps, clamp) for each in (colour_over_fused, colour_over))
    assert_close(fused, plain, atol=1e-5, rtol=1e-5)


def test_functions_change_none_of_their_arguments():
    x, weight, shift = torch.randn(2, 3, 4, 4), torch.randn(3, 3, 3, 3), torch.randn(1, 3, 4, 4)
    before = x.clone(), weight.clone(), shift.clone()
    convolve(x, weight, shift, 0.5)
    assert all(map(torch.equal, before, (x, weight, shift)))
