"""Parameters and edit files: what a user writes, and what a user gets wrong."""

import logging
import re

import pytest
import torch
from pydantic import ValidationError

from styleclip_core.editing import select_channels
from styleclip_core.style_space import StyleLayer, StyleLayout
from tasks.directions import style_directions as directions
from tasks.settings import Models, SettingsError, describe, fast_relevance
from tasks.settings.edits import Edit, StepVariant, all_variants, load_edits


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
        ("- {target: hat}\n- {target: hat}", "same folder 'hat_a3_b0.15'"),
    ],
)
def test_wrong_edit_files_name_entry_and_field(tmp_path, content, message):
    (tmp_path / "edits.yaml").write_text(content)
    with pytest.raises(SettingsError, match=message):
        load_edits(str(tmp_path / "edits.yaml"))


def test_a_missing_edit_file_is_named(tmp_path):
    from tasks.storage import MissingObjectError

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
