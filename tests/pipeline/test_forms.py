"""Forms: what they show, fold away and refuse, by the rules that Prefect's server goes by."""

from pathlib import Path

import pytest
import yaml
from prefect.utilities.schema_tools.validation import validate
from pydantic import ValidationError

from styleclip.flows.forms import AS_USUAL, flow_of, form_of
from styleclip.tasks.settings import SettingsError
from styleclip.tasks.settings.edits import Edit, all_variants

ROOT = Path(__file__).parents[2]
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
FORMS = {each["entrypoint"]: form_of(flow_of(each["entrypoint"])) for each in DEPLOYMENTS}
PLACES = {"photos": "s3://in", "out": "s3://out", "models": {"generator": "g.pkl"}}


def refused(entrypoint: str, **parameters: object) -> str:
    """Return what the server says of parameters; nothing if it takes them."""
    errors = validate(parameters, FORMS[entrypoint])
    return "; ".join(f"{error.json_path}: {error.message}" for error in errors)


def refused_edit(**edit: object) -> str:
    return refused("styleclip.flows.edit_images:edit_images", **PLACES, edits=[{"target": "hat", **edit}])


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda each: each["entrypoint"])
def test_every_field_has_a_title_a_place_and_a_sentence_and_groups_are_folded_away(deployment):
    form = FORMS[deployment["entrypoint"]]
    assert sorted(field["position"] for field in form["properties"].values()) == list(
        range(len(form["properties"]))
    )
    for name, field in form["properties"].items():
        assert field["title"]
        assert field.get("description"), f"{name} says nothing of itself"
        if "$ref" in str(field) and name not in form.get("required", ()) and field.get("type") != "array":
            assert field["anyOf"][0] == AS_USUAL
            assert field["default"] is None
    for definition in form.get("definitions", {}).values():
        for field in definition.get("properties", {}).values():
            assert field["title"] != "Field"
            assert all("title" in kind for kind in field.get("anyOf", ()) if "$ref" not in kind)


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda each: each["entrypoint"])
def test_what_the_form_sends_of_groups_that_nobody_opened_is_what_they_usually_are(deployment):
    flow = flow_of(deployment["entrypoint"])
    folded = [
        name
        for name, field in FORMS[deployment["entrypoint"]]["properties"].items()
        if AS_USUAL in field.get("anyOf", ())
    ]
    given = {k: v for k, v in deployment["parameters"].items() if k not in folded}
    unopened = flow.validate_parameters(given | dict.fromkeys(folded))
    assert unopened == flow.validate_parameters(given | {name: unopened[name] for name in folded})
    assert all(unopened[name] is not None for name in folded if name != "nightly")


def test_what_everybody_needs_comes_first():
    fields = FORMS["styleclip.flows.edit_images:edit_images"]["properties"]
    assert sorted(fields, key=lambda name: fields[name]["position"])[:5] == [
        "photos", "edits", "out", "models", "workspace",
    ]  # fmt: skip
    edit = FORMS["styleclip.flows.edit_images:edit_images"]["definitions"]["Edit"]["properties"]
    assert list(edit) == ["target", "neutral", "method", "alpha", "beta", "advanced"]
    assert [field["position"] for field in edit.values()] == list(range(6))
    assert set(edit["advanced"]["anyOf"][1]["properties"]) == set(Edit.model_fields) - set(edit)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        ({"beta": 1.5}, "1.5"),
        ({"alpha": [3, 101]}, "101"),
        ({"beta": 0.1, "top_k": 3}, "beta"),
        ({"beta": 0.1, "advanced": {"top_k": 3}}, "beta"),
        ({"method": "mapper"}, "mapper"),
        ({"method": "mapper", "mapper": ""}, "mapper"),
        ({"method": "mapper", "advanced": None}, "mapper"),
        ({"method": "mapper", "advanced": {"strength": 0.1}}, "mapper"),
        ({"target": "  "}, "target"),
        ({"then": [{"target": "  "}]}, "target"),
        ({"advanced": {"then": [{"target": "cap", "beta": 2}]}}, "2"),
        ({"tarrget": "cap"}, "tarrget"),
        ({"advanced": {"topk": 3}}, "topk"),
        ({"alpha": [each / 1000 for each in range(2001)]}, "alpha"),
    ],
    ids=lambda each: str(each)[:40],
)
def test_a_wrong_edit_is_refused(edit, named):
    assert named in refused_edit(**edit)
    with pytest.raises((ValidationError, SettingsError)):  # nor would a run take it
        all_variants([Edit.model_validate({"target": "hat", **edit})])


@pytest.mark.parametrize(
    "edit",
    [
        {},
        {"beta": None, "top_k": 3},
        {"beta": None, "advanced": {"top_k": 3}},
        {"beta": 0.1, "advanced": {"top_k": None, "reason": "it looks right"}},
        {"beta": 0.1, "advanced": None},
        {"method": "mapper", "mapper": "s3://m/best.safetensors"},
        {"method": "mapper", "advanced": {"mapper": "s3://m/best.safetensors"}},
        {"alpha": "auto", "beta": "auto", "advanced": {"effect": 0.7}},
        {"alpha": [1, 2, 3], "exclude": ["b64.*"]},
        {"then": [{"target": "cap", "advanced": {"weights": "relevance"}}]},
    ],
    ids=str,
)
def test_an_edit_is_taken_in_either_form(edit):
    assert refused_edit(**edit) == ""
    flat = {k: v for k, v in edit.items() if k != "advanced"} | (edit.get("advanced") or {})
    assert Edit.model_validate({"target": "hat", **edit}) == Edit.model_validate({"target": "hat", **flat})


def test_a_field_that_is_given_twice_is_refused():
    with pytest.raises(ValueError, match="top_k is given twice, once of it in advanced; leave one out"):
        Edit.model_validate({"target": "hat", "top_k": 3, "advanced": {"top_k": 4}})
    with pytest.raises(ValueError, match="advanced must be a mapping"):
        Edit.model_validate({"target": "hat", "advanced": [1]})


def test_many_values_are_taken_where_they_are_allowed():
    many = [{"target": "hat", "alpha": [each / 1000 for each in range(2001)]}]
    entrypoint = "styleclip.flows.edit_images:edit_images"
    assert "alpha" in refused(entrypoint, **PLACES, edits=many, most_variants=2000)
    assert refused(entrypoint, **PLACES, edits=many, most_variants=2001) == ""


def test_an_unknown_name_is_refused():
    assert "sampels" in refused("styleclip.flows.build_relevance:build_relevance", **PLACES, sampels=3)


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda each: each["entrypoint"])
def test_what_a_deployment_fills_in_fits_its_form(deployment):
    # as a server is given it, whose updates leave "required" out everywhere
    given = deployment["parameters"]
    assert validate(given, FORMS[deployment["entrypoint"]], ignore_required=True) == []
