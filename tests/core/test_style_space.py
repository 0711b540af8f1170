"""Style codes as values."""

import pytest
import torch

from styleclip_core.errors import LayoutMismatchError
from styleclip_core.style_space import StyleCode


def test_replace_leaves_the_original_alone(codes):
    before = codes["b8.conv1"].clone()
    changed = codes.replace("b8.conv1", torch.zeros_like(before))
    assert torch.equal(codes["b8.conv1"], before)
    assert changed["b8.conv1"].abs().max() == 0
    assert torch.equal(changed["b4.conv1"], codes["b4.conv1"])


def test_flat_form_is_a_round_trip(codes):
    again = StyleCode.from_flat(codes.layout, codes.flat())
    assert all(torch.equal(again[name], codes[name]) for name in codes)


def test_adding_zero_is_the_identity_bit_for_bit(codes):
    moved = codes.add(torch.zeros(codes.layout.num_editable))
    assert torch.equal(moved.flat(), codes.flat())


def test_adding_a_direction_leaves_torgb_alone(codes):
    moved = codes.add(torch.ones(codes.layout.num_editable))
    for layer in codes.layout.layers:
        change = (moved[layer.name] - codes[layer.name]).abs().max().item()
        assert change == pytest.approx(0 if layer.is_torgb else 1, abs=1e-5)


def test_flat_indices_name_their_channels(codes):
    layout = codes.layout
    names = [layout.channel_of(index) for index in range(layout.num_editable)]
    assert names[0] == ("b4.conv1", 0)
    assert names[-1] == ("b16.conv1", layout.layer("b16.conv1").channels - 1)
    assert len(set(names)) == layout.num_editable
    with pytest.raises(IndexError, match="outside"):
        layout.channel_of(layout.num_editable)


def test_unknown_layers_and_wrong_shapes_are_refused(codes):
    with pytest.raises(LayoutMismatchError, match=r"no style layer 'b32.conv1'; this generator has b4.conv1"):
        codes["b32.conv1"]
    with pytest.raises(LayoutMismatchError, match="a style code must have"):
        codes.replace("b4.conv1", torch.zeros(3, 1))
    with pytest.raises(LayoutMismatchError, match="flat style code"):
        StyleCode.from_flat(codes.layout, torch.zeros(2, 5))
    with pytest.raises(LayoutMismatchError, match="a style direction"):
        codes.add(torch.zeros(5))
