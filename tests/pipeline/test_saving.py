"""What a bulk edit leaves: formats, sizes, images in tars and tables, and what reads them."""

from __future__ import annotations

import gc
import io
import json
import os
import re
import shutil
import signal
import sys
import tarfile
import threading
import time
import urllib.request
import warnings
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import webdataset
from PIL import Image

from styleclip.flows.edit_images import edit_images
from styleclip.flows.evaluate import evaluate_edits
from styleclip.tasks.editing import plans as planning
from styleclip.tasks.editing import saving as packing
from styleclip.tasks.keeping.accounts import account
from styleclip.tasks.keeping.pruning import Choice, prune
from styleclip.tasks.photographs import pasting, reading
from styleclip.tasks.photographs.edited_faces import EditedFaces, names
from styleclip.tasks.photographs.reading import object_of, read_stored
from styleclip.tasks.reports.page.thumbnails import plan_page, thumbnail_chunk
from styleclip.tasks.running.run import Run, run_here
from styleclip.tasks.settings import (
    DataSet,
    Execution,
    Inversion,
    Judges,
    Models,
    Relevance,
    Sampling,
    Saving,
    SettingsError,
)
from styleclip.tasks.settings.edits import Edit
from styleclip.tasks.storage import (
    join,
    list_objects,
    output_key,
    read_bytes,
    readable_key,
    write_bytes_atomic,
)
from styleclip_cli.serving import Pages
from styleclip_core import images
from styleclip_core.errors import ImageFormatError
from styleclip_core.images import decode_image
from tests.forked import completed
from tests.left import files_of
from tests.pipeline.test_flows import encoded, portrait

pytestmark = pytest.mark.usefixtures("prefect_server")
EDITS = [
    Edit(name="grey", neutral="hair", target="grey hair", alpha=(1, 2), beta=0.0, templates="none"),
    Edit(name="hat", target="face with a hat", alpha=2, top_k=5, templates="none"),
]
KEYS = ["IMG_0001.JPG", "a.b.png", "a_b.png", "faces/Bob Smith/001.png", "p.jpg", "p.png", "p6.png", "p7.png"]
PACKED = [Saving(to="webdataset"), Saving(to="parquet")]
IDS = ["tars", "tables"]


@pytest.fixture
def photos(tmp_path) -> str:
    return put(str(tmp_path / "photos"))


def put(place: str) -> str:
    """Write photographs, and a list of them with a column of its own."""
    for number, key in enumerate(KEYS):
        write_bytes_atomic(join(place, key), encoded(portrait(number)))
    listed = "image_key,photographer\n" + "".join(f"{key},person {n}\n" for n, key in enumerate(KEYS))
    write_bytes_atomic(join(place, "list.csv"), listed.encode())
    return place


def edit(network_files, photos, out, **changes):
    settings = {
        "sampling": Sampling(statistics=40, codes=3),
        "relevance": Relevance(samples=3, channels_per_shard=50),
        "inversion": Inversion(steps=2),
        "execution": Execution(shard_size=4),
    }
    listed = join(photos, "list.csv")
    return edit_images(Models(**network_files), listed, str(out), EDITS, **{**settings, **changes})


def rows_of(result) -> pd.DataFrame:
    return pd.read_parquet(io.BytesIO(read_bytes(result.report.manifest)))


def pixels(out, rows) -> dict[tuple[str, str, float], bytes]:
    """The pixels of every edited image, by what they are of."""
    return {
        (row.image_key, row.edit, row.alpha): np.asarray(
            decode_image(read_stored(str(out), row.output_key))
        ).tobytes()
        for row in rows.itertuples()
    }


def samples_of(tar: Path) -> list[dict]:
    """The samples that webdataset finds; it leaves the file to the garbage collector."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        found = list(webdataset.WebDataset(str(tar), shardshuffle=False).decode("pil"))
        gc.collect()
    return found


def name_of(said: dict) -> tuple[str, str, float]:
    return said["image_key"], said["edit"], json.loads(said["settings"])["alpha"]


@pytest.fixture(scope="module")
def loose(network_files, prefect_server, tmp_path_factory):
    """The same edits as files: the manifest's rows, and where they lie."""
    folder = tmp_path_factory.mktemp("loose")
    result = edit(network_files, put(str(folder / "photos")), folder / "out")
    return rows_of(result), folder / "out", result


def test_every_name_is_readable_and_says_its_photograph(loose):
    rows, out, _ = loose
    assert len(rows) == len(KEYS) * 3
    assert rows.status.eq("ok").all()
    for row in rows.itertuples():
        assert row.output_key.startswith(f"images/{row.variant}/{row.image_key}~")
        assert (out / row.output_key).is_file()


@pytest.mark.parametrize("saving", PACKED, ids=IDS)
def test_packed_images_are_the_loose_ones_and_a_rerun_writes_the_same(
    network_files, photos, tmp_path, loose, saving
):
    out = tmp_path / "out"
    result = edit(network_files, photos, out, saving=saving)
    rows = rows_of(result)
    assert pixels(out, rows) == pixels(loose[1], loose[0])
    columns = ["image_key", "edit", "alpha", "clip_after", "directional", "width", "height", "photographer"]
    assert rows[columns].equals(loose[0][columns])
    written = {str(path.relative_to(out)) for path in (out / "images").rglob("*") if path.is_file()}
    assert written == set(map(object_of, rows.output_key))
    assert len(written) < len(rows) / 2

    before = files_of(out)
    again = edit(network_files, photos, out, saving=saving)
    assert [step.computed for step in again.steps] == [0, 0, 0, 0]
    assert files_of(out) == before


def test_webdataset_reads_tars_as_samples_of_an_image_and_what_is_known_of_it(
    network_files, photos, tmp_path, loose
):
    out = tmp_path / "out"
    rows = rows_of(edit(network_files, photos, out, saving=Saving(to="webdataset")))
    expected = pixels(loose[1], loose[0])
    seen = {}
    for tar in sorted((out / "images").rglob("*.tar")):
        names = []
        for sample in samples_of(tar):
            said = sample["json"]
            assert {name for name in sample if not name.startswith("__")} == {"png", "json"}
            seen[name_of(said)] = np.asarray(sample["png"]).tobytes()
            assert said["photographer"] == f"person {KEYS.index(said['image_key'])}"
            assert said["target"] in ("grey hair", "face with a hat")
            names.append(sample["__key__"])
        assert len(set(names)) == len(names)
        with tarfile.open(tar) as members:
            assert {(m.mtime, m.uid, m.uname, m.mode) for m in members} == {(0, 0, "", 0o644)}
    assert seen == expected
    scores = rows.set_index(["image_key", "variant"]).directional
    found = datasets.load_dataset(
        "webdataset", data_files=[str(tar) for tar in (out / "images").rglob("*.tar")], split="train",
        cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    assert len(found) == len(rows)
    for sample in found:
        said = sample["json"]
        assert np.asarray(sample["png"]).tobytes() == expected[name_of(said)]
        assert said["directional"] == pytest.approx(scores[said["image_key"], said["variant"]], abs=1e-6)


def test_datasets_reads_tables_with_images(network_files, photos, tmp_path, loose):
    out = tmp_path / "out"
    edit(network_files, photos, out, saving=Saving(to="parquet"))
    expected = pixels(loose[1], loose[0])
    files = [str(table) for table in sorted((out / "images").rglob("*.parquet"))]
    found = datasets.load_dataset(
        "parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache")
    )
    assert isinstance(found.features["image"], datasets.Image)
    seen = {
        (row["image_key"], row["edit"], row["alpha"]): np.asarray(row["image"]).tobytes() for row in found
    }
    assert seen == expected
    assert set(found["photographer"]) == {f"person {number}" for number in range(len(KEYS))}


def test_own_tars_are_a_data_set_to_edit_again(network_files, photos, tmp_path):
    out = tmp_path / "out"
    rows = rows_of(edit(network_files, photos, out, saving=Saving(to="webdataset")))
    variant = rows.variant[0]
    again = edit_images(
        Models(**network_files), str(out / "images" / variant), str(tmp_path / "second"), EDITS[1:],
        sampling=Sampling(statistics=40, codes=3), relevance=Relevance(samples=3, channels_per_shard=50),
        inversion=Inversion(steps=1), execution=Execution(shard_size=4), dataset=DataSet(form="tars"),
    )  # fmt: skip
    found = rows_of(again)
    assert found.status.eq("ok").all()
    assert set(found.photographer) == {f"person {number}" for number in range(len(KEYS))}


@pytest.mark.parametrize(
    ("saving", "form", "size"),
    [
        (Saving(format="jpeg", quality=80), "JPEG", (16, 16)),
        (Saving(format="webp-lossless", size=32), "WEBP", (32, 32)),
        (Saving(format="avif", size=24, to="webdataset"), "AVIF", (24, 24)),
        (Saving(format="webp", to="parquet"), "WEBP", (16, 16)),
    ],
    ids=["jpeg", "lossless webp, larger", "avif in tars", "webp in tables"],
)
def test_formats_and_sizes_are_as_asked_for(network_files, photos, tmp_path, saving, form, size):
    out = tmp_path / "out"
    rows = rows_of(edit(network_files, photos, out, saving=saving))
    for row in rows.itertuples():
        with Image.open(io.BytesIO(read_stored(str(out), row.output_key))) as image:
            assert (image.format, image.size) == (form, size)
            assert not image.getexif()
        assert (row.width, row.height) == size


@pytest.mark.parametrize("saving", PACKED, ids=IDS)
def test_an_object_that_is_lost_is_written_again_with_all_of_its_images(
    network_files, photos, tmp_path, saving
):
    out = tmp_path / "out"
    rows = rows_of(edit(network_files, photos, out, saving=saving))
    before = files_of(out)
    gone = object_of(rows.output_key[0])
    images = sum(object_of(key) == gone for key in rows.output_key)
    assert images > 1
    (out / gone).unlink()
    again = edit(network_files, photos, out, saving=saving)
    assert again.report.failed == 0
    assert files_of(out) == before
    assert sum(step.computed for step in again.steps if step.step == "edit-images") == 1


def test_a_large_shard_has_several_objects(network_files, photos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(packing, "_MB", 1000)
    rows = rows_of(edit(network_files, photos, out, saving=Saving(to="webdataset", most_mb=2)))
    whole = [read_stored(str(out), key) for key in rows.output_key]
    tars = list((out / "images").rglob("*.tar"))
    for tar in tars:
        with tarfile.open(tar) as members:
            images = [member.size for member in members if not member.name.endswith(".json")]
        assert sum(images) <= 2000 or len(images) == 1
    assert len(tars) > 3 * 2  # edits and shards
    assert all(content.startswith(b"\x89PNG") for content in whole)


@pytest.mark.parametrize("saving", PACKED, ids=IDS)
def test_the_evaluation_of_packed_images_is_that_of_the_loose_ones(
    network_files, photos, tmp_path, loose, saving, monkeypatch
):
    out = tmp_path / "out"
    packed = edit(network_files, photos, out, saving=saving)
    read, real = list[str](), reading.read_range

    def ranged(uri, *where):
        read.append(uri)
        return real(uri, *where)

    monkeypatch.setattr(reading, "read_range", ranged)
    tables = []
    for result in (loose[2], packed):
        found = evaluate_edits(result.report.manifest, judges=Judges(clip=network_files["clip"]))
        table = pd.read_parquet(found.evaluation.evaluation)
        tables.append(
            table.drop(columns=["variant", "output_key"]).sort_values(["image_key", "edit", "alpha"])
        )
    pd.testing.assert_frame_equal(*(table.reset_index(drop=True) for table in tables))

    # a shard's tar is read once, not its images one by one
    tars = list((out / "images").rglob("*.tar"))
    assert sorted(read) == sorted(map(str, tars))


def test_thumbnails_are_made_of_tars_that_are_read_once(network_files, photos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    result = edit(network_files, photos, out, saving=Saving(to="webdataset"))
    read, real = list[str](), reading.read_range

    def ranged(uri, *where):
        read.append(uri)
        return real(uri, *where)

    # in a workspace that has none yet
    monkeypatch.setattr(reading, "read_range", ranged)
    run = run_here(Models(**network_files), str(tmp_path / "other"), str(out))
    planned = plan_page.fn(run, result.report.manifest)
    made = [thumbnail_chunk.fn(planned.source, chunk) for chunk in planned.chunks]
    assert sum(each.failed for each in made) == 0
    assert sorted(read) == sorted(str(tar) for tar in (out / "images").rglob("*.tar"))


@pytest.mark.parametrize("saving", PACKED, ids=IDS)
def test_page_and_server_show_packed_images(network_files, photos, tmp_path, saving):
    out = tmp_path / "out"
    result = edit(network_files, photos, out, saving=saving)
    row = rows_of(result).iloc[0]
    page = Path(result.report.page).read_text()
    thumbs = [json.loads(text) for text in re.findall(r'id="data-thumbs-\d+-0">(.*?)</script>', page)]
    assert len(thumbs) == 2 + 3
    assert all(each for column in thumbs for each in column)

    server = Pages(str(out))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        name, _, part = row.output_key.partition("#")
        query = part if part.startswith("bytes") else part.partition("&")[0]
        with urllib.request.urlopen(f"{server.address}{name}?{query}") as answer:
            assert answer.headers["Content-Type"] == "image/png"
            assert answer.read() == read_stored(str(out), row.output_key)
    finally:
        server.shutdown()
        server.server_close()


def test_storage_counts_objects_that_hold_many_images_once_and_prune_keeps_them(
    network_files, photos, tmp_path
):
    out = str(tmp_path / "out")
    result = edit(network_files, photos, out, saving=Saving(to="webdataset"))
    write_bytes_atomic(join(out, "images", rows_of(result).variant[0], "abandoned.tar"), b"x" * 100)
    found = account(out, join(out, "workspace"))
    tars = list(list_objects(join(out, "images"), suffixes=(".tar",)))
    (batch,) = found.batches
    assert batch.missing == 0
    assert batch.referred == sum(item.size for item in tars) - 100
    (images,) = [kind for kind in found.kinds if kind.kind == "images"]
    assert (images.objects, images.unreferenced, images.unreferenced_size) == (len(tars), 1, 100)

    later = time.time() + 2 * 24 * 3600
    prune(out, join(out, "workspace"), Choice(keep_last=1), grace_s=24 * 3600.0, confirmed=True, now=later)
    left = {item.key for item in list_objects(join(out, "images"))}
    assert left == {item.key for item in tars} - {f"{rows_of(result).variant[0]}/abandoned.tar"}


def test_all_of_it_on_s3(network_files, s3_identities, tmp_path, loose, monkeypatch):
    options = s3_identities.options
    monkeypatch.delenv("STYLECLIP_STORAGE_OPTIONS")
    put("s3://photographs/saving")  # as the administrator; the reader may not write
    monkeypatch.setenv("STYLECLIP_STORAGE_OPTIONS", str(options))
    for saving in PACKED:
        out = f"s3://results/saving-{saving.to}"
        rows = rows_of(edit(network_files, "s3://photographs/saving", out, saving=saving))
        assert pixels(out, rows) == pixels(loose[1], loose[0])
        before = {item.key: item.etag for item in list_objects(join(out, "images"))}
        rerun = edit(network_files, "s3://photographs/saving", out, saving=saving)
        assert rerun.report.failed == 0
        assert {item.key: item.etag for item in list_objects(join(out, "images"))} == before


def test_images_of_former_runs_are_found_under_the_names_that_their_rows_say(
    network_files, photos, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    monkeypatch.setattr(planning, "readable_key", output_key)  # as names were
    former = rows_of(edit(network_files, photos, out))
    monkeypatch.undo()
    assert former.output_key.str.contains("/_/").sum() == 2 * 3
    before = files_of(out)
    again = edit(network_files, photos, out)
    assert [step.computed for step in again.steps] == [0, 0, 0, 0]
    assert files_of(out) == before
    assert not any(
        "thumbnails" in key and b"MissingObject" in content for key, content in files_of(out).items()
    )

    # what is lost of them comes back under the name that it has now
    lost = former[former.image_key == "IMG_0001.JPG"].iloc[0]
    (out / lost.output_key).unlink()
    mended = rows_of(edit(network_files, photos, out)).set_index(["image_key", "variant"])
    key = mended.output_key[lost.image_key, lost.variant]
    assert key.startswith(f"images/{lost.variant}/IMG_0001.JPG~")
    assert (out / key).is_file()


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"quality": 80}, "png keeps every pixel and has no quality"),
        ({"format": "jpeg", "quality": 101}, "100"),
        ({"format": "gif"}, "png"),
        ({"most_mb": 5}, "give to webdataset or parquet"),
        ({"size": 8}, "16"),
    ],
)
def test_what_cannot_be_saved_so_is_refused(said, problem):
    with pytest.raises(ValueError, match=problem):
        Saving(**said)


def test_a_format_that_pillow_lacks_ends_the_run_at_once(network_files, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_FORMATS", ("PNG", "JPEG"))
    with pytest.raises(ImageFormatError, match=r"avif is not written here.*pip install"):
        edit(network_files, photos, tmp_path / "out", saving=Saving(format="avif"))
    assert not (tmp_path / "out" / "images").exists()


@pytest.mark.parametrize("form", ["png", "jpeg", "webp", "avif"])
def test_faces_are_pasted_from_files_of_any_format(form):
    for key in ("p.png.face0.png", "_/img-0001-jpg~" + "0" * 32 + ".png", "con/p.png.face0.png"):
        named = readable_key(key, suffix=Saving(format=form).ending, version="ab" * 32)
        assert named in names({"output_key": key, "face_hash": "ab" * 32})


def test_faces_in_tars_want_the_manifest_of_their_batch(tmp_path, monkeypatch):
    edited = str(tmp_path / "images/grey_1a2b3c4d")
    write_bytes_atomic(join(edited, "0123-4567.tar"), b"...")
    face = {"output_key": "p.png.face0.png", "face_hash": "ab" * 32, "status": "ok"}
    monkeypatch.setattr(pasting, "read_faces", lambda *_: {"p.png": [face]})
    table = pasting.FaceTable(uri="faces.parquet", digest="0", photos="photos")
    with pytest.raises(SettingsError, match=r"lie in tars or tables \(0123-4567.tar\).*manifest.parquet"):
        pasting.index_edited.fn(Run(workspace=str(tmp_path)), table, EditedFaces(prefix=edited), 4)


# ---- kills ---------------------------------------------------------------------------------------------


def edit_and_be_killed() -> None:
    """Edit in a process that kills itself when the second file of a shard is put in its place."""
    photos, out, to, moment, *files = sys.argv[1:]
    real, begun, turn = packing.copy_from_local, [], threading.Lock()

    def copy(path, uri):
        with turn:
            begun.append(uri)
            if moment == "after" or len(begun) < 2:
                real(path, uri)
            if len(begun) == 2:
                os.kill(os.getpid(), signal.SIGKILL)

    packing.copy_from_local = copy
    networks = dict(zip(("generator", "clip", "encoder"), files, strict=True))
    edit(networks, photos, out, saving=Saving(to=to))


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("saving", PACKED, ids=IDS)
def test_a_kill_amid_a_shard_leaves_nothing_that_the_next_run_does_not_make_whole(
    network_files, photos, tmp_path, saving, moment
):
    out = tmp_path / "out"
    files = [network_files[name] for name in ("generator", "clip", "encoder")]
    killed = completed([photos, out, saving.to, moment, *files], os.environ, edit_and_be_killed)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    left = {key: content for key, content in files_of(out).items() if key.startswith("images/")}
    assert len(left) == (1 if moment == "before" else 2)

    edit(network_files, photos, out, saving=saving)
    night = files_of(out)
    assert {key: night[key] for key in left} == left
    shutil.rmtree(out)
    edit(network_files, photos, out, saving=saving)
    assert files_of(out) == night
