"""Zero-shot attributes and labels, with answers worked out by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from styleclip_core.metrics import mean_and_error, pixel_scores, step_agreement
from styleclip_core.zero_shot import (
    attribute_logits,
    label_probabilities,
    match_attribute,
    standardized_change,
    unrelated,
)

X, Y, Z = torch.eye(3)


def test_a_logit_is_the_scaled_difference_of_cosines():
    images = torch.stack([X, 0.6 * X + 0.8 * Y])
    logits = attribute_logits(images, torch.stack([X, Z]), torch.stack([Y, Y]), 10.0)
    assert_close(logits, torch.tensor([[10.0, 0.0], [-2.0, -8.0]]))


def test_a_pair_of_labels_has_the_logistic_function_of_the_attribute():
    images = torch.stack([X, 0.6 * X + 0.8 * Y])
    cosines = images @ torch.stack([X, Y]).T
    pair = label_probabilities(cosines, ("", ""), 10.0)[:, 0]
    assert_close(pair, attribute_logits(images, X[None], Y[None], 10.0)[:, 0].sigmoid())


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=6), st.floats(1, 100))
def test_probabilities_of_a_group_add_up_to_one_and_do_not_see_the_others(groups, scale):
    cosines = torch.linspace(-1, 1, 2 * len(groups)).view(2, -1)
    found = label_probabilities(cosines, groups, scale)
    for group in set(groups):
        mine = [place for place, each in enumerate(groups) if each == group]
        assert_close(found[:, mine].sum(dim=1), torch.ones(2))
        assert_close(found[:, mine], (scale * cosines[:, mine]).softmax(dim=1))


def test_an_edit_is_about_the_attribute_it_points_along_or_away_from():
    positive, negative = torch.stack([X, Y]), torch.stack([Z, Z])
    towards = match_attribute(X - Z, positive, negative)
    assert (towards.index, towards.sign) == (0, 1)
    assert towards.cosine == pytest.approx(1, abs=1e-6)
    away = match_attribute(Z - Y, positive, negative)
    assert (away.index, away.sign) == (1, -1)
    assert match_attribute(X - Y, positive, negative) is None  # 60 degrees from both
    assert match_attribute(X, torch.zeros(0, 3), torch.zeros(0, 3)) is None


def test_changes_are_in_deviations_and_unknown_where_there_is_none():
    change = standardized_change(
        torch.zeros(1, 3), torch.tensor([[2.0, 2.0, 2.0]]), torch.tensor([4.0, 0.0, math.nan])
    )
    assert_close(change, torch.tensor([[0.5, math.nan, math.nan]]), equal_nan=True)


def test_attributes_of_the_target_s_group_answer_for_nothing():
    groups = ["hair", "hair", "", ""]
    assert unrelated(groups, 0) == [2, 3]
    assert unrelated(groups, 2) == [0, 1, 3]  # no group is no group in common
    assert unrelated(groups, None) == [0, 1, 2, 3]


def test_steps_agree_one_by_one():
    way = torch.nn.functional.normalize(
        torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), dim=1
    )
    change = way[1] - way[0]
    found = step_agreement(way, change / change.norm())
    assert_close(found, torch.tensor([1.0, -1.0, 0.0]))  # there, back, and nothing


def test_pixel_scores_by_hand():
    first = torch.zeros(2, 3, 16, 16)
    second = torch.stack([torch.zeros(3, 16, 16), torch.full((3, 16, 16), 0.2)])
    scores = pixel_scores(first, second)
    assert scores["psnr"][0] == math.inf
    assert scores["psnr"][1].item() == pytest.approx(20, abs=1e-4)  # 0.1 of the pixel range
    assert_close(scores["l1"], torch.tensor([0.0, 0.1]))
    # without structure SSIM is its luminance term alone
    luminance = (2 * 0.5 * 0.6 + 0.01**2) / (0.5**2 + 0.6**2 + 0.01**2)
    assert_close(scores["ssim"], torch.tensor([1.0, luminance]), atol=1e-4, rtol=0)
    one = pixel_scores(first[1:], second[1:])
    assert_close(one["ssim"], scores["ssim"][1:])
    with pytest.raises(ValueError, match="equal shapes"):
        pixel_scores(first, second[:, :, :8])


def test_means_leave_out_what_is_not_finite():
    mean, error, n = mean_and_error([1.0, 3.0, math.inf, math.nan])
    assert (mean, n) == (2.0, 2)
    assert error == pytest.approx(1.0)  # deviation sqrt(2) over sqrt(2)
    assert mean_and_error([5.0])[2] == 1
    assert math.isnan(mean_and_error([5.0])[1])
    assert mean_and_error([])[2] == 0
