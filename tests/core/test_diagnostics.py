"""Diagnostics of prompts and channels, by hand and by law."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from styleclip_core.diagnostics import (
    COINCIDE,
    Channel,
    carried_share,
    channel_counts,
    channel_images,
    cosine_matrix,
    find_channel,
    nearest_prompts,
    step_similarity,
    strongest_channels,
)
from styleclip_core.editing import ChannelSelection, select_channels
from styleclip_core.errors import LayoutMismatchError, NoRelevantChannelError
from styleclip_core.relevance import RelevanceTable


@given(st.lists(st.floats(0.01, 0.9), min_size=1, max_size=5))
def test_counts_are_those_of_the_edit(generator, betas):
    layout = generator.layout
    relevance = torch.linspace(-1, 1, layout.num_editable)
    counts = channel_counts(layout, relevance, betas)
    std = torch.ones_like(relevance)
    for beta, count in zip(betas, counts, strict=True):
        assert count == select_channels(layout, relevance, std, ChannelSelection(beta=beta)).channels


def test_counts_know_layer_masks(generator):
    layout = generator.layout
    relevance = torch.ones(layout.num_editable)
    first = layout.editable[0]
    assert channel_counts(layout, relevance, [0.5, 1.1], (first.name,)) == [first.channels, 0]


def test_strongest_channels_have_names_that_find_them(generator):
    layout = generator.layout
    relevance = torch.zeros(layout.num_editable)
    relevance[7], relevance[20] = 0.2, -0.9
    found = strongest_channels(layout, relevance, 5)
    assert [(each.index, round(each.relevance, 3)) for each in found] == [(20, -0.9), (7, 0.2)]
    for each in found:
        assert find_channel(layout, each.name).index == each.index
    for wrong in ("b4.conv1.999", "b4.torgb.0", "b4.conv1", "b4.conv1.-1", ""):
        with pytest.raises(LayoutMismatchError, match=r"there are b4\.conv1 \(12\)"):
            find_channel(layout, wrong)


def test_cosines_of_pairs_are_symmetric_and_zero_vectors_are_near_nothing():
    vectors = torch.tensor([[1.0, 0.0], [2.0, 0.2], [0.0, 1.0], [-1.0, 0.0], [0.0, 0.0]])
    matrix = cosine_matrix(vectors)
    assert_close(matrix, matrix.T)
    assert matrix[0, 1].item() == pytest.approx(2 / math.hypot(2, 0.2))
    assert matrix[4].abs().max() == 0
    assert matrix[0, 3].item() == -1
    assert 0.61 < COINCIDE < 0.998


def test_step_similarity_by_hand():
    same = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    turned = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = step_similarity([same, turned])
    # one direction for both images; two at right angles; image by image cosines 1 and 0
    assert_close(found, torch.tensor([[1.0, 0.5], [0.5, 0.0]]))
    alone = step_similarity([same[:1], turned[:1]])
    assert_close(alone, torch.tensor([[math.nan, 1.0], [1.0, math.nan]]), equal_nan=True)


def test_a_channel_is_drawn_moved_by_its_deviations(generator, codes):
    channel = find_channel(generator.layout, "b8.conv1.3")
    drawn = channel_images(generator, codes, channel, 0.5, (-5.0, 0.0, 5.0))
    assert drawn.shape == (3, 3, 3, 16, 16)
    assert_close(drawn[:, 1], generator.synthesize(codes))
    style = codes["b8.conv1"].clone()
    style[:, 3] += 2.5
    assert_close(drawn[:, 2], generator.synthesize(codes.replace("b8.conv1", style)))
    assert not torch.equal(drawn[:, 0], drawn[:, 2])


def test_nearest_prompts_are_cosines():
    texts = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    assert_close(nearest_prompts(torch.tensor([0.5, 0.0]), texts), torch.tensor([1.0, 0.0, -1.0]))
    assert nearest_prompts(torch.zeros(2), texts).abs().max() == 0
    assert Channel("b4.conv1", 2, 2, 0.0).name == "b4.conv1.2"


def test_what_channels_carry_by_hand(generator):
    layout = generator.layout
    direction = torch.zeros(layout.num_editable, 4)
    direction[0] = torch.tensor(
        [0.6, 0.0, 0.0, 0.0]
    )  # leads along the first axis, as 60 % of its codes agree
    direction[1] = torch.tensor([0.0, 0.8, 0.0, 0.0])
    table = RelevanceTable(layout, torch.full((layout.num_editable,), 9), direction)

    # relevances are 0.6 and 0.8; the channels lead to 0.36 and 0.64 of what they are; beta takes the second
    text = torch.tensor([0.6, 0.8, 0.0, 0.0])
    both, one = ChannelSelection(beta=0.1), ChannelSelection(beta=0.7)
    assert carried_share(table, text, both) == pytest.approx(
        (0.36 * 0.6 + 0.64 * 0.8) / math.hypot(0.36, 0.64)
    )
    assert carried_share(table, text, one) == pytest.approx(0.8)

    # what lies half outside of all channels is carried by so much less
    assert carried_share(table, torch.tensor([0.6, 0.0, 0.8, 0.0]), both) == pytest.approx(0.6)
    with pytest.raises(NoRelevantChannelError):
        carried_share(table, torch.tensor([0.0, 0.0, 0.0, 1.0]), both)
