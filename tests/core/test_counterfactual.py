"""The true picture of an edit: what it is, that the search finds it, and what errors are measured from it."""

import pytest
import torch
from torch.testing import assert_close

from benchmarks.quality.counterfactual import Counterfactuals, difference, errors, fulfilled
from benchmarks.quality.prompts import PROMPTS
from benchmarks.quality.truth import over_portraits, truth_sections
from styleclip.data.world.captions import ATTRIBUTES
from styleclip.data.world.photographs import held_out_factors
from styleclip.data.world.renderer import FACTORS, INDEX, render, render_strengths, strengths

BY_NAME = {each.name: each for each in PROMPTS}
FACTORS_OF_THREE = held_out_factors(99, 3)
SHOWN = strengths(FACTORS_OF_THREE)
FAR = ("grey_hair", "black_hair", "smile", "glasses", "bg_blue", "wide_face")


def values(number):
    return torch.full((len(SHOWN),), number)


def test_strengths_are_drawn_as_the_factors_that_show_so():
    assert torch.equal(render_strengths(SHOWN), render(FACTORS_OF_THREE))


@pytest.mark.parametrize("name", FAR)
def test_the_counterfactual_of_the_same_value_is_the_same_picture(name):
    truth = Counterfactuals(BY_NAME[name], SHOWN)
    portrait = truth.at(values(0.0))
    assert torch.equal(portrait, render(FACTORS_OF_THREE))
    found = truth.nearest(portrait)
    assert torch.equal(found.value, values(0.0))
    assert torch.equal(found.images, portrait)
    same = errors(portrait, found.images, portrait, truth.region)
    assert same["psnr"].isinf().all()
    assert_close(same["ssim"], values(1.0))
    assert_close(same["inside"].nan_to_num(), values(0.0))
    assert_close(same["outside"], values(0.0))


@pytest.mark.parametrize("name", FAR)
@pytest.mark.parametrize("value", [0.25, 0.53, 1.0])
def test_the_search_finds_a_known_value(name, value):
    prompt = BY_NAME[name]
    shown = SHOWN.clone()
    shown[:, INDEX["hat"]] = 0  # a hat and what shows the prompt already leave little to see
    shown[:, INDEX["hair_grey"]] = 0.1
    shown[:, INDEX[prompt.factor]] = 0.1 if prompt.sign > 0 else 0.9
    truth = Counterfactuals(prompt, shown)
    noise = 0.02 * torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = truth.nearest(truth.at(values(value)) + noise)
    assert_close(found.value, values(value), atol=1 / 64, rtol=0)


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: prompt.name)
def test_the_end_of_the_line_shows_the_prompt_and_changes_nothing_else(prompt):
    end = fulfilled(prompt, SHOWN)
    attribute = next(each for each in ATTRIBUTES if each.name == prompt.name)
    assert attribute.test(end).all()
    changed = {FACTORS[i] for i in (end != SHOWN).any(dim=0).nonzero().flatten()}
    colours_of_hair = {name for name in prompt.related if prompt.factor != "hat"}
    assert changed <= {prompt.factor} | colours_of_hair
    assert torch.equal(fulfilled(prompt, end), end)


def test_the_region_is_where_the_end_differs():
    truth = Counterfactuals(BY_NAME["red_lips"], SHOWN)
    differs = (truth.at(values(1.0)) - truth.at(values(0.0))).abs().amax(dim=1)
    assert (differs[truth.region] > 0.12).all()
    assert (differs[~truth.region] <= 0.12).all()
    rows = truth.region.any(dim=2).nonzero()[:, 1]
    assert 32 < rows.min() <= rows.max() < 56  # the mouth's part of a portrait of 64 pixels


def test_a_portrait_that_shows_the_prompt_has_no_error_inside():
    truth = Counterfactuals(BY_NAME["hat"], fulfilled(BY_NAME["hat"], SHOWN))
    portrait = truth.at(values(0.0))
    found = errors(portrait, portrait, portrait, truth.region)
    assert found["inside"].isnan().all()
    assert found["outside"].isfinite().all()


def test_lilac_hair_is_an_error_inside_and_a_shifted_background_one_outside():
    grey = BY_NAME["grey_hair"]
    shown = SHOWN.clone()
    shown[:, [INDEX["hair_grey"], INDEX["hat"]]] = 0
    truth = Counterfactuals(grey, shown)
    before, right = truth.at(values(0.0)), truth.at(values(1.0))
    tint = torch.tensor([0.1, -0.1, 0.3]).view(1, 3, 1, 1)
    lilac = torch.where(truth.region[:, None], (right + tint).clamp(-1, 1), right)
    found = errors(lilac, right, before, truth.region)
    assert (found["inside"] > 10).all()
    assert (found["chroma"] > 0.1).all()
    elsewhere = torch.where(truth.region[:, None], right, (right + tint).clamp(-1, 1))
    moved = errors(elsewhere, right, before, truth.region)
    assert_close(moved["inside"], values(0.0))
    assert (moved["outside"] > 3).all()
    assert (found["outside"] < 1).all()


def test_the_difference_of_colours_is_that_of_the_standard():
    """Of black and white it is 100, of equal colours 0 (CIE 142-2001)."""
    black, white = -torch.ones(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    assert_close(difference(black, white), torch.full((1, 2, 2), 100.0), atol=1e-3, rtol=0)
    assert_close(difference(white, white), torch.zeros(1, 2, 2))


def test_figures_are_means_of_the_portraits_that_have_one():
    found = over_portraits(torch.tensor([1.0, 3.0, torch.nan]))
    assert found[0] == 2.0
    assert ((found[1:] >= 1) & (found[1:] <= 3) | (found[1:] != found[1:])).all()


def test_a_table_is_of_the_prompts_that_all_its_ways_have_and_lies_between_the_marks():
    wanted = {"floor": 10.0, "ceiling": 2.0, "good": 4.0, "bad": 12.0}

    def found(way, prompt):
        if way == "bad" and prompt.name == "hat":
            return None
        figures = {"inside": wanted[way] / 2, "wanted": wanted[way], "reached": 0.5}
        return {f"50%/{name}": torch.tensor([value, value, torch.nan]) for name, value in figures.items()}

    (made,) = truth_sections(["good", "bad"], [BY_NAME["smile"], BY_NAME["hat"]], found)
    assert made.title == "against the true picture, where the target has moved 50% of its room"
    rows = {row[0]: row[1:] for row in made.rows}
    assert {row[1] for row in rows.values()} == {"1"}  # bad has no hat, so the others' hats do not count
    between = {way: float(row[-1].partition(" ")[0]) for way, row in rows.items()}
    assert between == {"floor": 0.0, "ceiling": 1.0, "good": 0.75, "bad": -0.25}
    assert made.figures["good: inside"] == 2.0
    assert "identity" not in made.header  # not measured, so not shown
