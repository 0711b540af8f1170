"""An option stands in one place: what a settings field says reaches form, name and command line."""

import dataclasses
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
import torch
from pydantic import TypeAdapter
from torch.testing import assert_close

from styleclip.tasks.directions import relevance, sampling
from styleclip.tasks.editing import mappers, plans
from styleclip.tasks.editing.methods import PreparedEdit
from styleclip.tasks.photographs import faces, inversion
from styleclip.tasks.running.run import ModelHashes, Run
from styleclip.tasks.settings import (
    Alignment,
    Choosing,
    Execution,
    FaceSource,
    FeatureInversion,
    Inversion,
    MapperTraining,
    Models,
    Optimization,
    PivotalTuning,
    Relevance,
    Sampling,
    Saving,
    fields_of,
)
from styleclip.tasks.settings.edits import Edit
from styleclip_cli.generated import sentence, with_options
from styleclip_core import load_clip, load_generator
from styleclip_core.choosing import ChoosingSettings, measure_on
from styleclip_core.inversion import RefinementSettings
from styleclip_core.mapper_training import MapperTrainingSettings
from styleclip_core.optimization import OptimizationSettings
from styleclip_core.options import (
    ChangesNoResult,
    NamedIfChanged,
    Says,
    annotated_fields,
    parameters,
)
from styleclip_core.pivotal import PivotalSettings
from styleclip_core.prompts import text_direction
from styleclip_core.relevance import RelevanceSettings, measure_channels
from styleclip_core.sampling import sample_styles
from styleclip_core.settings.features import FeatureSettings
from styleclip_core.settings.saving import SavingSettings

ROOT = Path(__file__).parents[2]
HASHES = ModelHashes(generator="g", clip="c", encoder="e", identity="i", perceptual="p")
RUN = Run(hashes=HASHES, workspace="ws", out="out")
CORE = [
    ChoosingSettings, FeatureSettings, MapperTrainingSettings, OptimizationSettings, PivotalSettings,
    RefinementSettings, RelevanceSettings, SavingSettings,
]  # fmt: skip


# ---- the names of artifacts -----------------------------------------------------------------------


def _inverted(**settings):
    return inversion.plan(RUN, "photos", Inversion(**settings)).recipe.fingerprint


def _tuned(**settings):
    return _inverted(pivotal=PivotalTuning(**settings))


def _featured(**settings):
    return _inverted(features=FeatureInversion(**settings))


def _sampled(**settings):
    return sampling.plan(RUN, Sampling(**settings)).recipe.fingerprint


def _measured(**settings):
    return relevance.plan(RUN, sampling.plan(RUN, Sampling()), Relevance(**settings)).recipe.fingerprint


def _fast(**settings):
    return _measured(**{"tolerance": 0.2, **settings})


def _trained(**settings):
    return mappers.plan(RUN, "hat", MapperTraining(**settings)).recipe.fingerprint


def _optimized(**settings):
    (variant,) = Edit(target="hat", method="optimization", optimization=Optimization(**settings)).variants()
    return str(variant.parameters())


def _chosen(**settings):
    return str(Choosing(**settings).parameters())


def _saved(**settings):
    # quality is of some formats, and a limit of what holds many images
    settings = ({"format": "jpeg"} if "quality" in settings else {}) | settings
    settings = ({"to": "parquet"} if "most_mb" in settings else {}) | settings
    (variant,) = Edit(target="hat", method="optimization").variants()
    edit = PreparedEdit(variant=variant, steps=[])
    return str(plans.parameters_of(RUN, edit, Saving(**settings)))


def _aligned(**settings):
    return faces.plan(
        RUN, "photos", FaceSource(landmarks="l"), "hash", Alignment(**settings)
    ).recipe.fingerprint


@pytest.mark.parametrize(
    ("named", "settings", "expected"),
    [
        (_sampled, {}, "16fe91aaf24efbff7f2a1bc110ed895f"),
        (_sampled, {"label": 1, "truncation_cutoff": 3}, "258aac2959197be3c7afc9ede1f802e8"),
        (_measured, {}, "2bc397b43b5adddfc6259c57fcbbec70"),
        (_measured, {"tolerance": 0.2, "minimum": 5, "derivatives": 8}, "7a6be787f8e68643125798167129659e"),
        (_measured, {"reference_compat": True}, "6bc460b45cfba846dd5ea1a1f60624bd"),
        (
            _measured,
            {"strength": 3, "centre": "mean", "eight_bit": True, "samples": 5, "first_sample": 2},
            "c40d873a333352983ced87ffb1c1d192",
        ),
    ],
)  # fmt: skip
def test_artifacts_are_named_as_before_options_stood_in_one_place(named, settings, expected):
    assert named(**settings) == expected  # computed at the commit before


def test_tables_in_16_bits_have_new_names_as_they_round_less_than_they_did():
    given = {"strength": 3, "centre": "mean", "eight_bit": True, "samples": 5, "first_sample": 2}
    assert _measured(**given, precision="bfloat16") != "2335022918de7f7f3816c1508c537b7c"
    found = {_measured(precision=each) for each in ("float32", "bfloat16", "float16")}
    assert len(found) == 3
    assert _measured(precision="bfloat16", compile="on", batch_size=2) == _measured(precision="bfloat16")


def test_latents_are_named_as_before_but_for_the_version_of_the_step(monkeypatch):
    monkeypatch.setattr(inversion, "VERSION", "1")
    assert _inverted() == "d9a758145f40676b4e24723f37186d94"
    assert _tuned() == "c1cee1e91e812c5c57bc1b3471ed8d51"
    changed = {"steps": 7, "latent_weight": 0.1, "learning_rate": 0.02, "patience": 3}
    pivotal = PivotalTuning(steps=9, rank=2, seed=4, locality_codes=2)
    assert _inverted(**changed, pivotal=pivotal) == "0c98a305907e03b02980db9026a1cc19"


def _other(name, info, value):
    """Return another value that a field may have."""
    kinds = [each for each in get_args(info.annotation) if each is not type(None)] or [info.annotation]
    special = {
        "tolerance": 0.2, "truncation_psi": 0.5, "templates": "imagenet-80", "pivotal": {"steps": 3},
        "features": {"steps": 3},
        "kind": "style", "space": "s",  # relevant channels need an effect as well
        "levels": ("coarse",), "keep": ("hat",), "effect": 0.5, "latents": "l",
        "preset": {"published": "gentle"}.get(value), "optimizer": "radam",
    }  # fmt: skip
    if name == "reference_compat" and value is None:  # the preset that is asked by default says yes
        return False
    if special.get(name):
        return special[name]
    words = [each for each in kinds if get_origin(each) is Literal] or [info.annotation]
    if get_origin(words[0]) is Literal:
        return [each for each in get_args(words[0]) if each != value][-1]  # none is the first, or a preset's
    if isinstance(value, bool):
        return not value
    if value is None:
        return 18 if int in kinds else 0.37
    return value * 2 or (2 if name == "batch_size" else 1)  # images go in pairs


CASES = [
    (named, form, name)
    for named, form in (
        (_inverted, Inversion), (_tuned, PivotalTuning), (_featured, FeatureInversion), (_sampled, Sampling),
        (_measured, Relevance),
        (_fast, Relevance), (_trained, MapperTraining), (_optimized, Optimization), (_chosen, Choosing),
        (_aligned, Alignment), (_saved, Saving),
    )
    for name in fields_of(form)
    if not (named is _measured and name in ("minimum", "derivatives"))  # nothing without a tolerance
    and not (named is _fast and name in ("tolerance", "reference_compat"))
    and not (named is _trained and name == "neutral")  # nothing without an effect, see test_faithful.py
    and name != "eight_bit_by"  # nothing without 8 bits
    and name != "looked_at"  # of what CLIP looks at, see tests/pipeline/test_matching.py
]  # fmt: skip


@pytest.mark.parametrize(("named", "form", "name"), CASES, ids=lambda each: getattr(each, "__name__", each))
def test_an_option_names_the_result_or_says_why_not(named, form, name):
    info = fields_of(form)[name]
    value = "small" if named is _trained and name == "preset" else _other(name, info, info.default)
    silent = [mark for mark in info.metadata if isinstance(mark, ChangesNoResult)]
    assert (named(**{name: value}) == named()) == bool(silent)
    assert all(len(mark.why) > 10 for mark in silent)


def test_files_as_they_always_were_leave_the_name_of_an_edit_as_it_always_was():
    (variant,) = Edit(target="hat", method="optimization").variants()
    usual = plans.parameters_of(RUN, PreparedEdit(variant=variant, steps=[]), Saving())
    assert usual == {**variant.parameters(), "out": "out"}


def test_how_images_come_to_eight_bits_counts_where_they_do():
    assert _measured(eight_bit_by="truncate") == _measured()
    assert _measured(eight_bit=True, eight_bit_by="truncate") != _measured(eight_bit=True)


def test_how_work_is_run_is_marked_as_changing_no_result():
    for name, info in fields_of(Execution).items():
        assert any(isinstance(mark, ChangesNoResult) for mark in info.metadata), name


# ---- what changes no result -----------------------------------------------------------------------


def test_the_options_that_change_no_result_are_these():
    """Each is run both ways below, but for compile, max_failed, strict (tests of their own) and a price."""
    found = {
        f"{form.__name__}.{name}"
        for form in (
            Inversion, PivotalTuning, Relevance, Choosing, Execution, Sampling, Alignment, Optimization,
            MapperTraining,
        )
        for name, info in fields_of(form).items()
        if any(isinstance(mark, ChangesNoResult) for mark in info.metadata)
    }  # fmt: skip
    assert found == {
        "Inversion.batch_size", "Relevance.batch_size", "Relevance.compile", "Relevance.channels_per_shard",
        "Choosing.batch_size",
        "Execution.device", "Execution.shard_size", "Execution.max_failed", "Execution.price_per_hour",
        "Execution.strict",
    }  # fmt: skip


@pytest.mark.usefixtures("prefect_server")
def test_latents_have_one_name_and_differ_by_rounding_alone_whatever_batch_and_shard(network_files, tmp_path):
    import pyarrow as pa

    from styleclip.flows.invert_images import invert_images
    from styleclip.tasks.artifacts import read_table
    from tests.pipeline.test_flows import encoded, portrait

    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(5):
        (photos / f"p{index}.png").write_bytes(encoded(portrait(index)))
    found = []
    for batch_size, shard_size in ((16, 16), (2, 16), (3, 2)):
        workspace = tmp_path / f"{batch_size}-{shard_size}"
        settings, execution = (
            Inversion(steps=4, batch_size=batch_size),
            Execution(device="cpu", shard_size=shard_size),
        )
        made = invert_images(Models(**network_files), str(photos), str(workspace), settings, execution)
        files = (workspace / "latents").rglob("*.parquet")
        tables = [read_table(str(path)).select(["image_key", "w_plus"]) for path in files]
        rows = pa.concat_tables([each for each in tables if len(each)]).sort_by("image_key")
        assert len(rows) == 5
        found.append((made.latents.rsplit("/", 1)[-1], torch.tensor(rows["w_plus"].to_pylist())))
    for name, latents in found[1:]:
        assert name == found[0][0]
        assert_close(latents, found[0][1], atol=1e-4, rtol=0)


def _directions(network_files, size, channels, **settings):
    """Return measured directions of a layer, cut into pieces of so many channels."""
    generator, clip = load_generator(network_files["generator"]), load_clip(network_files["clip"])
    drawn = sample_styles(generator, seed=1, sample_ids=range(6), truncation_psi=0.7)
    codes = next(styles for _, _, styles in drawn)
    layer = generator.layout.editable[1]
    spread = torch.ones(layer.channels)
    parts = [
        measure_channels(
            generator, clip.embed_whole, codes, layer=layer.name,
            channels=range(first, min(first + channels, layer.channels)), mean=torch.zeros_like(spread),
            std=spread, settings=RelevanceSettings(batch_size=size, **settings),
        )
        for first in range(0, layer.channels, channels)
    ]  # fmt: skip
    return torch.cat([each.direction for each in parts]), torch.cat([each.n for each in parts])


@pytest.mark.parametrize(("size", "channels"), [(2, 24), (10, 24), (32, 5)])
def test_directions_differ_by_rounding_alone_whatever_batch_and_shard(network_files, size, channels):
    wanted, counts = _directions(network_files, 32, 24)
    found, n = _directions(network_files, size, channels)
    assert torch.equal(n, counts)
    assert_close(found, wanted, atol=1e-3, rtol=0)  # rounding, divided by how far a channel moves CLIP


def test_with_a_tolerance_not_even_rounding_differs(network_files):
    wanted = _directions(network_files, 32, 24, tolerance=0.5, minimum=2)
    for size, channels in ((128, 24), (32, 5)):
        found = _directions(network_files, size, channels, tolerance=0.5, minimum=2)
        assert all(torch.equal(*each) for each in zip(found, wanted, strict=True))


def test_what_a_choice_is_made_by_differs_by_rounding_alone_whatever_the_batch(network_files):
    generator, clip = load_generator(network_files["generator"]), load_clip(network_files["clip"])
    drawn = sample_styles(generator, seed=1, sample_ids=range(5), truncation_psi=0.7)
    codes = next(styles for _, _, styles in drawn)
    text = text_direction(clip, neutral="hair", target="grey hair")
    found = []
    for size in (32, 2, 1):
        measure = measure_on(generator, clip.embed_whole, codes, text, clip.logit_scale, batch_size=size)
        found.append(measure(torch.ones(generator.layout.num_editable)))
    for other in found[1:]:
        assert_close(other.effect, found[0].effect, atol=1e-5, rtol=0)
        assert_close(other.movement, found[0].movement, atol=1e-5, rtol=0)


# ---- one place ------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", CORE, ids=lambda each: each.__name__)
def test_every_option_of_the_core_has_a_sentence_and_every_number_a_bound(settings):
    for name, (kind, metadata) in annotated_fields(settings).items():
        assert any(isinstance(mark, Says) and mark.text for mark in metadata), name
        if kind in (int, float, int | None):
            assert any(not isinstance(m, (Says, ChangesNoResult, NamedIfChanged)) for m in metadata), name


@pytest.mark.parametrize(
    ("form", "core"),
    [
        (Inversion, RefinementSettings), (PivotalTuning, PivotalSettings), (Relevance, RelevanceSettings),
        (Choosing, ChoosingSettings), (Optimization, OptimizationSettings),
        (MapperTraining, MapperTrainingSettings), (Saving, SavingSettings),
    ],
)  # fmt: skip
def test_a_form_says_what_the_core_says(form, core):
    shown = TypeAdapter(form).json_schema()["properties"]
    for name, (_, metadata) in annotated_fields(core).items():
        assert shown[name]["description"] == next(m.text for m in metadata if isinstance(m, Says))
    defaults = {field.name: field.default for field in dataclasses.fields(core)}
    if dataclasses.is_dataclass(form):
        assert {name: shown[name]["default"] for name in defaults} == defaults


_LOOK = """
import json, sys
from typer.testing import CliRunner
import styleclip_core, styleclip_core.inversion as core
from pydantic import TypeAdapter
from styleclip_cli.main import app
from styleclip_core.options import parameters
from styleclip.tasks.settings import Inversion
try:
    core.RefinementSettings(pixel_weight=-1)
except ValueError as error:
    refused = str(error)
wide = {"COLUMNS": "250", "TERMINAL_WIDTH": "250"}
print(json.dumps({
    "place": styleclip_core.__file__,
    "form": TypeAdapter(Inversion).json_schema()["properties"]["pixel_weight"],
    "refused": refused,
    "named": [parameters(Inversion()), parameters(Inversion(pixel_weight=2.0))],
    "help": [CliRunner().invoke(app, [name, "--help"], env=wide).output for name in ("invert", "edit")],
}))
"""


def test_the_worked_diff_of_contributing_adds_an_option_everywhere_by_its_two_places(tmp_path):
    for package in ("styleclip", "styleclip_core", "tasks", "styleclip_cli"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignored, symlinks=True)
    (tmp_path / "data").symlink_to(ROOT / "data")
    (diff,) = re.findall(r"```diff\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)
    hunks = re.findall(r"^\+\+\+ b/(\S+)\n@@ @@\n(.*?)(?=^---|\Z)", diff, re.S | re.M)
    assert len(hunks) == 2
    for name, hunk in hunks:
        module, lines = tmp_path / name, hunk.strip("\n").split("\n")
        before = "\n".join(line[1:] for line in lines if line[0] in " -")
        after = "\n".join(line[1:] for line in lines if line[0] in " +")
        assert module.read_text().count(before) == 1
        module.write_text(module.read_text().replace(before, after))

    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-c", _LOOK]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert Path(seen["place"]).is_relative_to(tmp_path)
    assert (seen["form"]["minimum"], seen["form"]["default"]) == (0, 1.0)
    assert seen["form"]["description"] == "Weight of the pixels' loss"
    assert seen["refused"] == "pixel_weight must be at least 0, got -1"
    plain, changed = seen["named"]
    assert plain == parameters(Inversion())  # what was made before is found
    assert changed == plain | {"pixel_weight": 2.0}
    for shown, option in zip(seen["help"], ("--pixel-weight", "--inversion-pixel-weight"), strict=True):
        assert re.search(
            rf"{option} .* Weight of the pixels' loss .*default: 1.0; x>=0", " ".join(shown.split())
        )


def test_every_field_of_an_inversion_is_an_option_of_invert_and_of_edit():
    from styleclip_cli import edit

    for command in (edit.invert, edit.edit):
        options = inspect.signature(with_options(command)).parameters
        for name, info in fields_of(Inversion).items():
            nested = {"pivotal": PivotalTuning, "features": FeatureInversion}.get(name)
            if nested:
                assert {f"inversion__{name}__{inner}" for inner in fields_of(nested)} <= set(options)
                continue
            (mark,) = get_args(options[f"inversion__{name}"].annotation)[1:]
            assert mark.help.startswith(sentence(info))


def test_the_reference_of_options_is_current():
    from styleclip_cli.reference import PLACE, reference

    assert PLACE.read_text() == reference(), "run `python -m styleclip_cli.reference`"
