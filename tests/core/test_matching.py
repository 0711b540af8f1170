"""Matched directions: Monge's map between the codes that show a target and all, channel by channel."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from styleclip_core.choosing import Measured
from styleclip_core.editing import ChannelSelection, StyleDirection
from styleclip_core.errors import NoEffectError, NoRelevantChannelError
from styleclip_core.matching import (
    at,
    choose_matched,
    derivative_direction,
    going_further,
    likelihood,
    matched_direction,
)
from styleclip_core.prompts import TextDirection, text_direction
from styleclip_core.settings.choosing import ChoosingSettings
from styleclip_core.style_space import StyleCode, StyleLayer, StyleLayout

LAYOUT = StyleLayout((
    StyleLayer("b4.conv1", 4, 3, 0), StyleLayer("b4.torgb", 4, 2, 1, is_torgb=True),
    StyleLayer("b8.conv0", 8, 2, 1),
))  # fmt: skip
ALL = ChannelSelection(beta=0.0)


def codes(flat):
    return StyleCode.from_flat(LAYOUT, flat)


def sampled(count=4000, seed=0):
    return torch.randn(count, LAYOUT.num_channels, generator=torch.Generator().manual_seed(seed))


def narrowed(mean, deviation):
    """Return codes of which the second half has channel 0 where a target has it."""
    flat = sampled()
    half = len(flat) // 2
    flat[half:, 0] = mean + deviation * flat[half:, 0]
    return codes(flat), (torch.arange(len(flat)) >= half).float()


@given(st.floats(-3, 3), st.floats(0.1, 1.0))
def test_the_whole_way_gives_all_codes_the_mean_and_deviation_of_those_that_show_it(mean, deviation):
    drawn, seen = narrowed(mean, deviation)
    found = matched_direction(drawn, seen, ALL)
    moved = drawn.add(found.step(drawn)).editable()
    shows = drawn.editable()[seen > 0]
    assert_close(moved.mean(dim=0), shows.mean(dim=0), atol=1e-3, rtol=1e-3)
    assert_close(moved.std(dim=0, correction=0), shows.std(dim=0, correction=0), atol=1e-3, rtol=1e-3)


def test_channels_that_do_not_matter_stay_and_images_move_each_in_its_own_way():
    drawn, seen = narrowed(2.0, 0.2)
    found = matched_direction(drawn, seen, ChannelSelection(beta=0.15))
    assert (found.channels, found.layers) == (1, ("b4.conv1",))
    low, high = torch.zeros(2, LAYOUT.num_channels)
    low[0], high[0] = -1.0, 4.0  # on both sides of where they are wanted
    before = codes(torch.stack([low, high]))
    step = found.step(before)
    assert step[0, 0] > 0 > step[1, 0]
    assert torch.equal(step[:, 1:], torch.zeros(2, LAYOUT.num_editable - 1))
    after = before.add(step)
    assert torch.equal(after["b4.torgb"], before["b4.torgb"])


def test_relevance_is_hellingers_distance():
    """Of N(0, 1) and N(2, 0.2^2): sqrt(1 - sqrt(0.4 / 1.04) exp(-4 / (4 * 1.04)))."""
    flat = torch.cat([sampled(20_000, 1), sampled(200, 2)])
    flat[-200:] = (flat[-200:] - flat[-200:].mean(dim=0)) / flat[-200:].std(dim=0, correction=0)
    flat[-200:, 0] = 2.0 + 0.2 * flat[-200:, 0]
    seen = (torch.arange(len(flat)) >= 20_000).float()
    expected = (1 - (0.4 / 1.04) ** 0.5 * torch.exp(torch.tensor(-1 / 1.04))).sqrt()
    found = matched_direction(codes(flat), seen, ALL).relevance
    assert found[0].item() == pytest.approx(expected.item(), abs=0.02)
    assert (found[1:] < 0.03).all()


def test_doubtful_codes_count_little():
    flat = sampled()
    flat[:2000, 0] = 5.0 + 0.1 * flat[:2000, 0]
    seen = torch.cat([torch.ones(2000), torch.full((2000,), 0.5)])
    found = matched_direction(codes(flat), seen, ALL)
    destination = (found.delta + found.centre)[0].item()
    assert destination == pytest.approx((5.0 + 0 / 16) / (1 + 1 / 16), abs=0.05)


def test_at_is_the_direction_of_these_codes():
    drawn, seen = narrowed(1.0, 0.5)
    found, some = matched_direction(drawn, seen, ALL), drawn.select(slice(5))
    fixed = at(found, some)
    assert fixed.pull is None
    assert_close(fixed.delta, found.step(some))
    assert torch.equal(fixed.step(some), fixed.delta)


def test_other_directions_are_one_step_for_all():
    plain = StyleDirection(torch.arange(5.0), torch.ones(5), 5, ("b4.conv1", "b8.conv0"))
    assert torch.equal(plain.step(codes(sampled(3))), torch.arange(5.0))


def test_likelihood_is_clips_softmax_of_two_prompts():
    unit = torch.nn.functional.normalize(torch.randn(4, 6, generator=torch.Generator().manual_seed(3)), dim=1)
    target, neutral, images = unit[0], unit[1], unit[2:]
    gap = target - neutral
    text = TextDirection("face", "hat", "none", gap / gap.norm(), gap.norm().item())
    expected = torch.softmax(20 * images @ torch.stack([neutral, target]).T, dim=1)[:, 1]
    assert_close(likelihood(images, text, 20.0), expected)


@pytest.mark.parametrize("seen", [torch.zeros(4000), torch.zeros(4000).index_fill(0, torch.arange(5), 1.0)])
def test_a_target_that_hardly_any_code_shows_is_refused(seen):
    with pytest.raises(NoEffectError, match=r"CLIP sees the target in [05]\.0 of 4000 sampled codes, 10 are"):
        matched_direction(codes(sampled()), seen, ALL)


def test_a_target_that_every_code_shows_alike_has_no_channels():
    with pytest.raises(NoRelevantChannelError, match=r"no style channel reaches beta=0\.15"):
        matched_direction(codes(sampled()), torch.full((4000,), 0.6), ChannelSelection(beta=0.15))


def test_a_channel_that_never_moves_stays():
    flat = sampled()
    flat[:, 1] = 7.0
    seen = (flat[:, 0] > 0).float()
    found = matched_direction(codes(flat), seen, ALL)
    assert found.relevance[1] == 0
    assert found.delta[1] == 0
    assert found.step(codes(flat)).isfinite().all()


# ---- the further way ------------------------------------------------------------------------------

REST = StyleDirection(torch.tensor([0.0, 0.0, 0.0, 0.0, 2.0]), torch.ones(5), 1, ("b8.conv0",))


def test_from_the_end_of_the_way_it_goes_on_by_derivatives():
    drawn, seen = narrowed(1.0, 0.5)
    short = matched_direction(drawn, seen, ChannelSelection(beta=0.15))
    found, some = going_further(short, REST), drawn.select(slice(5))
    assert (found.channels, found.layers) == (2, ("b4.conv1", "b8.conv0"))
    for alpha in (-1.0, 0.4, 1.5):
        assert torch.equal(found.change(alpha, some), alpha * short.step(some))
        assert torch.equal(at(found, some).change(alpha), alpha * short.step(some))
    assert_close(found.change(2.25, some), 1.5 * short.step(some) + 0.75 * REST.delta)
    assert_close(at(found, some).change(2.25), found.change(2.25, some))
    # without a further way it goes straight on
    assert torch.equal(short.change(2.25, some), 2.25 * short.step(some))


def seek(bringing, *, beyond=lambda: REST, **given):
    """Choose a matched way: the target's logit is -3 and rises by ``bringing`` for each channel's move."""
    drawn, seen = narrowed(2.0, 0.5)
    here = drawn.select((seen == 0).nonzero()[:6, 0])

    def measure(step):
        logit = -3.0 + step.expand(6, -1) @ torch.tensor(bringing)
        return Measured(torch.sigmoid(logit), step.expand(6, -1).norm(dim=1))

    def direct(selection):
        return at(matched_direction(drawn, seen, selection), here)

    relevance = matched_direction(drawn, seen, ALL).relevance
    return choose_matched(
        measure, relevance, direct, beyond, ChoosingSettings(), layout=LAYOUT, allowed=ALL, **given
    )


def refused():
    raise NoRelevantChannelError("no channel")


def test_an_effect_that_the_way_reaches_needs_no_further_one():
    found = seek([3.0, 0.0, 0.0, 0.0, 0.0], beyond=lambda: pytest.fail("asked for"))
    assert found.reached
    assert found.alpha <= 1.5


def test_an_effect_beyond_the_end_is_sought_on_the_further_way():
    found = seek([0.5, 0.0, 0.0, 0.0, 2.0])
    assert found.reached
    assert 1.5 < found.alpha <= 2.5
    assert found.trials[-1].effect == pytest.approx(0.7, abs=0.06)
    assert found.trials[-1].alpha == found.alpha
    # what was tried on the way stays in sight
    assert found.trials[0].alpha == 1.0


@pytest.mark.parametrize("beyond", [lambda: REST, refused])
def test_a_further_way_that_brings_nothing_is_left_out(beyond):
    found = seek([0.5, 0.0, 0.0, 0.0, 0.0], beyond=beyond)
    assert not found.reached
    assert found.alpha <= 1.5


@pytest.mark.parametrize(("alpha", "moved"), [(1.2, 0.0), (2.0, 1.0)])
def test_a_fixed_strength_is_measured_as_the_edit_will_be(alpha, moved):
    found = seek([1.0, 0.0, 0.0, 0.0, 1.0], alpha=alpha)
    assert found.alpha == alpha
    without = seek([1.0, 0.0, 0.0, 0.0, 0.0], alpha=alpha)
    logits = [torch.logit(each.trials[-1].measured.effect).mean().item() for each in (found, without)]
    assert logits[0] - logits[1] == pytest.approx(moved, abs=0.02)


def test_derivatives_lead_where_layers_may_change(generator, codes, clip_model):
    text = text_direction(clip_model, neutral="face", target="grey hair", templates="none")
    first = generator.layout.editable[0].name
    given = generator, clip_model.embed_images, codes, text
    open_, some = (
        derivative_direction(*given, each) for each in (ALL, ChannelSelection(0.0, None, (first,)))
    )
    assert some.layers == (first,)
    assert len(open_.layers) > 1
    # as edits by a table: what matters most moves by 3 deviations
    deviations = codes.editable().std(dim=0, correction=0)
    most = open_.relevance.abs().argmax()
    assert abs(open_.delta[most] / deviations[most]).item() == pytest.approx(3.0, rel=1e-4)
