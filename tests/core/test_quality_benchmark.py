"""The quality benchmark's arithmetic, on sweeps whose figures are known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from torch.testing import assert_close

from benchmarks.quality.dictionary import directions
from benchmarks.quality.estimators import plain, projected, whitened
from benchmarks.quality.prompts import PROMPTS, tunes
from benchmarks.quality.report import _compare, _Curves, best_beta
from benchmarks.quality.scores import Curve, at_level, curve, over_prompts, reach, replicates, unrelated
from benchmarks.quality.sweep import LEVELS, propose, room
from styleclip.data.world.renderer import FACTORS, INDEX
from styleclip_core.style_space import StyleCode, StyleLayer, StyleLayout

PROMPT = next(each for each in PROMPTS if each.name == "glasses")
GREY = next(each for each in PROMPTS if each.name == "grey_hair")


def straight(slope, *, leak=0.1, portraits=4, most=1.0):
    """Return a curve whose target moves by ``slope`` per strength and whose others by ``leak`` of that."""
    strengths = np.linspace(0, most, 6)
    target = np.repeat(slope * strengths[:, None], portraits, axis=1)
    return Curve(target, leak * target, 1 - 0.2 * target, strengths)


@given(st.floats(0.2, 3), st.floats(0.01, 0.5), st.floats(0.05, 0.95))
def test_a_straight_curve_is_read_exactly(slope, leak, share):
    found = at_level(straight(slope, leak=leak), replicates(4, count=3), np.full(3, share * slope))
    assert_allclose(found.strength, share)
    assert_allclose(found.others, leak * share * slope)
    assert_allclose(found.identity, 1 - 0.2 * share * slope)


def test_a_level_that_is_not_reached_has_no_figures():
    found = at_level(straight(1.0), replicates(4, count=2), np.array([0.5, 2.0]))
    assert not np.isnan(found.others[0])
    assert np.isnan([found.others[1], found.identity[1], found.strength[1]]).all()


def test_what_counts_is_where_a_level_is_first_reached():
    moved = np.array([[0.0], [0.4], [0.9], [0.3]])  # overdone, the target goes back
    high, share = reach(moved, np.array([0.65]))
    assert (high[0], share[0]) == (2, pytest.approx(0.5))


def test_replicates_weigh_all_portraits_and_begin_with_the_set_itself():
    found = replicates(24)
    assert_allclose(found.sum(axis=1), 1)
    assert_allclose(found[0], 1 / 24)
    assert_allclose(found, replicates(24))  # the same for every way, so differences are paired
    assert len(np.unique(found[1:], axis=0)) == len(found) - 1


def test_errors_over_prompts_are_those_of_their_mean():
    values = np.repeat(np.random.default_rng(0).normal(size=(40, 1)), 4000, axis=1)
    mean, error = over_prompts(values)
    assert mean == pytest.approx(values[:, 0].mean())
    assert error == pytest.approx(values[:, 0].std() / np.sqrt(40), rel=0.05)


def test_a_curve_measures_the_target_with_its_sign_and_no_related_factor():
    change = torch.zeros(1, 2, len(FACTORS))
    change[:, :, INDEX[GREY.factor]] = GREY.sign * 0.5
    change[:, :, INDEX["hair_red"]] = 9.0  # related: grey hair cannot be red
    change[:, :, INDEX["smile"]] = -0.3
    found = curve(GREY, {"change": change, "identity": torch.ones(1, 2), "strengths": torch.ones(1)})
    assert_allclose(found.target, [[0, 0], [0.5, 0.5]])
    assert_allclose(found.others[1], 0.3 / len(unrelated(GREY)))
    assert {INDEX[GREY.factor], INDEX["hair_red"]}.isdisjoint(unrelated(GREY))


def test_room_is_the_way_to_the_end_of_the_factor():
    regressor = SimpleNamespace(standardize=lambda factors: 4 * factors - 2)
    readings = torch.zeros(3, len(FACTORS))
    readings[:, INDEX[PROMPT.factor]] = torch.tensor([-2.0, 1.0, 3.0])
    assert_close(room(SimpleNamespace(regressor=regressor), PROMPT, readings), torch.tensor([4.0, 1.0, 0.0]))


@given(st.floats(0.2, 10), st.floats(0.5, 3))
def test_a_sweep_finds_both_levels(half, power):
    """Whatever the strength that does it, and however bent the curve."""

    def moves(strength):
        return min(0.5 * (strength / half) ** power, 1.0)

    moved, strength = {0.0: 0.0}, 2.0
    for _ in range(12):
        moved[strength] = moves(strength)
        following = propose(moved)
        if following is None:
            break
        assert following not in moved
        strength = following
    order = sorted(moved)
    for level in LEVELS:
        above = next(place for place, each in enumerate(order) if moved[each] >= level)
        assert moved[order[above]] - moved[order[above - 1]] <= 0.3 + 1e-9


def test_a_sweep_that_leads_nowhere_ends():
    moved, strength = {0.0: 0.0}, 1.0
    while strength is not None and len(moved) < 20:
        moved[strength] = 0.1
        strength = propose(moved)
    assert len(moved) < 7


def known(**curves):
    """Return what the tables read, of one prompt."""
    ways = {way.replace("_", ", "): {PROMPT.name: each} for way, each in curves.items()}
    return _Curves(ways, {PROMPT.name: 1.0}, {PROMPT.name: 1.0}, {})


def test_the_best_beta_is_that_of_the_validation_portraits():
    found = known(exact_validation={"b0.15": straight(2.0, leak=0.3), "b0.4": straight(2.0, leak=0.2)})
    assert best_beta(found, PROMPT, 0.75) == "b0.4"
    assert best_beta(found, PROMPT, 5.0) is None


@pytest.mark.parametrize(("leak", "as_good"), [(0.19, True), (0.2, True), (0.25, False)])
def test_a_choice_is_judged_at_its_own_move(leak, as_good):
    noise = 0.004 * np.random.default_rng(1).normal(size=(6, 4))
    noise -= noise.mean(axis=1, keepdims=True)  # portraits differ; what all of them do is the leak's
    mine = straight(2.0, leak=leak)
    mine = Curve(mine.target, mine.others + noise * mine.target, mine.identity, mine.strengths)
    betas = {"b0.15": straight(2.0, leak=0.3), "b0.4": straight(1.0, leak=0.2)}
    found = known(exact_validation=betas, exact=betas, automatic={"b0.2": mine})
    verdict = _compare(found, PROMPT, "automatic", "b0.2", 0.4)
    assert (verdict.best, verdict.moved) == ("b0.4", pytest.approx(0.8))
    assert verdict.best_others == pytest.approx(0.2 * 0.8)
    assert verdict.difference == pytest.approx((leak - 0.2) * 0.8, abs=0.01)
    assert verdict.as_good == as_good


def test_prompts_that_tune_share_no_factor_with_those_that_judge():
    tuned, judged = ({each.factor for each in PROMPTS if tunes(each) == side} for side in (True, False))
    assert tuned.isdisjoint(judged)
    assert len({each.name for each in PROMPTS}) == 40


def test_estimators_agree_where_rows_know_nothing_of_each_other():
    rows = torch.eye(5)
    text = torch.nn.functional.normalize(torch.tensor([3.0, 1.0, 0.0, 0.0, -2.0]), dim=0)
    for estimator in (plain, projected, whitened):
        found = estimator(rows, text)
        assert_close(found / found.abs().max(), text / text.abs().max())


def test_moves_of_a_dictionary_have_few_channels_and_one_length():
    layout = StyleLayout((StyleLayer("b4.conv1", 4, 64, 0), StyleLayer("b8.conv1", 8, 60, 1)))
    codes = StyleCode.from_flat(layout, torch.randn(200, 124, generator=torch.Generator().manual_seed(0)))
    found = directions(codes, torch.full((124,), 2.0))
    assert found.shape[1] == 124
    assert set((found != 0).sum(dim=1).tolist()) == {10, 30, 50}
    assert_close(found.norm(dim=1), torch.ones(len(found)))
