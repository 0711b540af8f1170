"""Feature-space inversion in the flows: files, rows, what a later run finds, what a bad residual does."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.testing import assert_close

from styleclip.tasks.photographs import inversion as inversion_task
from styleclip.tasks.photographs.inversion import plan, read_tuning
from styleclip.tasks.photographs.own import with_tunings
from styleclip.tasks.running.run import ModelHashes, Run
from styleclip.tasks.settings import FeatureInversion, Inversion, PivotalTuning
from styleclip_core import load_generator
from styleclip_core.errors import CheckpointError
from styleclip_core.features import FeatureGenerator
from styleclip_core.images import decode_image, fit, from_uint8, psnr
from tests.left import files_of
from tests.pipeline.test_flows import manifest_of, run
from tests.pipeline.test_pivotal import codes_of, drawn_with_their_own, invert, plan_of, rows_of
from tests.pipeline.test_pivotal import models as models  # a fixture, as is the next
from tests.pipeline.test_pivotal import photos as photos

PLAIN = Inversion(steps=0)
FEATURES = Inversion(steps=0, features=FeatureInversion(steps=5, rank=4, chunk=2))


@pytest.mark.usefixtures("prefect_server")
def test_residuals_are_stored_scored_found_again_and_drawn_with(models, photos, tmp_path):
    result = invert(models, photos, tmp_path, FEATURES)
    rows = rows_of(result.latents)
    plain = rows_of(invert(models, photos, tmp_path, PLAIN).latents)
    assert set(rows) == {"p0.png", "p1.png", "Sub/p2.png"}
    for key, row in rows.items():
        assert row["status"] == "ok"
        assert row["method"] == "encoder+features-5"
        assert (Path(result.latents) / row["tuning"]).stat().st_size == row["tuning_bytes"]
        assert row["w_plus"] == plain[key]["w_plus"]  # the latent stays
        assert row["psnr"] > plain[key]["psnr"] + 1
        assert (plain[key]["tuning"], plain[key]["tuning_bytes"]) == (None, None)

    # what later edits draw is what the row's psnr and the stored reconstruction say
    some = [rows[key] for key in ("p1.png", "Sub/p2.png")]
    planned = plan_of(models, photos, tmp_path, FEATURES).model_copy(update={"folder": result.latents})
    generator = load_generator(models.generator)
    residuals = [read_tuning(planned, generator, row) for row in some]
    own = with_tunings(generator, residuals, latents(some, generator))
    assert isinstance(own, FeatureGenerator)
    image = own.synthesize(codes_of(own, some))
    for index, row in enumerate(some):
        target = fit(decode_image((photos / row["image_key"]).read_bytes()), 16, 16)
        assert psnr(image[index : index + 1], target[None]).item() == pytest.approx(row["psnr"], abs=0.01)
        stored = Path(planned.reconstruction_uri(row)).read_bytes()
        pixels = from_uint8(np.asarray(decode_image(stored))[None])[0]
        assert_close(pixels, image[index].clamp(-1, 1), atol=0.01, rtol=0)

    before = files_of(tmp_path / "w")
    again = invert(models, photos, tmp_path, FEATURES)
    assert [step.computed for step in again.steps] == [0]
    assert files_of(tmp_path / "w") == before


def latents(rows, generator):
    flat = np.asarray([row["w_plus"] for row in rows], np.float32)
    return torch.from_numpy(flat).view(len(rows), generator.num_ws, -1)


@pytest.mark.usefixtures("prefect_server")
def test_a_residual_that_is_not_finite_is_a_row_and_a_rerun_does_that_image_alone(
    models, photos, tmp_path, monkeypatch
):
    real = inversion_task.find_residuals

    def lose_one(generator, target, w_plus, settings):
        return [None, *real(generator, target, w_plus, settings)[1:]]

    monkeypatch.setattr(inversion_task, "find_residuals", lose_one)
    first = rows_of(invert(models, photos, tmp_path, FEATURES).latents)
    failed = {key: row for key, row in first.items() if row["status"] != "ok"}
    assert failed
    for row in failed.values():
        assert row["error_type"] == "DivergedError"
        assert "residual of the features is not finite; give features fewer steps" in row["error"]
        assert row["tuning"] is None
    monkeypatch.setattr(inversion_task, "find_residuals", real)
    rows = rows_of(invert(models, photos, tmp_path, FEATURES).latents)
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert all(rows[key] == row for key, row in first.items() if key not in failed)


def test_settings_without_features_name_the_same_latents_as_ever():
    given = Run(hashes=ModelHashes(generator="g", clip="c", encoder="e"), workspace="ws")

    def named(**settings):
        return plan(given, "photos", Inversion(**settings)).fingerprint

    found = [named(), named(pivotal=PivotalTuning()), named(features=FeatureInversion())]
    found += [named(features=FeatureInversion(rank=3)), named(features=FeatureInversion(resolution=16))]
    assert len(set(found)) == 5
    assert named(features=FeatureInversion(), batch_size=3) == named(features=FeatureInversion())


def test_a_photograph_has_a_tuning_or_a_residual():
    with pytest.raises(ValidationError, match=r"a tuning \(pivotal\) or a residual \(features\), not both"):
        Inversion(pivotal=PivotalTuning(), features=FeatureInversion())


@pytest.mark.usefixtures("prefect_server")
def test_every_later_edit_is_drawn_with_the_image_s_own_residual(models, photos, tmp_path):
    out, changes = tmp_path / "out", {"inversion": FEATURES}
    edits = drawn_with_their_own(models, photos, tmp_path, FEATURES, PLAIN)

    # a residual that was replaced is that image's error, even by one that is whole; the others are edited
    replaced, other = (
        next((out / "workspace").rglob(f"tunings/{name}~*.safetensors")) for name in ("p0.png", "p1.png")
    )
    content = replaced.read_bytes()
    replaced.write_bytes(other.read_bytes())
    more = [edits[0].model_copy(update={"name": "more"})]
    rows = manifest_of(run(models, photos, out, more, **changes)).set_index("image_key")
    assert rows.status.to_dict() == {"Sub/p2.png": "ok", "p0.png": "failed", "p1.png": "ok"}
    assert rows.loc["p0.png", "error_type"] == "ChangedInputError"
    assert "is not the residual that was stored with its latent" in rows.loc["p0.png", "error"]
    replaced.write_bytes(content)
    rows = manifest_of(run(models, photos, out, more, **changes))
    assert set(rows.status) == {"ok"}


def test_a_residual_that_is_damaged_is_named(models, photos, tmp_path):
    planned = plan_of(models, photos, tmp_path, FEATURES)
    row = {
        "image_key": "p0.png", "content_hash": "ab" * 32, "tuning": "x",
        "tuning_hash": hashlib.sha256(b"damaged").hexdigest(),
    }  # fmt: skip
    place = Path(planned.folder) / planned.tuning_key(row)
    place.parent.mkdir(parents=True)
    place.write_bytes(b"damaged")
    message = r"tunings/p0.png~[0-9a-f]{12}.safetensors: the residual of features is damaged"
    with pytest.raises(CheckpointError, match=message):
        read_tuning(planned, load_generator(models.generator), row)
