"""Style directions: the published arithmetic (golden arrays), numbers by hand, and laws."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from styleclip_core.editing import (
    ChannelSelection,
    beta_for,
    editable_mask,
    least_squares,
    select_channels,
    style_direction,
)
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


def _distance(weights, rows, text):
    """Return what least squares minimize, by the definition."""
    size = rows.square().sum(dim=1)
    penalty = 1 - size + 0.03 * size.sum()
    return (weights @ rows - text).square().sum() + (penalty * weights.square()).sum()


_ROWS = st.integers(1, 6).flatmap(lambda k: st.integers(0, 2**32 - 1).map(lambda seed: (k, seed)))


@given(_ROWS, st.floats(-2, 2), st.floats(-1, 1))
def test_no_other_weights_come_nearer_than_least_squares(drawn, factor, step):
    k, seed = drawn
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(k, 4, generator=random, dtype=torch.float64)
    rows = rows / rows.norm(dim=1, keepdim=True) * torch.rand(k, 1, generator=random, dtype=torch.float64)
    text = torch.nn.functional.normalize(torch.randn(4, generator=random, dtype=torch.float64), dim=0)
    found = least_squares(rows, text)
    least = _distance(found, rows, text) - 1e-9
    assert least <= _distance(factor * (rows @ text), rows, text)  # the paper's rule, at any strength
    assert least <= _distance(found + step * torch.randn(k, generator=random).double(), rows, text)
    assert_close(least_squares(rows, -text), -found)


def test_least_squares_share_between_equals_and_cancel_what_is_beside_the_text():
    text = torch.tensor([1.0, 0.0, 0.0])
    twins = torch.tensor([[0.6, 0.0, 0.0], [0.6, 0.0, 0.0], [0.6, 0.8, 0.0]])
    found = least_squares(twins, text)
    assert_close(found[0], found[1])
    both = torch.tensor([[0.8, 0.6, 0.0], [0.2, -0.9, 0.0]])
    along, beside, _ = least_squares(both, text) @ both
    assert abs(beside / along) < 0.6 / 0.8 / 4  # that of the first alone


def test_least_squares_trust_a_channel_less_whose_codes_disagree():
    text = torch.tensor([1.0, 0.0])
    found = least_squares(torch.tensor([[0.9, 0.0], [0.3, 0.0]]), text)
    assert found[0] > 3 * found[1] > 0


def test_least_squares_take_the_same_channels_and_the_largest_moves_by_one_deviation():
    text = torch.tensor([0.6, 0.8])
    by_rule, found = (
        style_direction(TABLE, text, STD, ChannelSelection(beta=0.1, weights=weights))
        for weights in ("relevance", "least-squares")
    )
    assert (found.channels, found.layers) == (by_rule.channels, by_rule.layers)
    assert_close(found.relevance, by_rule.relevance)
    assert_close((found.delta / STD).abs().max(), torch.tensor(1.0))
    assert not torch.allclose(found.delta, by_rule.delta)
    one = style_direction(TABLE, text, STD, ChannelSelection(top_k=1, weights="least-squares"))
    assert_close(one.delta, style_direction(TABLE, text, STD, ChannelSelection(top_k=1)).delta)


def test_least_squares_need_a_table():
    selection = ChannelSelection(beta=0.1, weights="least-squares")
    with pytest.raises(ValueError, match="need a relevance table"):
        select_channels(LAYOUT, TABLE.relevance(X), STD, selection)


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
