"""Edits that say auto: checked, chosen on photographs or codes, stored with every pair tried, and kept."""

import shutil

import pytest
import yaml

from styleclip import data
from styleclip.flows.choose_edits import choose_edits
from styleclip.flows.edit_images import edit_images
from styleclip.tasks.artifacts import read_provenance, read_table
from styleclip.tasks.directions.choosing import ChosenStrength
from styleclip.tasks.settings import Choosing, Instant, Inversion, Models, Relevance, Sampling, SettingsError
from styleclip.tasks.settings.edits import (
    Edit,
    EditStep,
    all_variants,
    automatic_steps,
    dump_edits,
    load_edits,
    replace_steps,
    stand_in,
)
from styleclip_cli.edit import _edit

SAMPLING, RELEVANCE = Sampling(statistics=40, codes=6), Relevance(samples=4)
# two prompts of a CLIP that was never trained: the effect is near one half whatever is done
CHOOSING = Choosing(images=3, effect=0.9, thresholds=2, strengths=2)
AUTO = Edit(target="grey hair", neutral="hair", alpha="auto", beta="auto", templates="none")


@pytest.fixture(scope="module")
def models(network_files) -> Models:
    return Models(**network_files)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("photos")
    for index in range(4):
        shutil.copy(data.PHOTOGRAPHS / f"portrait-{index:03d}.png", folder)
    return str(folder)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alpha": "auto", "beta": [0.1, 0.2]}, "beside auto, give one alpha or beta"),
        ({"alpha": "automatic"}, "alpha"),
        ({"effect": 0.8}, "make one of them auto"),
        ({"alpha": "auto", "effect": 1.2}, "effect"),
        ({"beta": "auto", "top_k": 3}, "give beta or top_k"),
        ({"alpha": "auto", "method": "optimization"}, "method optimization has no alpha"),
        ({"weights": "least-squares", "relevance": "instant"}, "need the table's rows"),
        ({"weights": "least-squares", "method": "optimization"}, "method optimization has no weights"),
    ],
)
def test_what_auto_cannot_mean_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Edit.model_validate({"target": "grey hair", **given})


def test_one_number_of_the_command_line_stands_beside_auto():
    edit = _edit("grey hair", {"alpha": ("2",), "beta": ("auto",)}, {}, {})
    assert (edit.alpha, edit.beta) == (2.0, "auto")
    assert _edit("grey hair", {"alpha": ("2", "3")}, {}, {}).alpha == (2.0, 3.0)


def test_auto_is_no_number():
    with pytest.raises(SettingsError, match="towards 'grey hair' is auto; choose them first"):
        all_variants([AUTO])
    (variant,) = all_variants(replace_steps([AUTO], stand_in))
    assert (variant.steps[0].alpha, variant.steps[0].beta) == (3.0, 0.15)


@pytest.mark.parametrize("alpha", ["auto", "{strength}"])
def test_a_matched_edit_is_checked_along_its_way_and_not_beyond_it(alpha):
    # gradients take long, and a prompt for which there are none may be chosen to need none
    step = stand_in(Edit(target="grey hair", relevance="matched", alpha=alpha))
    assert step.step_variants()[0].alpha == 1.0


def test_a_choice_replaces_auto_alone_in_every_step():
    edit = Edit(target="a", alpha=2.0, then=(EditStep(target="b", alpha="auto", beta=0.2),))
    chosen = ChosenStrength(
        uri="", target="b", alpha=1.5, beta=0.2, weights="relevance", reached=True, reason="why"
    )
    (found,) = replace_steps([edit], lambda step: chosen.apply(step) if step.automatic else step)
    assert automatic_steps([edit]) == [edit.then[0]]
    assert not automatic_steps([found])
    (variant,) = all_variants([found])
    assert [(step.alpha, step.beta) for step in variant.steps] == [(2.0, 0.15), (1.5, 0.2)]
    assert variant.steps[1].reason == "why"
    plain = variant.steps[1].model_copy(update={"reason": ""})
    assert plain.parameters() == variant.steps[1].parameters()  # a reason makes no other edit


@pytest.mark.parametrize(
    ("given", "weights"),
    [
        ({}, "relevance"),
        ({"alpha": "auto"}, "relevance"),  # whoever gives beta gets what it says in the paper
        ({"beta": "auto"}, "least-squares"),
        ({"beta": "auto", "relevance": "instant"}, "relevance"),
        ({"beta": "auto", "weights": "relevance"}, "relevance"),
        ({"weights": "least-squares"}, "least-squares"),
    ],
)
def test_weights_suit_what_is_chosen_unless_they_are_given(given, weights):
    step = Edit(target="grey hair", **given)
    (variant,) = stand_in(step).model_copy(update={"weights": step.chosen_weights}).variants()
    assert variant.steps[0].weights == step.chosen_weights == weights
    assert variant.label.endswith("_least-squares") == (weights == "least-squares")
    assert ("weights" in variant.steps[0].parameters()) == (weights == "least-squares")


def test_an_edit_file_survives_being_written(tmp_path):
    edits = [
        AUTO.model_copy(update={"name": "grey", "alpha": 1.25, "beta": 0.1, "reason": "a: b, 'c'"}),
        Edit(target="x", alpha=(1.0, 2.0), top_k=3, include=("b4.*",), then=(EditStep(target="y"),)),
        Edit(target="z", method="optimization", optimization={"preset": "gentle"}),
    ]
    path = tmp_path / "edits.yaml"
    path.write_bytes(dump_edits(edits))
    assert load_edits(str(path)) == edits
    assert "neutral" not in yaml.safe_load(path.read_text())[1]  # what is as by default is left out


@pytest.mark.usefixtures("prefect_server")
def test_edits_are_chosen_on_photographs_and_done_so(photos, tmp_path):
    """In the embedded world, whose CLIP knows the prompts; relevance from gradients, a table takes long."""
    models = Models(generator=str(data.GENERATOR), clip=str(data.CLIP), encoder=str(data.ENCODER))
    shared = {"neutral": "face", "relevance": "instant", "alpha": "auto"}
    wanted = [
        Edit(target="face with a beard", beta="auto", **shared),
        Edit(target="face with glasses", top_k=60, effect=0.6, **shared),
    ]
    arguments = (models, photos, str(tmp_path / "out"), wanted, str(tmp_path / "work"))
    given = {
        "sampling": Sampling(statistics=200, codes=4, truncation_psi=1.0), "inversion": Inversion(steps=0),
        "instant": Instant(codes=4, probes=4),
    }  # fmt: skip
    choosing = Choosing(images=3, thresholds=2, strengths=5)
    result = edit_images(*arguments, **given, choosing=choosing)
    first, second = result.choices
    assert (first.target, second.target, second.beta) == ("face with a beard", "face with glasses", None)
    assert "on 3 images" in first.reason
    assert first.reached

    tried = read_table(first.uri).to_pylist()
    about = read_provenance(first.uri)
    assert tried[-1]["stage"] == "chosen"
    assert (tried[-1]["alpha"], tried[-1]["beta"]) == (first.alpha, first.beta)
    assert tried[-1]["effect"] == pytest.approx(0.7, abs=0.1)
    assert (about.parameters["chosen_alpha"], about.parameters["effect"]) == (first.alpha, 0.7)
    assert read_provenance(second.uri).parameters["effect"] == 0.6
    assert {"latents", "photographs", "styles"} <= set(about.inputs)

    rows = [row for row in read_table(result.report.manifest).to_pylist() if row["target"] == first.target]
    assert {(row["alpha"], row["beta"], row["status"]) for row in rows} == {(first.alpha, first.beta, "ok")}
    assert all(row["settings"]["reason"] == first.reason for row in rows)

    again = edit_images(*arguments, **given, choosing=choosing)
    assert again.choices == result.choices
    assert all(step.computed == 0 for step in again.steps)
    numbers = edit_images(*arguments[:3], result.edits, arguments[4], **given)
    assert numbers.choices == []
    assert numbers.steps[-1].computed == 0  # the chosen edits are the edits that were done


@pytest.mark.usefixtures("prefect_server")
def test_edits_are_chosen_on_sampled_codes(models, tmp_path):
    wanted = [AUTO, Edit(target="glasses", alpha=2.0, beta=0.01, templates="none")]
    given = {"sampling": SAMPLING, "relevance": RELEVANCE, "choosing": CHOOSING}
    result = choose_edits(models, wanted, str(tmp_path), **given)
    (choice,) = result.choices
    assert read_provenance(choice.uri).inputs.keys() == {"clip", "generator", "relevance", "styles"}
    assert not automatic_steps(result.edits)
    assert result.edits[0].alpha == choice.alpha
    assert result.edits[0].weights == choice.weights == "least-squares"
    assert "least-squares weights" in choice.summary
    assert result.edits[1] == wanted[1]
    assert choose_edits(models, wanted, str(tmp_path), **given).choices == [choice]
    other = choose_edits(
        models, wanted, str(tmp_path), **{**given, "choosing": Choosing(images=4, effect=0.9)}
    )
    assert other.choices[0].uri != choice.uri
