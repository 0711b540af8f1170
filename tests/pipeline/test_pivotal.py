"""Pivotal tuning in the inversion flow: files, rows, what a later run finds, what a bad tuning does."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.testing import assert_close

from styleclip.flows.invert_images import invert_images
from styleclip.tasks.artifacts import ChangedInputError
from styleclip.tasks.photographs import inversion as inversion_task
from styleclip.tasks.photographs.inversion import plan, read_tuning
from styleclip.tasks.photographs.own import with_tunings
from styleclip.tasks.running.run import ModelHashes, Run, run_here
from styleclip.tasks.settings import Execution, Inversion, Models, Optimization, PivotalTuning
from styleclip.tasks.settings.edits import Edit
from styleclip.tasks.storage import StorageError, output_key, read_bytes
from styleclip_core import load_generator
from styleclip_core.errors import CheckpointError
from styleclip_core.images import decode_image, fit, from_uint8, psnr
from styleclip_core.models.stylegan2 import Generator
from styleclip_core.tuned import TunedGenerator
from tests.left import files_of
from tests.pipeline.test_flows import encoded, manifest_of, portrait, run

TUNED = Inversion(steps=3, pivotal=PivotalTuning(steps=20, rank=2))


@pytest.fixture
def models(network_files) -> Models:
    return Models(**network_files)


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    (folder / "Sub").mkdir(parents=True)
    for index, name in enumerate(("p0.png", "p1.png", "Sub/p2.png")):
        (folder / name).write_bytes(encoded(portrait(index)))
    return folder


def invert(models, photos, tmp_path, settings=TUNED):
    execution = Execution(shard_size=2, device="cpu")
    return invert_images(models, str(photos), str(tmp_path / "w"), settings, execution)


def rows_of(latents: str) -> dict[str, dict]:
    parts = sorted(Path(latents).glob("*.attempt-*.parquet"))
    return {row["image_key"]: row for part in parts for row in pq.read_table(part).to_pylist()}


def plan_of(models, photos, tmp_path, settings=TUNED):
    return plan(run_here(models, str(tmp_path / "w")), str(photos), settings)


def tuned_generator(models, planned, rows):
    """The generator that draws these rows, read as an edit reads it."""
    generator = load_generator(models.generator)
    # where w_plus counts, see test_features.py
    return with_tunings(generator, [read_tuning(planned, generator, row) for row in rows], torch.zeros(0))


def codes_of(generator, rows):
    flat = np.asarray([row["w_plus"] for row in rows], np.float32)
    return generator.styles(torch.from_numpy(flat).view(len(rows), generator.num_ws, -1))


@pytest.mark.usefixtures("prefect_server")
def test_tunings_are_stored_scored_found_again_and_drawn_with(models, photos, tmp_path):
    result = invert(models, photos, tmp_path)
    rows = rows_of(result.latents)
    plain = rows_of(invert(models, photos, tmp_path, Inversion(steps=3)).latents)
    assert set(rows) == {"p0.png", "p1.png", "Sub/p2.png"}
    for key, row in rows.items():
        assert row["status"] == "ok"
        assert row["method"] == "encoder+3+pivotal-20"
        assert (Path(result.latents) / row["tuning"]).stat().st_size == row["tuning_bytes"]
        assert row["w_plus"] == plain[key]["w_plus"]  # the pivot stays
        assert row["psnr"] > plain[key]["psnr"] + 0.2
        assert (plain[key]["tuning"], plain[key]["tuning_bytes"]) == (None, None)

    # what later edits draw is what the row's psnr and the stored reconstruction say
    some = [rows[key] for key in ("p1.png", "Sub/p2.png")]
    planned = plan_of(models, photos, tmp_path).model_copy(update={"folder": result.latents})
    tuned = tuned_generator(models, planned, some)
    assert isinstance(tuned, TunedGenerator)
    image = tuned.synthesize(codes_of(tuned, some))
    for index, row in enumerate(some):
        target = fit(decode_image((photos / row["image_key"]).read_bytes()), 16, 16)
        assert psnr(image[index : index + 1], target[None]).item() == pytest.approx(row["psnr"], abs=0.01)
        stored = Path(planned.reconstruction_uri(row)).read_bytes()
        pixels = from_uint8(np.asarray(decode_image(stored))[None])[0]
        assert_close(pixels, image[index].clamp(-1, 1), atol=0.01, rtol=0)

    before = files_of(tmp_path / "w")
    again = invert(models, photos, tmp_path)
    assert [step.computed for step in again.steps] == [0]
    assert files_of(tmp_path / "w") == before


@pytest.mark.usefixtures("prefect_server")
def test_a_tuning_that_diverges_is_a_row_and_a_rerun_does_that_image_alone(
    models, photos, tmp_path, monkeypatch
):
    real, tuned = inversion_task._tune, []

    def break_one(planned, generator, target, w_plus, perceptual):
        tuned.append(len(target))
        broken = target.clone()
        broken[0, 0, 0, 0] = torch.nan
        return real(planned, generator, broken, w_plus, perceptual)

    monkeypatch.setattr(inversion_task, "_tune", break_one)
    first = invert(models, photos, tmp_path)
    failed = {key: row for key, row in rows_of(first.latents).items() if row["status"] != "ok"}
    assert failed
    assert len(failed) == len(tuned)
    for row in failed.values():
        assert row["error_type"] == "DivergedError"
        assert "tuning of the generator is not finite" in row["error"]
        assert row["tuning"] is None
    monkeypatch.setattr(inversion_task, "_tune", real)
    kept = {key: row for key, row in rows_of(first.latents).items() if row["status"] == "ok"}
    rows = rows_of(invert(models, photos, tmp_path).latents)
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert all(rows[key] == row for key, row in kept.items())


def test_rows_without_tunings_and_tables_without_the_column_have_the_plain_generator(
    models, photos, tmp_path
):
    planned = plan_of(models, photos, tmp_path, Inversion())
    for row in ({"image_key": "a.png"}, {"image_key": "a.png", "tuning": None}):
        assert isinstance(tuned_generator(models, planned, [row]), Generator)


def test_a_tuning_that_is_lost_or_damaged_is_named(models, photos, tmp_path):
    planned = plan_of(models, photos, tmp_path)
    row = {
        "image_key": "p0.png",
        "content_hash": "ab" * 32,
        "tuning": "../../elsewhere",  # a table cannot point out of its folder
        "tuning_hash": hashlib.sha256(b"damaged").hexdigest(),
    }
    with pytest.raises(StorageError, match=r"tunings/p0.png~[0-9a-f]{12}.safetensors"):
        tuned_generator(models, planned, [row])
    place = Path(planned.folder) / planned.tuning_key(row)
    place.parent.mkdir(parents=True)
    place.write_bytes(b"damaged")
    with pytest.raises(
        CheckpointError, match=r"tunings/p0.png~[0-9a-f]{12}.safetensors: the tuning of a generator is dam"
    ):
        tuned_generator(models, planned, [row])
    place.write_bytes(b"another")
    with pytest.raises(ChangedInputError, match="is not the tuning that was stored with its latent"):
        tuned_generator(models, planned, [row])


def test_settings_without_tuning_name_the_same_latents_as_ever():
    hashes = ModelHashes(generator="g", clip="c", encoder="e")
    given = Run(hashes=hashes, workspace="ws")
    planned = plan(given, "photos", Inversion())
    before = replace(planned.recipe, version="1").fingerprint
    assert before == "b6871e0f32f6b2f43e7ff4d5697f65fd"  # known from before there were tunings
    tuned = plan(given, "photos", Inversion(pivotal=PivotalTuning()))
    held = plan(given, "photos", Inversion(pivotal=PivotalTuning(locality_weight=1)))
    assert len({planned.fingerprint, tuned.fingerprint, held.fingerprint}) == 3
    batched = plan(given, "photos", Inversion(pivotal=PivotalTuning(), batch_size=3))
    assert batched.fingerprint == tuned.fingerprint


def drawn_with_their_own(models, photos, tmp_path, settings, plain):
    """Check that edits draw images with what they have beside their latents, and return the edits."""
    out = tmp_path / "out"
    edits = [
        Edit(name="still", target="hat", alpha=0.0, beta=0.0),
        Edit(
            name="way", target="hat", method="optimization",
            optimization=Optimization(steps=2, learning_rate=1e-6, chunk=2),
        ),
    ]  # fmt: skip
    rows = manifest_of(run(models, photos, out, edits, inversion=settings))
    assert set(rows.status) == {"ok"}
    for row in rows.itertuples():  # edits that move nothing draw the photograph as it was inverted
        name = output_key(row.image_key, suffix=".png", version=row.content_hash)
        stored = next((out / "workspace").rglob(f"reconstructions/{name}"))
        image = np.asarray(decode_image(read_bytes(str(out / row.output_key)))).astype(int)
        assert np.abs(image - np.asarray(decode_image(stored.read_bytes()))).max() <= 1

    without = manifest_of(run(models, photos, tmp_path / "plain", edits, inversion=plain))
    unlike = decode_image(read_bytes(str(tmp_path / "plain" / without.output_key[0])))
    own = decode_image(read_bytes(str(out / rows.output_key[0])))
    assert np.abs(np.asarray(unlike).astype(int) - np.asarray(own)).max() > 1
    return edits


@pytest.mark.usefixtures("prefect_server")
def test_every_later_edit_is_drawn_with_the_image_s_own_generator(models, photos, tmp_path):
    out, changes = tmp_path / "out", {"inversion": TUNED}
    edits = drawn_with_their_own(models, photos, tmp_path, TUNED, Inversion(steps=3))

    # a damaged tuning is that image's error, and the others are edited
    damaged = next((out / "workspace").rglob("tunings/p0.png~*.safetensors"))
    content = damaged.read_bytes()
    damaged.write_bytes(b"damaged")
    more = [edits[0].model_copy(update={"name": "more"})]
    rows = manifest_of(run(models, photos, out, more, **changes)).set_index("image_key")
    assert rows.status.to_dict() == {"Sub/p2.png": "ok", "p0.png": "failed", "p1.png": "ok"}
    assert rows.loc["p0.png", "error_type"] == "ChangedInputError"
    damaged.write_bytes(content)
    rows = manifest_of(run(models, photos, out, more, **changes))
    assert set(rows.status) == {"ok"}
