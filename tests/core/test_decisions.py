"""Decisions do not hang on last bits: figures that agree count as equal, and the first of equal ones wins."""

import math

import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from styleclip_core.decisions import ALIKE, improves, least, ranked
from styleclip_core.descent import Progress, Status

STEPS = st.lists(st.integers(1, 30_000), min_size=1, max_size=20)  # figures of 0.00001 to 0.3, with ties


def off(steps, seed):
    """Figures off those steps by at most 0.3 of one, as processors round."""
    noise = torch.rand(len(steps), generator=torch.Generator().manual_seed(seed)) - 0.5
    return (torch.tensor(steps).double() + 0.6 * noise) * ALIKE


@given(STEPS, st.integers(0, 99))
def test_rounding_neither_reorders_figures_nor_breaks_ties(steps, seed):
    order = sorted(range(len(steps)), key=lambda place: -steps[place])  # stable
    assert ranked(off(steps, seed)).tolist() == order
    assert least((-off(steps, seed)).tolist()) == order[0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.integers(0, 99))
def test_a_relative_millionth_changes_a_decision_only_at_an_edge(figures, seed):
    sizes = torch.tensor(figures, dtype=torch.float64)
    noise = 2 * torch.rand(len(sizes), generator=torch.Generator().manual_seed(seed)) - 1
    other = sizes * (1 + 1e-6 * noise)
    fraction = (sizes / ALIKE) % 1
    away = (fraction - 0.5).abs() > 1e-6 * sizes / ALIKE + 1e-6
    assume(away.all())
    assert torch.equal(ranked(other), ranked(sizes))
    assert least(other.tolist()) == least(sizes.tolist())


def test_what_is_tiny_comes_before_what_is_nothing():
    assert ranked(torch.tensor([0.0, 1e-9, 0.0, 0.2])).tolist() == [3, 1, 0, 2]
    assert least([math.inf, 2.0, math.inf]) == 1


def test_a_loss_improves_by_more_than_rounding():
    assert improves(0.5, math.inf)
    assert improves(0.5 - 6e-6, 0.5)
    assert not improves(0.5 - 4e-6, 0.5)
    assert not improves(math.nan, math.inf)


@given(st.integers(0, 99))
def test_patience_does_not_see_rounding(seed):
    source = torch.Generator().manual_seed(seed)
    losses = [torch.tensor([1.0, 0.8, 0.8, 0.7, 0.7, 0.7]) for _ in range(2)]
    losses[1] *= 1 + 1e-6 * torch.rand(6, generator=source)
    ended = []
    for each in losses:
        progress, steps = Progress(torch.zeros(1, 2), 2), 0
        while len(progress.running):
            progress.judge(torch.zeros(1, 2), each[steps, None], torch.ones(1, dtype=torch.bool), last=False)
            steps += 1
        ended.append((steps, progress.status.tolist()))
    assert ended[0] == ended[1] == (6, [Status.CONVERGED])
