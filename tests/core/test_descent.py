"""Chunks of one size: how many problems are drawn at once, alone and in a batch."""

import pytest
import torch

from styleclip_core.descent import evaluate


@pytest.mark.parametrize(
    ("problems", "chunk", "drawn"), [(1, 8, [8]), (9, 8, [8, 8]), (1, 1, [1]), (3, 1, [1] * 3)]
)
def test_a_short_chunk_is_filled_up_and_a_chunk_of_one_draws_no_more_than_there_is(problems, chunk, drawn):
    sizes = []

    def terms(numbers, which):
        sizes.append(len(numbers))
        return numbers.square().sum(dim=1)[None] * (1 + which)

    numbers = torch.arange(2.0 * problems).reshape(problems, 2)
    figures, gradients = evaluate(numbers, torch.arange(problems), terms, chunk=chunk)
    assert sizes == drawn
    weights = 1.0 + torch.arange(problems)
    assert torch.equal(figures[0], numbers.square().sum(dim=1) * weights)
    assert torch.equal(gradients, 2 * numbers * weights[:, None])
