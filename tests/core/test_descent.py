"""Chunks of one size: how many problems are drawn at once, alone and in a batch."""

import pytest
import torch

from styleclip_core.descent import Chunks, evaluate


@pytest.mark.parametrize(
    ("problems", "chunk", "drawn"), [(1, 8, [8]), (9, 8, [8, 8]), (1, 1, [1]), (3, 1, [1] * 3)]
)
def test_a_short_chunk_is_filled_up_and_a_chunk_of_one_draws_no_more_than_there_is(problems, chunk, drawn):
    sizes = []

    def terms(numbers, which):
        sizes.append(len(numbers))
        return numbers.square().sum(dim=1)[None] * (1 + which)

    numbers = torch.arange(2.0 * problems).reshape(problems, 2)
    figures, gradients = evaluate(numbers, torch.arange(problems), terms, chunks=Chunks(chunk))
    assert sizes == drawn
    weights = 1.0 + torch.arange(problems)
    assert torch.equal(figures[0], numbers.square().sum(dim=1) * weights)
    assert torch.equal(gradients, 2 * numbers * weights[:, None])


def test_chunks_that_a_gpu_has_no_memory_for_are_halved_once_and_for_all_steps():
    sizes = []

    def terms(numbers, which):
        sizes.append(len(numbers))
        if len(numbers) > 2:
            raise torch.OutOfMemoryError("too small")
        return numbers.square().sum(dim=1)[None] * (1 + which)

    numbers, chunks = torch.arange(6.0).reshape(3, 2), Chunks(8)
    for _ in range(2):
        figures, gradients = evaluate(numbers, torch.arange(3), terms, chunks=chunks)
        weights = 1.0 + torch.arange(3)
        assert torch.equal(figures[0], numbers.square().sum(dim=1) * weights)
        assert torch.equal(gradients, 2 * numbers * weights[:, None])
    assert sizes == [8, 4, *[2] * 4, *[2] * 2]  # the first step had been cut for chunks of eight
