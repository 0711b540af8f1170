"""Instant relevance against the table of very small moves, which is the same quantity."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from styleclip_core.editing import ChannelSelection, select_channels
from styleclip_core.errors import LayoutMismatchError
from styleclip_core.instant import instant_relevance, mean_derivative
from styleclip_core.style_space import StyleCode

TEXT = F.normalize(torch.tensor([1.0, -2.0, 0.5, 0.3, 0.0, 1.0, 0.4]), dim=0)


def _embed(images):
    """A smooth stand-in for CLIP, 7 wide."""
    features = torch.cat([images.mean(dim=(2, 3)), images[:, :, 3, 3], torch.ones(len(images), 1)], dim=1)
    return F.normalize(features, dim=1)


def _double(codes):
    return StyleCode(codes.layout, {name: style.double() for name, style in codes.items()})


def _std(generator):
    source = torch.Generator().manual_seed(4)
    return torch.rand(generator.layout.num_editable, generator=source) + 0.5


def _by_small_moves(generator, codes, flat_index, step=2e-3):
    """The mean derivative of the embedding by one channel, from central differences in float64."""
    generator, codes = deepcopy(generator).double(), _double(codes)
    layer, channel = generator.layout.channel_of(flat_index)
    ends = []
    for sign in (1, -1):
        style = codes[layer].clone()
        style[:, channel] += sign * step
        ends.append(_embed(generator.synthesize(codes.replace(layer, style))).double())
    return ((ends[0] - ends[1]) / (2 * step)).mean(dim=0).float()


def test_derivatives_are_those_of_small_moves(generator, codes):
    found = mean_derivative(generator, _embed, codes, torch.eye(7), batch_size=2)
    for flat_index in (0, 14, 30, 50):
        expected = _by_small_moves(generator, codes, flat_index)
        assert_close(found[:, flat_index], expected, atol=2e-3 * found.abs().max().item(), rtol=2e-2)


def test_with_all_probes_relevance_is_the_cosine(generator, codes):
    relevance = instant_relevance(generator, _embed, codes, TEXT, _std(generator), probes=7)
    rows = mean_derivative(generator, _embed, codes, torch.eye(7)).t()
    assert_close(relevance, F.normalize(rows, dim=1) @ TEXT, atol=1e-3, rtol=1e-3)


def test_without_probes_relevance_is_the_effect(generator, codes):
    std = _std(generator)
    relevance = instant_relevance(generator, _embed, codes, TEXT, std, probes=0)
    effect = mean_derivative(generator, _embed, codes, TEXT[None])[0] * std
    assert_close(relevance, effect / effect.abs().max(), atol=1e-6, rtol=1e-4)


def test_swapping_the_prompts_negates_relevance_and_repeats_agree(generator, codes):
    std = _std(generator)
    there, back = (instant_relevance(generator, _embed, codes, s * TEXT, std, probes=3) for s in (1, -1))
    assert_close(there, -back, atol=1e-6, rtol=1e-5)
    assert torch.equal(there, instant_relevance(generator, _embed, codes, TEXT, std, probes=3))


@pytest.mark.parametrize("probes", [0, 3])
def test_prompts_together_are_what_they_are_alone(generator, codes, probes):
    std, texts = _std(generator), torch.stack([TEXT, TEXT.roll(2), -TEXT.roll(3)])
    together = instant_relevance(generator, _embed, codes, texts, std, probes=probes)
    alone = [instant_relevance(generator, _embed, codes, text, std, probes=probes) for text in texts]
    assert_close(together, torch.stack(alone), atol=1e-5, rtol=1e-5)


def test_a_caller_without_gradients_gets_the_same(generator, codes):
    std = _std(generator)
    expected = instant_relevance(generator, _embed, codes, TEXT, std, probes=3)
    with torch.no_grad():
        assert torch.equal(instant_relevance(generator, _embed, codes, TEXT, std, probes=3), expected)


def test_a_generator_that_shows_nothing_has_no_relevance_and_no_nan(generator, codes):
    relevance = instant_relevance(generator, lambda x: _embed(x * 0), codes, TEXT, _std(generator), probes=2)
    assert relevance.abs().max() == 0


def test_relevance_becomes_a_direction_and_codes_stay(generator, codes):
    before = codes.flat().clone()
    std = _std(generator)
    relevance = instant_relevance(generator, _embed, codes, TEXT, std, probes=5)
    direction = select_channels(generator.layout, relevance, std, ChannelSelection(top_k=3))
    assert direction.channels == 3
    assert torch.equal(codes.flat(), before)
    assert not codes["b8.conv0"].requires_grad


def test_what_does_not_fit_is_refused(generator, codes):
    with pytest.raises(LayoutMismatchError, match="editable channels, std is"):
        instant_relevance(generator, _embed, codes, TEXT, torch.ones(3))
    with pytest.raises(ValueError, match="from 0 to the embedding's width 7, got 8"):
        instant_relevance(generator, _embed, codes, TEXT, _std(generator), probes=8)
    with pytest.raises(ValueError, match="no style codes"):
        instant_relevance(generator, _embed, codes.select(slice(0, 0)), TEXT, _std(generator), probes=1)
