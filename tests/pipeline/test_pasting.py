"""Faces that a batch edited go back wherever they lie: in files, in tars, in tables, as its manifest says."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from styleclip.flows.align_faces import align_faces
from styleclip.flows.edit_images import edit_images
from styleclip.flows.paste_faces import paste_faces
from styleclip.tasks.photographs import pasting
from styleclip.tasks.photographs.edited_faces import EditedFaces
from styleclip.tasks.photographs.reading import object_of
from styleclip.tasks.running.run import Run
from styleclip.tasks.settings import (
    Alignment,
    Execution,
    FaceSource,
    Inversion,
    Models,
    Pasting,
    Saving,
    SettingsError,
)
from styleclip.tasks.settings.edits import Edit
from styleclip.tasks.storage import MissingObjectError, join, presence, read_bytes, write_bytes_atomic
from styleclip_core.errors import ArtifactConflictError
from styleclip_core.images import decode_image
from tests.pipeline import test_command_line as command_line
from tests.pipeline.test_faces import LEFT, ONE, RIGHT, photograph
from tests.pipeline.test_flows import encoded, portrait

pytestmark = pytest.mark.usefixtures("prefect_server")
called = command_line.called
EDITS = [
    Edit(name=name, neutral="a face", target=target, relevance="instant", templates="none", beta=0.0)
    for name, target in (("smile", "a smiling face"), ("hat", "a face with a hat"))
]
FORMS = ["images", "webdataset", "parquet"]
PHOTOGRAPHS = {"one.png": [ONE], "Group/TWO.png": [RIGHT, LEFT], "nobody.png": [], "three.png": [ONE]}


class Batches:
    """Aligned faces of four photographs, and the same two edits of them in every form."""

    def __init__(self, root: Path, networks: dict[str, str]) -> None:
        self.root, self.photos = root, root / "photos"
        for number, key in enumerate(PHOTOGRAPHS):
            write_bytes_atomic(str(self.photos / key), photograph(number))
        landmarks = root / "landmarks.json"
        landmarks.write_text(
            json.dumps({key: np.array(of).tolist() for key, of in PHOTOGRAPHS.items() if of})
        )
        self.faces = align_faces(
            FaceSource(landmarks=str(landmarks)), str(self.photos), str(root / "aligned"), "",
            Alignment(output_size=64),
        ).faces  # fmt: skip
        self.manifests = {
            form: edit_images(
                Models(**networks), self.faces.faces, str(root / form), EDITS, str(root / "workspace"),
                inversion=Inversion(steps=0), saving=Saving(to=form), instant={"codes": 4},
                sampling={"codes": 4, "statistics": 8}, execution=Execution(shard_size=2),
            ).report.manifest
            for form in FORMS
        }  # fmt: skip

    def paste(self, manifest: str, out: Path, *variant: str, **more):
        return paste_faces(self.faces.table, manifest, str(out), settings=Pasting(variant=variant), **more)

    def copy(self, form: str, to: Path) -> str:
        """Return the manifest of a copy of a batch, which may be damaged."""
        shutil.copytree(self.root / form, to, copy_function=shutil.copy)
        return str(to / Path(self.manifests[form]).relative_to(self.root / form))


@pytest.fixture(scope="module")
def batches(network_files, prefect_server, tmp_path_factory):
    return Batches(tmp_path_factory.mktemp("batches"), network_files)


def rows_of(uri: str) -> pd.DataFrame:
    return pd.read_parquet(uri)


def pixels(result) -> dict[tuple[str, str], bytes]:
    good = rows_of(result.pasted.table).query("status == 'ok'")
    return {
        (row.image_key, row.variant.rpartition("_")[0]): decode_image(
            read_bytes(join(result.pasted.photographs, row.output_key))
        ).tobytes()
        for row in good.itertuples()
    }  # fmt: skip


def test_files_tars_and_tables_give_the_same_pixels_as_the_folder_of_an_edit(batches, tmp_path):
    found = {form: batches.paste(batches.manifests[form], tmp_path / form) for form in FORMS}
    mine = {form: pixels(result) for form, result in found.items()}
    assert mine["webdataset"] == mine["parquet"] == mine["images"]
    assert {key for key, _ in mine["images"]} == {"one.png", "Group/TWO.png", "three.png"}
    assert len(mine["images"]) == 6

    # one folder, as it has always been given
    rows = rows_of(found["images"].pasted.table)
    for variant in set(rows.variant):
        folder = batches.root / "images" / "images" / variant
        loose = paste_faces(batches.faces.table, str(folder), str(tmp_path / "loose")).pasted
        for row in rows_of(loose.table).query("status == 'ok'").itertuples():
            content = decode_image(read_bytes(join(loose.photographs, row.output_key))).tobytes()
            assert content == mine["images"][row.image_key, variant.rpartition("_")[0]]
    assert "variant" not in rows_of(loose.table)


def test_what_names_a_result_without_a_manifest_is_what_it_always_was():
    run, table = Run(workspace="w", out="o"), pasting.FaceTable(uri="t", digest="d", photos="p")
    found = pasting.plan(run, table, EditedFaces(prefix="e"), Pasting())
    assert found.recipe.parameters == {"photos": "p", "edited": "e", "out": "o", "feather": 0.08}
    face = {"face_index": 0, "content_hash": "c", "quad": [1.0], "output_key": "k"}
    said = hashlib.sha256(b"0\0c\0[1.0]\0etag").hexdigest()[:32]
    assert pasting._version(found.edited, [face], {"k": "etag"}) == said


def test_rows_say_their_variant_lie_below_it_and_nobody_is_skipped_in_each(batches, tmp_path):
    result = batches.paste(batches.manifests["parquet"], tmp_path)
    rows = rows_of(result.pasted.table)
    assert len(rows) == len(PHOTOGRAPHS) * 2
    assert rows.groupby("image_key").variant.nunique().eq(2).all()
    assert (result.pasted.pasted, result.pasted.skipped, result.pasted.failed) == (6, 2, 0)
    assert rows[rows.status == "skipped"].error_type.eq("NoFaceError").all()
    for row in rows.query("status == 'ok'").itertuples():
        assert row.output_key.startswith(f"{row.variant}/")
        assert row.faces == len(PHOTOGRAPHS[row.image_key])


def test_variants_share_their_work_with_runs_that_take_others_too(batches, tmp_path):
    manifest = batches.manifests["webdataset"]
    (smile,) = {name for name in rows_of(manifest).variant if name.startswith("smile")}
    first = batches.paste(manifest, tmp_path, smile)
    assert set(rows_of(first.pasted.table).variant) == {smile}
    assert first.pasted.pasted == 3
    both = batches.paste(manifest, tmp_path, "smile", "hat")  # edits, of which all variants are taken
    assert both.pasted.photographs == first.pasted.photographs
    assert both.steps[0].computed == both.steps[0].shards - first.steps[0].shards
    again = batches.paste(manifest, tmp_path)
    assert again.pasted == both.pasted
    assert again.steps[0].computed == 0


def test_a_variant_that_is_not_there_is_an_error_that_names_those_that_are(batches, tmp_path):
    with pytest.raises(SettingsError, match=r"no variant or edit 'frown'; its variants are hat_.*, smile_"):
        batches.paste(batches.manifests["parquet"], tmp_path, "smile", "frown")
    with pytest.raises(SettingsError, match=r"'smile' is one of a manifest, and .* is none"):
        batches.paste(batches.faces.faces, tmp_path, "smile")
    with pytest.raises(ArtifactConflictError, match="is a table of faces; give a manifest of edits"):
        batches.paste(batches.faces.table, tmp_path)


def manifest_with(batches, to: Path, change) -> str:
    """Return a manifest like the one of tars, some cells of which are others."""
    manifest = batches.copy("webdataset", to)
    table = pq.read_table(manifest)
    rows = table.to_pylist()
    for row in rows:
        row |= change(row)
    pq.write_table(type(table).from_pylist(rows, table.schema), manifest)
    return manifest


def face_of(row) -> bool:
    return row["image_key"] == "one.png.face0.png" and row["edit"] == "smile"


def test_an_edit_that_failed_is_a_row_with_its_error(batches, tmp_path):
    failed = {"status": "failed", "error_type": "OddError", "error": "it was odd", "output_key": None}
    manifest = manifest_with(batches, tmp_path / "batch", lambda row: failed if face_of(row) else {})
    rows = rows_of(batches.paste(manifest, tmp_path / "out", "smile").pasted.table).set_index("image_key")
    assert (rows.status["one.png"], rows.error_type["one.png"]) == ("failed", "OddError")
    assert rows.error["one.png"] == "face 0 of one.png was not edited: OddError, it was odd"
    assert rows.status[["three.png", "Group/TWO.png"]].eq("ok").all()


def test_a_face_of_another_version_or_size_is_told_so(batches, tmp_path):
    another = manifest_with(
        batches, tmp_path / "a", lambda row: {"content_hash": "0" * 64} if face_of(row) else {}
    )
    rows = rows_of(batches.paste(another, tmp_path / "out", "smile").pasted.table).set_index("image_key")
    assert rows.error_type["one.png"] == "ArtifactConflictError"
    assert "was cut out anew after" in rows.error["one.png"]
    smaller = manifest_with(batches, tmp_path / "b", lambda row: {"width": 5} if face_of(row) else {})
    rows = rows_of(batches.paste(smaller, tmp_path / "out", "smile").pasted.table).set_index("image_key")
    assert rows.error_type["one.png"] == "ChangedObjectError"
    assert "and 5 x " in rows.error["one.png"]


def test_faces_that_were_not_to_be_edited_stay_and_a_photograph_of_them_alone_is_skipped(batches, tmp_path):
    def left_out(row):
        # of two faces the first, and the only one of another photograph
        out = row["image_key"] in ("three.png.face0.png", next(iter(sorted(keys))))
        return {"image_key": f"elsewhere/{row['image_key']}"} if out else {}

    keys = {key for key in rows_of(batches.manifests["webdataset"]).image_key if "two" in key.lower()}
    manifest = manifest_with(batches, tmp_path / "batch", left_out)
    rows = rows_of(batches.paste(manifest, tmp_path / "out", "smile").pasted.table).set_index("image_key")
    assert (rows.status["Group/TWO.png"], rows.faces["Group/TWO.png"]) == ("ok", 1)
    assert (rows.status["three.png"], rows.error_type["three.png"]) == ("skipped", "NotEditedError")
    assert rows.status["one.png"] == "ok"

    # that none of them is there is another batch's manifest
    other = manifest_with(
        batches, tmp_path / "other", lambda row: {"image_key": f"elsewhere/{row['image_key']}"}
    )
    with pytest.raises(SettingsError, match="none of the 4 faces is an image that"):
        batches.paste(other, tmp_path / "out", "smile")


@pytest.mark.parametrize("form", FORMS)
def test_an_image_that_is_gone_is_named_and_pasted_when_it_is_back(batches, tmp_path, form):
    manifest = batches.copy(form, tmp_path / "batch")
    rows = rows_of(manifest).query("edit == 'smile'").set_index("image_key")
    lost = tmp_path / "batch" / object_of(rows.output_key["one.png.face0.png"])
    kept = lost.read_bytes()
    lost.unlink()
    first = batches.paste(manifest, tmp_path / "out", "smile").pasted
    found = rows_of(first.table).set_index("image_key")
    assert found.error_type["one.png"] == "MissingFaceError"
    assert "any more, where" in found.error["one.png"]
    assert first.failed >= 1
    lost.write_bytes(kept)
    then = batches.paste(manifest, tmp_path / "out", "smile").pasted
    assert (then.pasted, then.failed) == (3, 0)

    # all of them are gone: a wrong place, and no row for each photograph
    for name in {object_of(name) for name in rows.output_key}:
        (tmp_path / "batch" / name).unlink()
    with pytest.raises(MissingObjectError, match=r"none of the 4 edited faces that .* is there"):
        batches.paste(manifest, tmp_path / "out", "smile")


@pytest.mark.parametrize("form", FORMS)
def test_an_image_that_is_replaced_while_shards_run_is_refused_and_taken_by_the_next_run(
    batches, tmp_path, form, monkeypatch
):
    manifest = batches.copy(form, tmp_path / "batch")
    rows = rows_of(manifest).query("edit == 'smile'").set_index("image_key")
    mine = tmp_path / "batch" / object_of(rows.output_key["one.png.face0.png"])
    read, content = pasting.read_shard, mine.read_bytes()

    def replaced_first(shard):
        if content:
            mine.unlink()
            mine.write_bytes(encoded(portrait(9)) if form == "images" else content)
        return read(shard)

    monkeypatch.setattr(pasting, "read_shard", replaced_first)
    found = rows_of(batches.paste(manifest, tmp_path / "out", "smile").pasted.table).set_index("image_key")
    assert found.status["one.png"] == "failed"
    assert "has changed since" in found.error["one.png"]
    monkeypatch.undo()
    then = rows_of(batches.paste(manifest, tmp_path / "out", "smile").pasted.table).set_index("image_key")
    # of a file the size has changed too, which the manifest knows
    assert then.status["one.png"] == ("failed" if form == "images" else "ok")


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_packed_faces_in_a_bucket_are_listed_and_never_asked_for_one_by_one(
    batches, tmp_path, form, monkeypatch, s3_identities
):
    manifest, place = batches.manifests[form], f"s3://results/{tmp_path.name}"
    rows = rows_of(manifest)
    for name in {object_of(name) for name in rows.output_key}:
        write_bytes_atomic(join(place, name), (batches.root / form / name).read_bytes())
    there = join(place, "batches", Path(manifest).parent.name, "manifest.parquet")
    write_bytes_atomic(there, Path(manifest).read_bytes())

    looked = []
    with monkeypatch.context() as patch:
        patch.setattr(presence, "version", looked.append)
        remote = batches.paste(there, tmp_path / "remote")
    assert not looked
    assert pixels(remote) == pixels(batches.paste(manifest, tmp_path / "here"))


def test_the_command_line_takes_a_manifest_and_an_edit(called, batches, tmp_path):
    options = ["--faces", batches.faces.table, "--edited", batches.manifests["webdataset"]]
    status, places, told = called("paste", *options, "--out", tmp_path / "out", "--variant", "hat")
    assert status == 0, told
    assert len(list(Path(places.split()[-1]).rglob("*.png"))) == 3
    status, _, told = called("paste", *options, "--out", tmp_path / "out", "--variant", "frown")
    assert status == 2
    assert "its variants are hat_" in " ".join(told.split())
