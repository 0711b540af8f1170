"""Style directions: the published arithmetic (golden arrays), numbers by hand, and laws."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from styleclip_core.editing import ChannelSelection, beta_for, editable_mask, select_channels, style_direction
from styleclip_core.errors import LayoutMismatchError, NoRelevantChannelError
from styleclip_core.relevance import RelevanceTable
from styleclip_core.style_space import StyleLayer, StyleLayout
from tests.core.conftest import GOLDEN

LAYOUT = StyleLayout((StyleLayer("b4.conv1", 4, 2, 0), StyleLayer("b8.conv0", 8, 1, 1)))
# cosines to the x axis: 1, 0, 0.6
TABLE = RelevanceTable(LAYOUT, torch.tensor([9, 9, 9]), torch.tensor([[0.5, 0], [0, 0.9], [0.3, 0.4]]))
STD = torch.tensor([2.0, 1.0, 5.0])
X = torch.tensor([1.0, 0.0])


def _delta(**selection):
    return style_direction(TABLE, X, STD, ChannelSelection(**selection)).delta


def test_strongest_channel_moves_by_one_standard_deviation():
    assert_close(_delta(beta=0.5), torch.tensor([2.0, 0.0, 3.0]))


def test_the_strongest_is_the_strongest_of_those_that_may_move():
    direction = style_direction(TABLE, X, STD, ChannelSelection(beta=0.1, exclude=("b4.*",)))
    assert_close(direction.delta, torch.tensor([0.0, 0.0, 5.0]))
    assert direction.layers == ("b8.conv0",)


def test_top_k_takes_the_k_most_relevant():
    assert_close(_delta(top_k=1), torch.tensor([2.0, 0.0, 0.0]))
    assert style_direction(TABLE, X, STD, ChannelSelection(top_k=3)).channels == 2  # one has none


def test_swapping_the_prompts_negates_the_direction():
    forth = style_direction(TABLE, X, STD, ChannelSelection(beta=0.2)).delta
    back = style_direction(TABLE, -X, STD, ChannelSelection(beta=0.2)).delta
    assert_close(back, -forth)


@given(low=st.floats(0, 1), high=st.floats(0, 1))
def test_raising_beta_never_adds_a_channel(low, high):
    low, high = sorted((low, high))
    kept = [style_direction(TABLE, X, STD, ChannelSelection(beta=beta)).delta != 0 for beta in (low, high)]
    assert not (kept[1] & ~kept[0]).any()


@given(st.floats(0.1, 10))
def test_scaling_a_deviation_scales_only_its_channel(factor):
    scaled = STD.clone()
    scaled[2] *= factor
    changed = style_direction(TABLE, X, scaled, ChannelSelection(beta=0.1)).delta
    assert_close(changed, _delta(beta=0.1) * torch.tensor([1.0, 1.0, factor]))


def test_no_survivor_is_an_error_with_the_nearest_beta():
    with pytest.raises(
        NoRelevantChannelError, match=r"beta=0.9.*0.800, at b4.conv1\[1\]; give beta <= 0.800"
    ):
        style_direction(TABLE, torch.tensor([0.6, 0.8]), STD, ChannelSelection(beta=0.9, exclude=("b8.*",)))


@given(st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3), st.integers(1, 3))
def test_at_the_beta_for_so_many_channels_so_many_take_part(values, channels):
    relevance, selection = torch.tensor(values), ChannelSelection(beta=1.0)
    beta = beta_for(LAYOUT, relevance, selection, channels)
    if beta > 0:
        kept = select_channels(LAYOUT, relevance, STD, ChannelSelection(beta=beta)).channels
        assert kept >= channels
        assert (relevance.abs() > beta).sum() < channels
    assert beta_for(LAYOUT, relevance, ChannelSelection(beta=1.0, include=("b8.*",)), 2) == 0


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({}, "give beta or top_k"),
        ({"beta": 0.1, "top_k": 3}, "give beta or top_k"),
        ({"beta": 1.5}, "from 0 to 1, got 1.5"),
        ({"top_k": 0}, "number of channels from 1"),
    ],
)
def test_wrong_selections_are_refused(selection, message):
    with pytest.raises(ValueError, match=message):
        ChannelSelection(**selection)


def test_a_misspelt_layer_is_refused():
    with pytest.raises(
        LayoutMismatchError, match=r"'b9.\*' matches no editable layer; there are b4.conv1, b8.conv0"
    ):
        editable_mask(LAYOUT, ("b9.*",), ())


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.3])
def test_directions_equal_the_published_ones(golden_arrays, parity, beta):
    golden = golden_arrays("global_direction")
    names = json.loads((GOLDEN / "global_direction.keys.json").read_text())
    layers = tuple(
        StyleLayer(f"b4.{name}", 4, width, index, "toRGB" in name)
        for index, (name, width) in enumerate(zip(names["layers"], names["dims"], strict=True))
    )
    layout = StyleLayout(layers)
    # D_c from the stored image features: unit, difference, unit, mean (reference, step f)
    features = torch.from_numpy(golden["features"])
    unit = torch.nn.functional.normalize(features, dim=-1)
    change = torch.nn.functional.normalize(unit[:, :, 1] - unit[:, :, 0], dim=-1)
    mean = change.mean(dim=1).float()
    table = RelevanceTable(layout, torch.full((len(mean),), 7), mean)
    std = torch.cat([
        torch.from_numpy(golden[f"std.{index}"])
        for index, layer in enumerate(layers) if not layer.is_torgb
    ])  # fmt: skip
    text = torch.from_numpy(golden["dt"]).float()
    direction = style_direction(table, text, std, ChannelSelection(beta=beta))
    assert direction.channels == golden[f"n_channels_{beta}"]
    expected = np.concatenate([
        golden[f"ds_{beta}.{index}"] for index, layer in enumerate(layers) if not layer.is_torgb
    ])  # fmt: skip
    parity(f"global direction, beta {beta}", direction.delta, expected)
