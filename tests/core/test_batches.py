"""Batches that shrink to what fits: every item once, in order, and no more attempts than needed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from styleclip_core import relevance
from styleclip_core.batches import Batches, free_memory
from styleclip_core.derivatives import embedding_basis, unit_derivatives


def _limited(limit, tried):
    def work(items):
        tried.append(len(items))
        if len(items) > limit:
            raise torch.OutOfMemoryError("too small")
        return items * 2

    return work


@given(st.integers(1, 40), st.integers(1, 64), st.integers(1, 64))
def test_every_item_comes_once_and_in_order(count, size, limit):
    items, tried = torch.arange(count), []
    done = list(Batches(size).run(items, _limited(limit, tried)))
    assert torch.cat([batch for batch, _ in done]).tolist() == items.tolist()
    assert torch.cat([found for _, found in done]).tolist() == (items * 2).tolist()
    assert max(len(batch) for batch, _ in done) <= min(size, limit)


def test_the_size_that_fits_is_kept():
    tried = []
    batches = Batches(32)
    for _ in range(2):
        list(batches.run(torch.arange(16), _limited(4, tried)))
    assert tried == [16, 8] + [4] * 8


def test_a_single_item_that_does_not_fit_is_an_error():
    with pytest.raises(torch.OutOfMemoryError):
        list(Batches(8).run(torch.arange(3), _limited(0, [])))
    with pytest.raises(ValueError, match="at least one item, got 0"):
        Batches(0)


def test_the_first_batch_is_cut_to_the_free_memory():
    assert Batches(64, free=1000, bytes_per_item=80).size == 10  # 0.8 x 1000 / 80
    assert Batches(64, free=10, bytes_per_item=80).size == 1
    assert Batches(4, free=1000, bytes_per_item=80).size == 4
    assert Batches(64, free=None, bytes_per_item=80).size == 64
    assert free_memory(torch.device("cpu")) is None


def test_little_memory_makes_small_batches_of_moves(generator, codes, monkeypatch):
    sizes = []

    def embed(images):
        sizes.append(len(images))
        return torch.nn.functional.normalize(images.flatten(1)[:, :9], dim=1)

    def measure():
        std = torch.full((12,), 0.3)
        settings = relevance.RelevanceSettings(batch_size=16)
        return relevance.measure_channels(
            generator, embed, codes, layer="b8.conv1", channels=range(8), mean=std, std=std, settings=settings
        ).direction

    whole = measure()
    need = relevance.bytes_per_move(generator, "b8.conv1", torch.float32)
    monkeypatch.setattr(relevance, "free_memory", lambda device: 8 * need)  # 0.8 of it: three pairs
    sizes.clear()
    torch.testing.assert_close(measure(), whole, atol=1e-5, rtol=0)
    assert sizes == [6, 6, 4] * 3


def test_derivatives_of_smaller_batches_are_the_same(generator, codes):
    def embed(images, limit):
        if len(images) > limit:
            raise torch.OutOfMemoryError("too small")
        return torch.nn.functional.normalize(images.flatten(1)[:, :9], dim=1)

    def differentiate(limit):
        basis = embedding_basis(generator, lambda x: embed(x, limit), codes, 2)
        found = list(unit_derivatives(generator, lambda x: embed(x, limit), codes, torch.eye(9)))
        return len(found), torch.cat(found), basis

    (_, whole, basis), (parts, found, same) = differentiate(3), differentiate(1)
    assert parts == 3
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(same.abs(), basis.abs(), atol=1e-5, rtol=0)
