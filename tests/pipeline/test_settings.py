"""Parameters and edit files: what a user writes, and what a user gets wrong."""

import logging
import re

import pytest
import torch
from prefect.utilities.schema_tools import validate
from pydantic import ValidationError

from styleclip.tasks.directions import style_directions as directions
from styleclip.tasks.settings import (
    Alignment,
    Choosing,
    Execution,
    FaceSource,
    Instant,
    Inversion,
    Models,
    Nightly,
    Pasting,
    PivotalTuning,
    Relevance,
    Sampling,
    SettingsError,
    describe,
    fast_relevance,
)
from styleclip.tasks.settings.edits import Edit, EditStep, StepVariant, all_variants, dump_edits, load_edits
from styleclip_core.editing import select_channels
from styleclip_core.options import annotated_fields
from styleclip_core.style_space import StyleLayer, StyleLayout


def test_one_edit_at_several_strengths_is_several_variants():
    edit = Edit(target="Grey Hair!", alpha=(1, 2.5), beta=(0.1, 0.2))
    assert [variant.label for variant in edit.variants()] == [
        "grey-hair_a1_b0.1", "grey-hair_a2.5_b0.1", "grey-hair_a1_b0.2", "grey-hair_a2.5_b0.2",
    ]  # fmt: skip
    assert Edit(target="x").variants()[0].steps[0].beta == 0.15
    assert Edit(target="x", top_k=7).variants()[0].label == "x_a3_k7"


@pytest.mark.parametrize("form", ["- {target: hat}\n", '[{"target": "hat"}]', "edits:\n  - target: hat\n"])
def test_edit_files_are_yaml_or_json(tmp_path, form):
    (tmp_path / "edits.yaml").write_text(form)
    assert load_edits(str(tmp_path / "edits.yaml")) == [Edit(target="hat")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "neither YAML nor JSON"),
        ("just text", "must hold a list of edits"),
        ("[]", "there is no edit to do"),
        ("- {target: hat}\n- {target: beard, beta: 2}", "edit 2: .*from 0 to 1, got 2"),
        ("- {tarjet: hat}", "edit 1: target: Field required; tarjet: Extra inputs"),
        ("- {target: hat, name: ../up}", "must be a folder name"),
        ("- {target: hat, templates: many}", "unknown template set 'many'; there are imagenet-80"),
        ("- {target: hat, beta: 0.1, top_k: 3}", "give beta or top_k"),
        ("- target: hat\n  alpha: 3\n  alpha: 4", "yaml, line 3: 'alpha' is given twice"),
        ('[{"target": "hat",\n "target": "cap"}]', "yaml, line 2: 'target' is given twice"),
        ("edits:\n- {target: hat}\nedit:\n- {target: cap}", "has edit beside 'edits', which nothing reads"),
        ("- {target: ' '}", "edit 1: target: a prompt is blank; say what an image shows"),
        ("- {target: hat, neutral: ''}", "edit 1: neutral: a prompt is blank"),
        ("- {target: hat, then: [{target: '\t'}]}", "edit 1: then.0.target: a prompt is blank"),
        ("- {target: hat, alpha: .inf}", "alpha must be a finite number, got inf"),
        ("- {target: hat, alpha: [1, .nan]}", "alpha must be a finite number, got"),
        ("- {target: hat, alpha: 1.0e+300}", "alpha must be from -1,000,000 to 1,000,000, got 1e.300"),
        ("- {target: hat, alpha: 101}", "alpha is a strength from -100 to 100, got 101"),
        ("- {target: hat, method: mapper, mapper: m, strength: -200}", "strength is a strength from -100"),
        ("- {target: hat, beta: .nan}", "beta must be a finite number"),
        ("- {target: hat, beta: [0.1, 1.1]}", "from 0 to 1, got 1.1"),
        ("- {target: hat, top_k: 3000000000}", "top_k must be from -2,147,483,647 to 2,147,483,647"),
        ("- {target: hat, method: mapper}", "method mapper needs the URI of a mapper"),
        (
            "- {target: hat, method: optimization, optimization: {learning_rate: .inf}}",
            "learning_rate must be",
        ),
        ("- {target: hat, exclude: ['*']}", "all layers without exclude . leaves no layer"),
        (
            "- {target: hat, include: [b4.*], exclude: [b4.conv1]}",
            "include b4.. without exclude b4.conv1 leaves",
        ),
        ("- {target: hat, include: [b5.*]}", "layer pattern 'b5..' matches no editable layer"),
        ("- {target: hat, mapper: 's3:/b/m', method: mapper}", "did you mean s3://b/m"),
        ("- {target: hat}\n- {target: hat}", "same folder 'hat_a3_b0.15'"),
    ],
)
def test_wrong_edit_files_name_entry_and_field(tmp_path, content, message):
    (tmp_path / "edits.yaml").write_text(content)
    with pytest.raises(SettingsError, match=message):
        load_edits(str(tmp_path / "edits.yaml"))


def test_names_may_come_again_elsewhere_and_from_another_mapping(tmp_path):
    content = "- &one {target: hat, alpha: 1}\n- {<<: *one, alpha: 2}\n- {<<: *one, target: beard}"
    (tmp_path / "edits.yaml").write_text(content)
    alphas = [(edit.target, edit.alpha) for edit in load_edits(str(tmp_path / "edits.yaml"))]
    assert alphas == [("hat", 1), ("hat", 2), ("beard", 1)]


@pytest.mark.parametrize("form", [Sampling, Instant, FaceSource, Nightly, Pasting, Alignment, Execution])
def test_every_number_of_every_form_is_finite_and_bounded(form):
    numbers = [
        name for name, kind in form.model_fields.items() if kind.annotation in (int, float, int | None)
    ]
    assert numbers
    for name in numbers:
        for wrong in (10**12, float("inf")):
            with pytest.raises(ValidationError, match=name):
                form(**{name: wrong})


@pytest.mark.parametrize("form", [Inversion, PivotalTuning, Relevance, Choosing])
def test_every_number_of_the_core_is_finite_and_bounded_in_its_form_too(form):
    for name, (kind, _) in annotated_fields(form).items():
        if kind in (int, float):
            with pytest.raises(ValidationError, match=name):
                form(**{name: 10**12 if kind is int else 1e300})


def test_many_variants_need_a_word_and_are_not_made_before_they_are_counted(tmp_path):
    fifty = tuple(float(each) for each in range(1, 51))
    sweep = EditStep(target="hat", alpha=fifty, beta=tuple(each / 100 for each in fifty))
    edit = Edit(**{**sweep.model_dump(), "then": (sweep,) * 4, "name": "sweep"})
    with pytest.raises(SettingsError, match=r"97,656,250,000,000,000 variants of every image, .* by 'sweep'"):
        all_variants([edit])

    few = Edit(target="hat", alpha=fifty, beta=tuple(each / 100 for each in fifty[:41]))
    with pytest.raises(SettingsError, match=r"2,050 variants .* allow 2050 \(most_variants\)"):
        all_variants([few])
    assert len(all_variants([few], 2050)) == 2050
    assert len(all_variants([few.model_copy(update={"beta": 0.1})])) == 50 == few.choices // 41

    (tmp_path / "edits.yaml").write_bytes(dump_edits([few]))
    with pytest.raises(SettingsError, match="2,050 variants"):
        load_edits(str(tmp_path / "edits.yaml"))
    assert load_edits(str(tmp_path / "edits.yaml"), 3000) == [few]


def test_the_server_knows_the_bounds_of_strengths_and_thresholds_and_blank_prompts():
    schema = Edit.model_json_schema()
    for wrong in ({"alpha": 1e300}, {"alpha": [1, 1e300]}, {"beta": 2}, {"target": " "}, {"neutral": ""}):
        assert list(validate({"target": "hat", **wrong}, schema))
    for right in ({"alpha": "auto", "beta": "auto"}, {"alpha": [1, -3], "beta": [0, 1]}, {"beta": None}):
        assert not list(validate({"target": "hat", **right}, schema))


def test_a_missing_edit_file_is_named(tmp_path):
    from styleclip.tasks.storage import MissingObjectError

    with pytest.raises(MissingObjectError, match=r"none.yaml"):
        load_edits(str(tmp_path / "none.yaml"))


def test_errors_are_described_in_one_line():
    with pytest.raises(ValidationError) as caught:
        Edit(target="", alpha="strong")
    assert "\n" not in describe(caught.value)
    assert all_variants([Edit(target="x")])


def test_fast_mode_keeps_what_is_said_and_refuses_what_it_cannot_do():
    fast = fast_relevance({"samples": 7, "tolerance": 0.3, "eight_bit": True})
    assert (fast.samples, fast.tolerance, fast.minimum, fast.derivatives) == (7, 0.3, 4, 64)
    assert fast.eight_bit
    assert fast_relevance({}).tolerance == 0.15
    for wrong, message in (
        ({"centre": "mean"}, "derivatives are taken"),
        ({"reference_compat": True}, "itself"),
    ):
        with pytest.raises(ValidationError, match=message):
            fast_relevance(wrong)


def test_an_edit_of_few_channels_names_the_beta_that_has_more(monkeypatch, caplog):
    layout = StyleLayout((StyleLayer("b4.conv1", 4, 12, 0),))
    relevance = torch.linspace(0.05, 0.6, 12)
    monkeypatch.setattr(directions, "get_run_logger", lambda: logging.getLogger("directions"))
    for beta, said in ((0.5, "hat: only 3 channels reach beta 0.5; at beta 0.150, 10 do"), (0.1, "")):
        caplog.clear()
        step = StepVariant(neutral="face", target="hat", alpha=1.0, beta=beta)
        found = select_channels(layout, relevance, torch.ones(12), step.selection())
        directions._warn_of_few(step, layout, found)
        assert caplog.messages == ([said] if said else [])


@pytest.mark.parametrize(
    "uri", ["s3://AKIA:canary@bucket/x", "https://me:canary@host/x", "s3://key:canary/x"]
)
def test_a_uri_with_credentials_is_no_value_and_is_not_repeated(uri):
    for field in ("generator", "clip", "encoder"):
        with pytest.raises(
            ValidationError, match="holds credentials; give them in the environment"
        ) as caught:
            Models.model_validate({"generator": "g.pkl", field: uri})
        assert "canary" not in str(caught.value)
    schema = Models.model_json_schema()["properties"]["generator"]
    assert not re.search(schema["pattern"], uri)  # what the server checks


@pytest.mark.parametrize(
    "uri",
    ["s3://bucket/a b/ü.pkl", "/data/x:y@z.pkl", "/data/a@b:c", "ViT-B/32", "s3://arn:aws:s3:::b/x", ""],
)
def test_other_uris_are_values(uri):
    assert Models(generator="g.pkl", clip=uri).clip == uri
    assert re.search(Models.model_json_schema()["properties"]["generator"]["pattern"], uri)


def test_empty_fields_of_a_form_are_no_networks_and_a_generator_is_needed():
    chosen = Models.model_validate({"generator": "g.pkl", "encoder": "", "identity": "", "perceptual": ""})
    assert (chosen.encoder, chosen.identity, chosen.perceptual) == (None, None, None)
    with pytest.raises(ValidationError, match="generator"):
        Models(generator="")
