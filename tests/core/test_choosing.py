"""The choice of alpha and beta on measurements whose answer is known."""

import math
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from styleclip_core.choosing import ChoosingSettings, Measured, choose, measure_on, propose
from styleclip_core.editing import ChannelSelection, select_channels
from styleclip_core.errors import NoEffectError, NoRelevantChannelError
from styleclip_core.prompts import text_direction
from styleclip_core.style_space import StyleLayer, StyleLayout

LAYOUT = StyleLayout((StyleLayer("b4.conv1", 4, 40, 0), StyleLayer("b8.conv0", 8, 40, 1)))
# relevance falls with the channel's number
RELEVANCE = torch.linspace(0.8, 0.01, 80)
DIRECT = partial(select_channels, LAYOUT, RELEVANCE, torch.ones(80))
OPEN = ChannelSelection(beta=0.0)
IMAGES = 5


def world(good, *, limit=math.inf, start=-2.0):
    """Return a measure: the first ``good`` channels bring the target, all others only move other things.

    The logit of the target rises by 1 per unit that the good channels move, up to ``limit``. Good channels
    move other things too, more than in proportion: few that move far are worse than all a little.
    """
    calls = []

    def measure(step):
        calls.append(step)
        logit = start + step[:good].sum().clamp(max=limit).repeat(IMAGES)
        movement = step[good:].abs().sum() + step[:good].square().sum()
        return Measured(torch.sigmoid(logit), movement.repeat(IMAGES))

    measure.calls = calls
    return measure


def decide(measure, **given):
    settings = ChoosingSettings(**given.pop("settings", {}))
    return choose(measure, LAYOUT, RELEVANCE, DIRECT, settings, allowed=OPEN, **given)


def test_reaches_the_effect_with_the_channels_that_bring_it():
    found = decide(world(good=12))
    last = found.trials[-1]
    assert found.reached
    assert last.stage == "chosen"
    assert last.effect == pytest.approx(0.7, abs=0.03)
    # thresholds come by numbers of channels, 4 to 20, and two between: 12 channels is near one of them
    assert 8 <= last.channels <= 14
    assert found.alpha == last.alpha
    assert f"{last.effect:.2f} on {IMAGES} images" in found.reason


@pytest.mark.parametrize("wanted", [0.4, 0.6, 0.9])
def test_wanting_more_takes_more_strength(wanted):
    kept = ChannelSelection(beta=0.7)
    weaker, stronger = (
        choose(
            world(good=12), LAYOUT, RELEVANCE, DIRECT, ChoosingSettings(effect=each), allowed=kept,
            fixed=True,
        )
        for each in (wanted - 0.1, wanted)
    )  # fmt: skip
    assert stronger.trials[-1].effect == pytest.approx(wanted, abs=0.03)
    assert stronger.alpha > weaker.alpha


def test_an_effect_out_of_reach_is_named_and_nearly_all_is_taken():
    found = decide(world(good=12, limit=1.5))
    most = torch.sigmoid(torch.tensor(-0.5)).item()
    before = torch.sigmoid(torch.tensor(-2.0)).item()
    assert not found.reached
    assert "0.7 is out of reach, 0.38 was the most" in found.reason
    assert found.trials[-1].effect == pytest.approx(before + 0.9 * (most - before), abs=0.03)


def test_no_alpha_beyond_the_strongest_is_tried():
    found = decide(world(good=12), settings={"effect": 0.9, "first": 0.1, "strongest": 0.2})
    assert max(trial.alpha for trial in found.trials) == 0.2
    assert not found.reached


def test_alpha_alone_keeps_the_channels():
    kept = ChannelSelection(top_k=3, include=("b4.*",))
    found = choose(world(good=12), LAYOUT, RELEVANCE, DIRECT, ChoosingSettings(), allowed=kept, fixed=True)
    assert {trial.channels for trial in found.trials} == {3}
    assert found.selection == kept
    assert found.trials[-1].effect == pytest.approx(0.7, abs=0.03)


@pytest.mark.parametrize("alpha", [1.5, -1.5])
def test_beta_alone_keeps_the_strength(alpha):
    measure = world(good=12) if alpha > 0 else world(good=12, start=9.0)
    given = {"settings": {"effect": 0.5}} if alpha > 0 else {"settings": {"effect": 0.9999}}
    found = decide(measure, alpha=alpha, **given)
    assert {trial.alpha for trial in found.trials} == {alpha}
    assert len({trial.channels for trial in found.trials}) > 3


def test_where_most_show_the_target_the_others_count():
    def measure(step):
        logits = torch.tensor([3.0, 3.0, 3.0, 3.0, -2.0]) + step[:12].sum()
        return Measured(torch.sigmoid(logits), step.abs().sum().repeat(IMAGES))

    found = decide(measure)
    assert found.trials[-1].measured.effect.shape == (1,)
    assert found.before == pytest.approx(torch.sigmoid(torch.tensor(-2.0)).item())


def test_images_that_all_show_the_target_are_an_error():
    with pytest.raises(NoEffectError, match=r"all 5 images have an effect of 0\.95 or more"):
        decide(world(good=12, start=3.0))


def test_an_edit_that_leads_away_is_an_error():
    def measure(step):
        return Measured(
            torch.sigmoid(-2.0 - step.abs().sum().repeat(IMAGES)), step.abs().sum().repeat(IMAGES)
        )

    with pytest.raises(NoEffectError, match=r"0\.119 before any edit, 0\.\d+ at most after one"):
        decide(measure)


def test_no_relevance_is_an_error():
    nothing = torch.zeros(80)
    direct = partial(select_channels, LAYOUT, nothing, torch.ones(80))
    with pytest.raises(NoRelevantChannelError):
        choose(world(good=12), LAYOUT, nothing, direct, ChoosingSettings(), allowed=OPEN)


def test_a_choice_is_the_same_every_time():
    first, second = (decide(world(good=12)) for _ in range(2))
    assert [(each.alpha, each.selection) for each in first.trials] == [
        (each.alpha, each.selection) for each in second.trials
    ]


def test_proposals_close_in_on_the_wanted_effect():
    assert propose({0.0: 0.1, 2.0: 0.2}, 0.7) == 5.0  # far below: two and a half times as strong
    assert propose({0.0: 0.1, 2.0: 0.9}, 0.5) == pytest.approx(1.0)  # half way in effect
    assert propose({0.0: 0.1, 1.0: 0.45, 1.2: 0.55}, 0.5) is None  # close enough
    assert propose({0.0: 0.1, 2.0: 0.3, 5.0: 0.3}, 0.5) is None  # more does not help


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"effect": 1.0}, r"effect must be less than 1, got 1\.0"),
        ({"thresholds": 0}, "thresholds must be at least 1"),
        ({"strengths": 1}, "strengths must be at least 2"),
        ({"first": 0}, "first must be more than 0"),
        ({"first": 11.0}, r"first must be at most strongest, got 11\.0 and 10\.0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        ChoosingSettings(**given)


def test_measurements_are_clips(generator, codes, clip_model):
    """Effect is the softmax over the two prompts, movement the part of the change off the text direction."""
    clip = clip_model
    text = text_direction(clip, neutral="face", target="grey hair", templates="none")
    step = torch.randn(generator.layout.num_editable, generator=torch.Generator().manual_seed(2))
    found = measure_on(generator, clip.embed_images, codes, text, clip.logit_scale, batch_size=2)(step)

    before, after = (clip.embed_images(generator.synthesize(each)) for each in (codes, codes.add(step)))
    prompts = clip.embed_text(["grey hair", "face"])
    wanted = (clip.logit_scale * after @ prompts.T).softmax(dim=1)[:, 0]
    assert_close(found.effect, wanted, atol=1e-4, rtol=1e-4)
    change = after - before
    squared = change.square().sum(dim=1) - (change @ text.direction).square()
    assert_close(found.movement, squared.sqrt(), atol=1e-4, rtol=1e-3)

    keep = torch.nn.functional.normalize(
        torch.randn(4, 16, generator=torch.Generator().manual_seed(3)), dim=1
    )
    measure = measure_on(generator, clip.embed_images, codes, text, clip.logit_scale, keep=keep)
    scores = (change @ keep.T).abs().mean(dim=1)
    assert_close(measure(step).movement, (squared.sqrt() * scores).sqrt(), atol=1e-4, rtol=1e-3)
