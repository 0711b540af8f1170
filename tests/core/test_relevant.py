"""Edits that keep the person, on a small generator: channels, where they begin, what stays, mappers."""

import json
import struct
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from styleclip_core import load_mapper
from styleclip_core.editing import ChannelSelection, EditedLatents
from styleclip_core.mapper_training import PRESETS as MAPPERS
from styleclip_core.mapper_training import MapperTraining, MapperTrainingSettings, apply_mapper
from styleclip_core.matching import likelihood, matched_direction
from styleclip_core.models.mapper import save_mapper
from styleclip_core.optimization import PRESETS, OptimizationSettings, optimize
from styleclip_core.prompts import TextDirection
from styleclip_core.relevant import (
    BETA,
    RelevantChannels,
    logit,
    look_at,
    relevant_channels,
    shares_of_the_way,
)

SCALE = 20.0


@pytest.fixture(scope="module")
def world(generator):
    """Stand-ins for both networks, sampled codes, and a prompt that a third of them show."""
    source = torch.Generator().manual_seed(4)
    weights = [torch.randn(3 * 16 * 16, 6, generator=source, dtype=torch.float64) for _ in range(2)]

    def projection(weight):
        # in float64, as a product of small matrices rounds by the place of a row
        return lambda image: F.normalize(torch.tanh(image.flatten(1).double() @ weight / 8), dim=1).float()

    clip, identity = map(projection, weights)
    codes = generator.styles(generator.map(torch.randn(150, 8, generator=source)))
    embedded = look_at(generator, clip, codes)
    # a prompt that a third of the codes show: the first component, above its upper third
    axis = torch.linalg.svd(embedded - embedded.mean(dim=0))[2][0]
    bound = (embedded @ axis).quantile(0.67)
    middle = F.normalize(embedded.mean(dim=0), dim=0)
    difference = axis - bound * middle / (embedded @ middle).mean()
    neutral = F.normalize(middle - difference / 2, dim=0)
    target = F.normalize(middle + difference / 2, dim=0)
    text = TextDirection(
        "face", "target", "none", F.normalize(target - neutral, dim=0), (target - neutral).norm().item()
    )
    w_source = generator.map(torch.randn(5, 8, generator=source))
    return clip, identity, codes, embedded, text, neutral, target, w_source


@pytest.fixture(scope="module")
def channels(generator, world):
    clip, _, codes, embedded, text, *_ = world
    found = relevant_channels(generator, clip, codes, embedded, text, SCALE)
    # some stay, whatever the chance of small networks says
    still = torch.arange(len(found.width)) % 3 == 0
    return replace(found, width=torch.where(still, 0.0, found.width))


def run(generator, world, channels, w_source=None, **changes):
    clip, identity, *_, neutral, target, sources = world
    w_source = sources if w_source is None else w_source
    settings = replace(PRESETS["faithful"], **{"steps": 6, "chunk": 2, **changes})
    texts = [each.expand(len(w_source), -1) for each in (target, neutral)]
    return list(
        optimize(
            generator, clip, w_source, texts[0], settings, embed_identity=identity, neutral=texts[1],
            scale=SCALE, channels=channels,
        )
    )  # fmt: skip


def training(generator, world, channels, **changes):
    clip, identity, *_, neutral, target, _ = world
    codes = generator.map(torch.randn(12, 8, generator=torch.Generator().manual_seed(9)))
    settings = replace(MAPPERS["faithful"], **{"steps": 12, "batch_size": 4, "validate_every": 4, **changes})
    return MapperTraining(
        generator, clip, target, codes[:8], codes[8:], settings, embed_identity=identity, neutral=neutral,
        scale=SCALE, channels=channels,
    )  # fmt: skip


# ---- channels -------------------------------------------------------------------------------------


def test_channels_are_those_of_a_matched_edit_and_their_widths_count_relevance(generator, world):
    clip, _, codes, embedded, text, *_ = world
    found = relevant_channels(generator, clip, codes, embedded, text, SCALE)
    matched = matched_direction(codes, likelihood(embedded, text, SCALE), ChannelSelection(beta=BETA))
    deviation = codes.editable().std(dim=0, correction=0)
    expected = torch.where(matched.relevance >= BETA, deviation * matched.relevance.sqrt(), 0.0)
    assert_close(found.width, expected)
    way = found.width * found.begin(codes.editable(), 1.0)
    assert_close(way, torch.where(found.width > 0, matched.step(codes), 0.0), atol=1e-5, rtol=1e-4)


def test_where_no_code_shows_the_target_derivatives_say_which_channels_matter(generator, world):
    clip, _, codes, embedded, text, *_ = world
    unseen = replace(text, norm=text.norm * 50, direction=-embedded.mean(dim=0) / embedded.mean(dim=0).norm())
    found = relevant_channels(generator, clip, codes, embedded, unseen, SCALE)
    assert not found.pull.any()  # the same step for all images
    assert not found.delta.any()
    assert torch.equal(found.width > 0, found.further != 0)
    # a step along them brings images nearer to the prompt
    moved = look_at(generator, clip, codes.add(0.03 * found.further))
    assert ((moved - embedded) @ unseen.direction).mean() > 0


def test_an_image_goes_as_far_as_it_needs_and_half_of_the_way_at_least():
    before = torch.tensor([-2.0, -1.0, 2.0, -90.0])
    shares = shares_of_the_way(before, lambda share: before + 2 * share, 0.0)
    assert_close(shares, torch.tensor([1.0, 0.5, 0.5, 1.5]))


def test_beyond_its_end_the_way_goes_on_along_derivatives():
    ones = torch.ones(2)
    found = RelevantChannels(2 * ones, 0 * ones, 0 * ones, torch.tensor([0.0, 8.0]), torch.tensor([1.0, 2.0]))
    begun = found.begin(torch.zeros(3, 2), torch.tensor([[1.0], [1.5], [2.0]]))
    assert_close(begun, torch.tensor([[2.0, 1.0], [3.0, 1.5], [3.0, 3.5]]))
    assert found.shares[-1] == 2.5
    assert replace(found, further=0 * ones).shares[-1] == 1.5


# ---- optimization ---------------------------------------------------------------------------------


def test_channels_that_a_prompt_does_not_concern_stay_bit_for_bit(generator, world, channels):
    end = run(generator, world, channels)[-1]
    before, after = (
        each.flat() for each in (generator.styles(world[-1]), end.moved.codes(generator))
    )  # fmt: skip
    may = torch.zeros(generator.layout.num_channels, dtype=torch.bool)
    may[generator.layout.editable_index] = channels.width > 0
    assert torch.equal(before[:, ~may], after[:, ~may])
    assert (before != after)[:, may].any(dim=0).float().mean() > 0.9


def test_pairs_of_relevant_channels_do_not_see_each_other(generator, world, channels):
    together = run(generator, world, channels)[-1]
    for index in range(5):
        one = world[-1][index : index + 1]
        alone = run(generator, world, channels, one)[-1]
        assert torch.equal(together.moved.offset[index], alone.moved.offset[0])
        assert torch.equal(together.clip[index], alone.clip[0])


def test_it_begins_along_the_way_and_keeps_more_of_the_person_than_the_way_does(generator, world, channels):
    first, *_, end = run(generator, world, channels, steps=25, l2_weight=0.01)
    styles = generator.styles(world[-1]).editable()
    way = channels.width * channels.begin(styles, 1.0)
    begun = first.moved.offset[:, generator.layout.editable_index]
    shares = (begun * way).sum(dim=1) / way.square().sum(dim=1)
    assert_close(begun, shares[:, None] * way, atol=1e-5, rtol=1e-4)
    assert ((shares > 0.499) & (shares < 1.501)).all()
    assert (first.l2 == 0).all()
    assert end.identity.mean() < first.identity.mean()
    assert end.loss.mean() < first.loss.mean()


def test_the_clip_term_is_how_many_logits_are_missing(generator, world, channels):
    clip, *_, neutral, target, _ = world
    first = run(generator, world, channels, effect=0.9)[0]
    embedded = clip(generator.synthesize(first.moved.codes(generator)))
    missing = logit(0.9) - SCALE * (embedded @ (target - neutral))
    assert_close(first.clip, missing.clamp(min=0), atol=1e-4, rtol=1e-4)


def test_what_relevant_channels_need_is_said(generator, world, channels):
    with pytest.raises(ValueError, match="begin where an effect is reached; give effect"):
        OptimizationSettings(space="relevant")
    with pytest.raises(ValueError, match="begin where an effect is reached; give effect"):
        MapperTrainingSettings(kind="style-relevant")
    with pytest.raises(ValueError, match="no channels are given"):
        run(generator, world, None)
    with pytest.raises(ValueError, match="no channels are given"):
        training(generator, world, None)
    clip, identity, *_, target, w_source = world
    with pytest.raises(ValueError, match="seen from a neutral prompt"):
        next(
            optimize(
                generator, clip, w_source, target.expand(5, -1), PRESETS["faithful"], embed_identity=identity
            )
        )  # fmt: skip


# ---- mappers --------------------------------------------------------------------------------------


def test_a_mapper_begins_with_the_way_and_leaves_other_channels_alone(generator, world, channels):
    begun = training(generator, world, channels)
    assert begun.validate().l2 == 0
    w_plus = world[-1]
    before = generator.styles(w_plus)
    way = channels.width * channels.begin(before.editable(), 1.0)
    moved = apply_mapper(begun.mapper, generator, EditedLatents(w_plus), 0.1).codes(generator)
    step = moved.editable() - before.editable()
    share = (step * way).sum() / way.square().sum()
    assert_close(step, share * way, atol=1e-5, rtol=1e-3)

    *_, last = begun.run()
    assert last.best < begun.curve[-1][5] + 1  # it was validated
    after = apply_mapper(begun.best, generator, EditedLatents(w_plus), 0.1).codes(generator)
    stay = channels.width == 0
    assert torch.equal(after.editable()[:, stay], before.editable()[:, stay])
    rgb = [layer.name for layer in before.layout.layers if layer.is_torgb]
    assert all(torch.equal(after[name], before[name]) for name in rgb)


def test_training_lowers_the_loss_from_the_way_on(generator, world, channels):
    begun = training(generator, world, channels, steps=40, effect=0.97)
    before = begun.validate()
    *_, last = begun.run()
    assert last.best < before.total
    assert begun.validate().l2 > 0


def test_a_mapper_of_relevant_channels_is_stored_and_resumed_to_the_same_bits(
    generator, world, channels, tmp_path
):
    whole = training(generator, world, channels)
    list(whole.run())
    first = training(generator, world, channels)
    for done in first.run():
        if done.step == 5:
            break
    second = training(generator, world, channels)
    second.restore(first.to_bytes())
    list(second.run())
    assert whole.curve == second.curve

    save_mapper(whole.best, tmp_path / "mapper.safetensors")
    loaded, source = load_mapper(tmp_path / "mapper.safetensors"), EditedLatents(world[-1])
    assert loaded.config == whole.best.config
    moved = [apply_mapper(each, generator, source, 0.2).offset for each in (loaded, whole.best)]
    assert torch.equal(*moved)


def test_a_training_stored_before_there_was_an_effect_goes_on(generator, world):
    def old():
        return training(generator, world, None, kind="single", effect=None, identity_weight=0.0)

    first = old()
    next(first.run())
    content = first.to_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    said = json.loads(header["__metadata__"]["styleclip"])
    del said["settings"]["effect"]
    header["__metadata__"]["styleclip"] = json.dumps(said)
    packed = json.dumps(header).encode()
    second = old()
    second.restore(struct.pack("<Q", len(packed)) + packed + content[8 + length :])
    assert second.step == 1


def test_channels_of_another_format_follow_what_they_are_moved_with():
    ones = torch.ones(3)
    found = RelevantChannels(ones, ones, ones, ones, ones).to(torch.zeros(1, dtype=torch.float64))
    assert found.width.dtype == torch.float64
