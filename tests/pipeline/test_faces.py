"""Faces in bulk: who is cut out, under which name, what one bad photograph does, and the way back.

Landmarks are given in a table, so every answer is known; one test uses the detector on a photograph.
"""

import hashlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageCms
from safetensors import safe_open
from safetensors.numpy import save_file

from styleclip import data
from styleclip.flows.align_faces import align_faces
from styleclip.flows.edit_images import edit_images
from styleclip.flows.paste_faces import paste_faces
from styleclip.tasks.artifacts import ChangedInputError, DamagedArtifactError, read_provenance
from styleclip.tasks.photographs import faces as faces_task
from styleclip.tasks.photographs import images, reading
from styleclip.tasks.photographs import pasting as pasting_task
from styleclip.tasks.photographs.datasets.front import locate
from styleclip.tasks.photographs.edited_faces import EditedFaces
from styleclip.tasks.photographs.faces import face_key
from styleclip.tasks.photographs.landmarks import read_landmarks
from styleclip.tasks.running import networks as models
from styleclip.tasks.running.progress import ShardsFailedError
from styleclip.tasks.running.run import Run
from styleclip.tasks.settings import (
    Alignment,
    DataSet,
    Execution,
    FaceSource,
    Inversion,
    Models,
    Pasting,
    Relevance,
    Sampling,
    SettingsError,
)
from styleclip.tasks.settings.edits import Edit
from styleclip.tasks.storage import (
    AccessDeniedError,
    MissingObjectError,
    list_objects,
    output_key,
    read_bytes,
    write_bytes_atomic,
)
from styleclip_core.faces import FaceQuad, quad_from_landmarks
from styleclip_core.images import decode_image
from tests.left import files_of
from tests.pipeline import test_command_line as command_line
from tests.pipeline.test_flows import encoded, portrait
from tests.pipeline.test_retry import press_retry
from tests.profiles import DISPLAY_P3

pytestmark = pytest.mark.usefixtures("prefect_server")
environment = command_line.environment
ASTRONAUT = Path(__file__).parents[1] / "data" / "astronaut.jpg"
# eyes 20 px apart: a quad of 90 px around the point it is moved to
FACE = np.array([[-10.0, -10], [10, -10], [0, 3], [-7, 15], [7, 15]])
ONE, LEFT, RIGHT = FACE + 100, np.add(FACE, (90, 100)), np.add(0.6 * FACE, (200, 100))


def photograph(seed: int, size=(280, 200), **options) -> bytes:
    return encoded(portrait(seed, size), **options)


@pytest.fixture
def photos(tmp_path) -> Path:
    """One face, two faces, nobody, a damaged file, grey, transparent, and one that lies on its side."""
    folder = tmp_path / "photos"
    (folder / "Group").mkdir(parents=True)
    (folder / "one.png").write_bytes(photograph(0))
    (folder / "Group" / "TWO.png").write_bytes(photograph(1))
    (folder / "nobody.png").write_bytes(photograph(2))
    (folder / "damaged.png").write_bytes(photograph(3)[:2000])
    (folder / "grey.png").write_bytes(encoded(portrait(4, (280, 200)).convert("L")))
    (folder / "clear.png").write_bytes(encoded(portrait(5, (280, 200)).convert("RGBA")))
    exif = Image.Exif()
    exif[0x0112] = 6  # upright it is 200 x 280
    (folder / "turned.jpg").write_bytes(photograph(6, form="JPEG", quality=95, exif=exif))
    return folder


@pytest.fixture
def landmarks(tmp_path) -> Path:
    table = {
        "one.png": ONE.tolist(),
        "Group/TWO.png": [RIGHT.tolist(), LEFT.tolist()],  # the smaller one first
        "damaged.png": ONE.tolist(),
        "grey.png": ONE.tolist(),
        "clear.png": ONE.tolist(),
        "turned.jpg": np.add(FACE, (100, 220)).tolist(),  # only the upright photograph has such a place
        "not-there.png": ONE.tolist(),
    }
    path = tmp_path / "landmarks.json"
    path.write_text(json.dumps(table))
    return path


ALIGNMENT = Alignment(output_size=96)


def align(photos, landmarks, out, alignment=ALIGNMENT, shard_size=2):
    source = FaceSource(landmarks=str(landmarks))
    return align_faces(source, str(photos), str(out), "", alignment, Execution(shard_size=shard_size))


def table(uri: str) -> pd.DataFrame:
    return pd.read_parquet(uri).set_index("image_key")


def edit_all(aligned: str, edited: Path, colour="red", size=64) -> None:
    """Stand in for an edit: every face becomes one colour, under the name that edit-images gives it."""
    for path in Path(aligned).rglob("*.png"):
        target = edited / output_key(str(path.relative_to(aligned)), suffix=".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (size, size), colour).save(target)


def decoded(path: Path) -> np.ndarray:
    return np.asarray(decode_image(path.read_bytes()))


def inside(quad, shape) -> np.ndarray:
    """Distance of each pixel from the edge of a quad, as a fraction of its side; negative outside."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    corners = np.reshape(quad, (4, 2))
    axes = np.stack([corners[3] - corners[0], corners[1] - corners[0]], axis=1)
    u, v = np.moveaxis((np.stack([x, y], -1) - corners[0]) @ np.linalg.inv(axes).T, -1, 0)
    return np.minimum(np.minimum(u, 1 - u), np.minimum(v, 1 - v))


def test_every_photograph_has_its_rows_and_every_face_its_name(photos, landmarks, tmp_path):
    out = tmp_path / "out"
    result = align(photos, landmarks, out)
    rows = table(result.faces.table)
    assert rows.status.to_dict() | {"Group/TWO.png": None} == {
        "Group/TWO.png": None, "one.png": "ok", "nobody.png": "skipped", "damaged.png": "failed",
        "grey.png": "ok", "clear.png": "ok", "turned.jpg": "ok",
    }  # fmt: skip
    assert rows.error_type["nobody.png"] == "NoFaceError"
    assert "has no face of nobody.png" in rows.error["nobody.png"]
    assert rows.error_type["damaged.png"] == "ImageDecodeError"
    two = rows.loc["Group/TWO.png"]
    assert two.face_index.tolist() == [0, 1]
    assert two.output_key.nunique() == 2
    assert np.allclose(two.iloc[0].landmarks, LEFT.ravel())  # the larger one is the first
    assert np.allclose(two.iloc[1].quad, quad_from_landmarks(RIGHT).to_list())
    assert (result.faces.photographs, result.faces.aligned) == (7, 6)
    assert (result.faces.without, result.faces.skipped, result.faces.failed) == (1, 0, 1)
    names = {str(path.relative_to(result.faces.faces)) for path in Path(result.faces.faces).rglob("*.png")}
    assert names == set(rows.output_key.dropna())
    assert "one.png.face0.png" in names
    for name in names:
        with Image.open(Path(result.faces.faces) / name) as face:
            assert (face.size, face.mode) == ((96, 96), "RGB")
    assert rows.loc["turned.jpg", ["width", "height"]].tolist() == [200, 280]
    assert pq.read_table(result.faces.table).schema.field("quad").type == pa.list_(pa.float64(), 8)
    assert read_provenance(result.faces.table).parameters["output_size"] == 96


def test_a_second_run_computes_nothing_and_writes_the_same(photos, landmarks, tmp_path):
    out = tmp_path / "out"
    (photos / "damaged.png").unlink()
    first = align(photos, landmarks, out)
    before = files_of(out)
    second = align(photos, landmarks, out)
    assert second.faces == first.faces
    assert second.steps[0].computed == 0
    assert first.steps[0].computed == first.steps[0].shards >= 2
    assert files_of(out) == before
    other = align(photos, landmarks, out, Alignment(output_size=64))
    assert other.faces.faces != first.faces.faces


def test_faces_of_photographs_that_have_gone_are_counted_and_named(photos, landmarks, tmp_path, caplog):
    out = tmp_path / "aligned"
    first = align(photos, landmarks, out)
    assert first.faces.left_over == 0
    (photos / "Group" / "TWO.png").unlink()
    (photos / "one.png").rename(photos / "other.png")

    # its name is in no table of landmarks, so nobody is found in it
    second = align(photos, landmarks, out)
    assert second.faces.faces == first.faces.faces
    assert second.faces.left_over == 3
    assert len(files_of(Path(second.faces.faces))) == second.faces.aligned + 3
    said = [each.getMessage() for each in caplog.records if "of no photograph any more" in each.getMessage()]
    assert len(said) == 1
    assert "one.png.face0.png" in said[0]

    # whoever deletes what was named is told of nothing
    known = set(table(second.faces.table)["output_key"].dropna())
    for key in files_of(Path(second.faces.faces)).keys() - known:
        (Path(second.faces.faces) / key).unlink()
    assert align(photos, landmarks, out).faces.left_over == 0


def test_only_what_failed_is_tried_again_and_names_stay(photos, landmarks, tmp_path, monkeypatch):
    read, asked = reading.read_version, []

    def refuse(uri: str, etag: str) -> bytes:
        if uri.endswith("one.png"):
            raise AccessDeniedError(f"cannot read {uri}: access denied")
        return read(uri, etag)

    def note(uri: str, etag: str) -> bytes:
        asked.append(Path(uri).name)
        return read(uri, etag)

    monkeypatch.setattr(reading, "read_version", refuse)
    first = table(align(photos, landmarks, tmp_path / "out").faces.table)
    assert first.error_type["one.png"] == "AccessDeniedError"
    monkeypatch.setattr(reading, "read_version", note)
    second = table(align(photos, landmarks, tmp_path / "out").faces.table)
    assert sorted(asked) == ["damaged.png", "one.png"]
    assert second.status["one.png"] == "ok"
    others = [key for key in first.index if key != "one.png"]
    pd.testing.assert_frame_equal(second.loc[others], first.loc[others])
    assert len(second) == len(first)


def test_a_face_that_cannot_be_aligned_is_a_row_and_its_neighbour_keeps_its_name(photos, tmp_path):
    source = {"Group/TWO.png": [(FACE * np.nan).tolist(), RIGHT.tolist(), (FACE + 9000).tolist()]}
    path = tmp_path / "landmarks.json"
    path.write_text(json.dumps(source))
    rows = table(align(photos, path, tmp_path / "out").faces.table).loc["Group/TWO.png"]
    assert rows.status.tolist() == ["failed", "ok", "failed"]  # by size; the broken one last
    assert rows.error_type.fillna("").tolist() == ["FaceError", "", "LandmarksError"]
    assert rows.output_key.tolist()[1] == face_key("Group/TWO.png", 1)
    only = align(photos, path, tmp_path / "out", Alignment(output_size=96, max_faces=2))
    assert table(only.faces.table).loc["Group/TWO.png"].status.tolist() == ["failed", "ok"]


def test_retry_runs_only_the_failed_shard(photos, landmarks, tmp_path, monkeypatch):
    executed, broken = [], [True]
    read_shard = faces_task.read_shard

    def fail_on_the_first(shard):
        executed.append(shard.number)
        if broken[0] and shard.number == 0:
            raise RuntimeError("injected fault")
        return read_shard(shard)

    monkeypatch.setattr(faces_task, "read_shard", fail_on_the_first)
    parameters = {
        "source": FaceSource(landmarks=str(landmarks)), "photos": str(photos), "out": str(tmp_path / "out"),
        "workspace": "", "alignment": Alignment(output_size=96), "execution": Execution(shard_size=2),
    }  # fmt: skip
    first = align_faces(**parameters, return_state=True)
    assert first.is_failed()
    with pytest.raises(ShardsFailedError, match=r"1 of \d align-faces shards failed"):
        first.result()
    broken[0], executed[:] = False, []
    second = press_retry(align_faces, first.state_details.flow_run_id, parameters)
    assert second.is_completed(), second.message
    assert executed == [0, 2]  # that one, then the one with a damaged photograph, which is tried again
    assert second.result().faces.aligned == 6


def test_edited_faces_go_back_and_all_else_stays_byte_for_byte(photos, landmarks, tmp_path):
    aligned = align(photos, landmarks, tmp_path / "out").faces
    edit_all(aligned.faces, tmp_path / "edited")
    result = paste_faces(aligned.table, str(tmp_path / "edited"), str(tmp_path / "pasted"))
    faces, pasted = table(aligned.table), table(result.pasted.table)
    assert pasted.status.to_dict() == {
        "Group/TWO.png": "ok", "one.png": "ok", "nobody.png": "skipped", "damaged.png": "skipped",
        "grey.png": "ok", "clear.png": "ok", "turned.jpg": "ok",
    }  # fmt: skip
    assert pasted.error_type["nobody.png"] == "NoFaceError"
    assert pasted.error_type["damaged.png"] == "ImageDecodeError"  # why it could not be aligned
    assert "face 0 of damaged.png was not aligned" in pasted.error["damaged.png"]
    assert (pasted.faces["one.png"], pasted.faces["Group/TWO.png"]) == (1, 2)
    for key, row in pasted[pasted.status == "ok"].iterrows():
        before = decoded(photos / key)
        with Image.open(Path(result.pasted.photographs) / row.output_key) as file:
            after = np.asarray(file)
        assert after.shape == before.shape
        depth = np.max([inside(quad, before.shape) for quad in faces.loc[[key]].quad], axis=0)
        assert np.array_equal(after[depth <= 0], before[depth <= 0])
        assert (after[depth >= 0.085] == (255, 0, 0)).all()
        assert (depth >= 0.085).sum() > 3000
    again = paste_faces(aligned.table, str(tmp_path / "edited"), str(tmp_path / "pasted"))
    assert again.pasted == result.pasted
    assert again.steps[0].computed == 0


def test_an_unedited_face_leaves_the_photograph_as_it_was(photos, landmarks, tmp_path):
    aligned = align(photos, landmarks, tmp_path / "out").faces
    result = paste_faces(aligned.table, aligned.faces, str(tmp_path / "pasted"))
    for key, row in table(result.pasted.table).query("status == 'ok'").iterrows():
        error = decoded(Path(result.pasted.photographs) / row.output_key) - decoded(photos / key).astype(
            float
        )
        assert 10 * np.log10(255**2 / (error**2).mean()) > 36, key


def test_a_missing_face_is_named_and_pasted_when_it_has_come(photos, landmarks, tmp_path):
    aligned = align(photos, landmarks, tmp_path / "out").faces
    edited = tmp_path / "edited"
    edit_all(aligned.faces, edited)
    second = edited / output_key(face_key("Group/TWO.png", 1), suffix=".png")
    kept = second.read_bytes()
    second.unlink()
    first = paste_faces(aligned.table, str(edited), str(tmp_path / "pasted"))
    row = table(first.pasted.table).loc["Group/TWO.png"]
    assert (row.status, row.error_type) == ("failed", "MissingFaceError")
    assert "face 1 of Group/TWO.png is not at" in row.error
    assert table(first.pasted.table).status["one.png"] == "ok"
    second.write_bytes(kept)
    then = paste_faces(aligned.table, str(edited), str(tmp_path / "pasted"))
    assert table(then.pasted.table).status["Group/TWO.png"] == "ok"
    edit_all(aligned.faces, edited, colour="blue")  # another version of every edit
    last = paste_faces(aligned.table, str(edited), str(tmp_path / "pasted"))
    assert last.steps[0].computed == last.steps[0].shards
    one = Path(last.pasted.photographs) / table(last.pasted.table).output_key["one.png"]
    assert decoded(one)[100, 100].tolist() == [0, 0, 255]


def test_a_small_face_in_the_background_is_left_as_it_is(photos, landmarks, tmp_path):
    aligned = align(photos, landmarks, tmp_path / "out", Alignment(output_size=96, min_size=60)).faces
    faces = table(aligned.table).loc["Group/TWO.png"]  # of 90 and 54 pixels
    assert faces.status.tolist() == ["ok", "skipped"]
    assert faces.error_type.tolist()[1] == "SmallFaceError"
    assert "54 pixels wide, smaller than 60" in faces.error.tolist()[1]
    assert (aligned.aligned, aligned.without, aligned.skipped) == (5, 1, 1)
    edit_all(aligned.faces, tmp_path / "edited")
    pasted = table(paste_faces(aligned.table, str(tmp_path / "edited"), str(tmp_path / "p")).pasted.table)
    assert (pasted.status["Group/TWO.png"], pasted.faces["Group/TWO.png"]) == ("ok", 1)
    large = align(photos, landmarks, tmp_path / "out", Alignment(output_size=96, min_size=500)).faces
    nothing = table(paste_faces(large.table, str(tmp_path / "edited"), str(tmp_path / "p")).pasted.table)
    assert (nothing.status["one.png"], nothing.error_type["one.png"]) == ("skipped", "SmallFaceError")


def test_a_damaged_edit_is_the_row_of_its_photograph(photos, landmarks, tmp_path):
    aligned = align(photos, landmarks, tmp_path / "out").faces
    edit_all(aligned.faces, tmp_path / "edited")
    (tmp_path / "edited" / "one.png.face0.png").write_bytes(b"no image")
    rows = table(paste_faces(aligned.table, str(tmp_path / "edited"), str(tmp_path / "p")).pasted.table)
    assert rows.error_type["one.png"] == "ImageDecodeError"
    assert rows.status["grey.png"] == "ok"


def test_a_photograph_that_has_changed_is_not_written(photos, landmarks, tmp_path):
    aligned = align(photos, landmarks, tmp_path / "out").faces
    (photos / "one.png").write_bytes(photograph(77))
    rows = table(paste_faces(aligned.table, aligned.faces, str(tmp_path / "pasted")).pasted.table)
    assert rows.error_type["one.png"] == "ArtifactConflictError"
    assert "has changed since its faces were found" in rows.error["one.png"]
    assert not list((tmp_path / "pasted").rglob("one.png*"))


def test_photographs_that_have_moved_are_found_and_colours_keep_their_profile(landmarks, tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.png").write_bytes(photograph(0, icc_profile=profile))
    aligned = align(tmp_path / "a", landmarks, tmp_path / "out").faces
    shutil.move(tmp_path / "a", tmp_path / "b")
    result = paste_faces(aligned.table, aligned.faces, str(tmp_path / "pasted"), str(tmp_path / "b"))
    assert result.pasted.pasted == 1
    name = table(result.pasted.table).output_key["one.png"]
    with Image.open(Path(result.pasted.photographs) / name) as file:
        assert file.info["icc_profile"] == profile


def test_a_face_goes_back_in_the_numbers_of_its_photograph_s_colours(landmarks, tmp_path):
    photos, edited = tmp_path / "photos", tmp_path / "edited"
    photos.mkdir()
    (photos / "one.png").write_bytes(photograph(0, icc_profile=DISPLAY_P3))
    aligned = align(photos, landmarks, tmp_path / "out").faces
    edit_all(aligned.faces, edited)  # red of sRGB, as networks draw it
    result = paste_faces(aligned.table, str(edited), str(tmp_path / "pasted")).pasted
    with Image.open(Path(result.photographs) / table(result.table).output_key["one.png"]) as file:
        assert file.info["icc_profile"] == DISPLAY_P3
        pasted = np.asarray(file, np.int16)
    assert np.abs(pasted[100, 100] - (234, 51, 35)).max() <= 3  # what that red is in Display P3
    assert np.array_equal(pasted[:40], np.asarray(portrait(0, (280, 200)))[:40])


def test_the_wrong_places_are_refused_at_once(photos, landmarks, tmp_path):
    aligned = align(photos, landmarks, tmp_path / "out").faces
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingObjectError, match="none of the 6 faces"):
        paste_faces(aligned.table, str(tmp_path / "empty"), str(tmp_path / "pasted"))
    with pytest.raises(SettingsError, match="lies inside the photographs"):
        paste_faces(aligned.table, aligned.faces, str(photos / "pasted"))
    with pytest.raises(SettingsError, match="lies inside the photographs"):
        align(photos, landmarks, photos / "faces")
    index = next((tmp_path / "out" / "workspace" / "index").rglob("*.parquet"))
    with pytest.raises(SettingsError, match="is a table of image-index, not of faces"):
        paste_faces(str(index), aligned.faces, str(tmp_path / "pasted"))
    with pytest.raises(ValueError, match="one of them"):
        FaceSource()
    with pytest.raises(ValueError, match="one of them"):
        FaceSource(detector="a", landmarks="b")


def plan_alignment(run: Run, photos: Path, source: FaceSource):
    """Return plan and shard, as a run has them before it aligns anything."""
    planned = faces_task.plan(run, str(photos), source, faces_task.identify_source.fn(run, source), ALIGNMENT)
    (shard,) = images.index_images.fn(run, locate(str(photos), DataSet()), 1000).shards
    return planned, shard


def test_landmarks_replaced_before_their_shard_are_refused_until_they_are_back(photos, landmarks, tmp_path):
    run = Run(workspace=str(tmp_path / "workspace"), out=str(tmp_path / "out"))
    planned, shard = plan_alignment(run, photos, FaceSource(landmarks=str(landmarks)))
    old = landmarks.read_bytes()
    landmarks.write_text(json.dumps({"one.png": (ONE + 5).tolist()}))
    new = hashlib.sha256(landmarks.read_bytes()).hexdigest()
    read_landmarks.cache_clear()  # as in the process of a Retry
    message = (
        rf"landmarks.json has changed .* it is {new[:16]}, results are named after {planned.source_hash[:16]}"
    )
    with pytest.raises(ChangedInputError, match=message):
        faces_task.align_shard.fn(run, planned, shard)
    assert not planned.log(shard).attempts()
    assert not (tmp_path / "out").exists()
    landmarks.write_bytes(old)
    assert faces_task.align_shard.fn(run, planned, shard).failed == 1  # the damaged photograph
    again, _ = plan_alignment(run, photos, FaceSource(landmarks=str(landmarks)))
    assert again.recipe == planned.recipe


def test_a_detector_replaced_before_its_shard_is_refused_and_a_new_run_takes_it(
    photos, tmp_path, monkeypatch
):
    monkeypatch.setattr(models, "_loaded", {})
    weights = tmp_path / "detector.safetensors"
    shutil.copy(data.FACE_DETECTOR, weights)
    source = FaceSource(detector=str(weights))
    run = Run(workspace=str(tmp_path / "workspace"), out=str(tmp_path / "out"))
    planned, shard = plan_alignment(run, photos, source)
    with safe_open(data.FACE_DETECTOR, "numpy") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    name = sorted(tensors)[0]
    save_file(tensors | {name: tensors[name] + 1}, weights, metadata)
    models._loaded.clear()  # as in the process of a Retry
    with pytest.raises(ChangedInputError, match=rf"results are named after {planned.source_hash[:16]}"):
        faces_task.align_shard.fn(run, planned, shard)
    assert not planned.log(shard).attempts()
    anew, _ = plan_alignment(run, photos, source)
    assert anew.source_hash == hashlib.sha256(weights.read_bytes()).hexdigest() != planned.source_hash
    assert anew.folder != planned.folder


def test_a_table_of_faces_replaced_before_its_shard_is_refused(photos, landmarks, tmp_path):
    aligned = align(photos, landmarks, tmp_path / "out").faces
    run = Run(workspace=str(tmp_path / "workspace"), out=str(tmp_path / "pasted"))
    found = pasting_task.identify_faces.fn(aligned.table, "")
    edited = EditedFaces(prefix=aligned.faces)
    (shard,) = pasting_task.index_edited.fn(run, found, edited, 1000).shards
    planned = pasting_task.plan(run, found, edited, Pasting())
    other = align(photos, landmarks, tmp_path / "out", Alignment(output_size=64)).faces
    shutil.copy(other.table, aligned.table)
    faces_task.read_faces.cache_clear()  # as in the process of a Retry
    with pytest.raises(ChangedInputError, match=rf"results are named after {found.digest[:16]}; put the old"):
        pasting_task.paste_shard.fn(planned, shard)
    assert not planned.log(shard).attempts()
    assert not (tmp_path / "pasted").exists()


FACES = [("a.png", ONE), ("b.png", LEFT), ("b.png", RIGHT)]
FORMS = {
    "l.json": lambda: json.dumps({"a.png": ONE.tolist(), "b.png": [LEFT.tolist(), RIGHT.tolist()]}).encode(),
    "l.csv": lambda: _csv(FACES),
    "l.parquet": lambda: _parquet([(key, face.ravel()) for key, face in FACES]),
    "nested.parquet": lambda: _parquet(FACES),
}


def _csv(rows) -> bytes:
    header = ["image_key", *(f"{axis}{point}" for point in range(68) for axis in "xy")]
    lines = [[key, *map(str, points.ravel()), *[""] * (136 - points.size)] for key, points in rows]
    return "\n".join(",".join(line) for line in [header, *lines]).encode()


def _parquet(rows) -> bytes:
    buffer = io.BytesIO()
    columns = {"image_key": [key for key, _ in rows], "landmarks": [points.tolist() for _, points in rows]}
    columns["image_key"].append("nobody.png")
    columns["landmarks"].append(None)
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("name", FORMS)
def test_landmarks_are_read_from_every_form(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(FORMS[name]())
    faces = read_landmarks(str(path), hashlib.sha256(path.read_bytes()).hexdigest())
    assert sorted(faces) == ["a.png", "b.png"]
    assert [len(faces["a.png"]), len(faces["b.png"])] == [1, 2]
    assert np.allclose(faces["b.png"][1].landmarks, RIGHT)
    assert faces["a.png"][0].score == 1.0


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("l.txt", b"", SettingsError, "no table of landmarks by its name"),
        ("l.json", b"[1, 2]", SettingsError, "must map image keys to landmarks, it holds a list"),
        ("l.json", b"{", SettingsError, "no readable JSON"),
        ("l.json", b'{"a.png": [["x", 1]]}', SettingsError, r"face 0 \(a.png\): these are no landmarks"),
        ("l.csv", b"image_key,x0\na.png,1", SettingsError, "they must be image_key, x0, y0"),
        ("l.csv", b"key,x0,y0\na.png,1,2", SettingsError, "they must be image_key, x0, y0"),
        ("l.csv", b"image_key,x0,y0\na.png,1,two", SettingsError, r"line 2 \(a.png\)"),
        ("l.csv", b"image_key,x0,y0\n,1,2", SettingsError, "the image key is ''"),
        ("l.parquet", b"PAR1", DamagedArtifactError, "no readable Parquet"),
    ],
)
def test_a_table_of_another_form_stops_the_run(name, content, error, message, photos, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(error, match=message):
        align(photos, path, tmp_path / "out")
    assert not (tmp_path / "out" / "batches").exists()


def test_the_chain_on_s3_reads_as_one_and_writes_as_another(photos, landmarks, s3_identities, monkeypatch):
    (photos.parent / "admin.json").write_text(json.dumps({"s3://": {"profile": "admin"}}))
    with monkeypatch.context() as as_admin:
        as_admin.setenv("STYLECLIP_STORAGE_OPTIONS", str(photos.parent / "admin.json"))
        for path in photos.rglob("*.*"):
            key = path.relative_to(photos)
            write_bytes_atomic(f"s3://photographs/faces/{key}", path.read_bytes())
    remote = align("s3://photographs/faces", landmarks, "s3://results/faces").faces
    local = align(photos, landmarks, photos.parent / "out").faces
    assert (remote.aligned, remote.without, remote.failed) == (local.aligned, local.without, local.failed)
    for name in ("one.png.face0.png", face_key("Group/TWO.png", 1)):
        assert read_bytes(f"{remote.faces}/{name}") == (Path(local.faces) / name).read_bytes()
    mine = paste_faces(remote.table, remote.faces, "s3://results/pasted").pasted
    theirs = paste_faces(local.table, local.faces, str(photos.parent / "pasted")).pasted
    assert mine.pasted == theirs.pasted == 5
    # a photograph's version differs, as its edited faces have other etags there
    (name,) = [item.key for item in list_objects(mine.photographs) if item.key.startswith("one.png~")]
    (other,) = Path(theirs.photographs).glob("one.png~*.png")
    assert read_bytes(f"{mine.photographs}/{name}") == other.read_bytes()


def test_the_command_line_says_where_faces_and_photographs_are(environment, photos, landmarks, tmp_path):
    out, pasted = tmp_path / "out", tmp_path / "pasted"
    options = ["--photos", photos, "--landmarks", landmarks, "--out", out, "--size", "64"]
    result = command_line.styleclip(environment, "align", *options)
    assert result.returncode == 0, result.stderr
    faces, folder = (line.split()[-1] for line in result.stdout.strip().splitlines())
    assert "6 faces in 7 photographs, 1 photographs without a face, 0 faces too small, 1 failed" in _one_line(
        result.stderr
    )
    assert len(list(Path(folder).rglob("*.png"))) == 6
    back = command_line.styleclip(environment, "paste", "--faces", faces, "--edited", folder, "--out", pasted)
    assert back.returncode == 0, back.stderr
    assert len(list(Path(back.stdout.split()[-1]).rglob("*.png"))) == 5
    assert "5 photographs, 2 skipped" in _one_line(back.stderr)
    both = command_line.styleclip(environment, "align", *options, "--detector", "weights.safetensors")
    assert both.returncode == 2
    assert "error: settings: give the weights of a detector or a table" in _one_line(both.stderr)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def test_no_two_faces_share_a_name():
    keys = ["a", "a.png", "A.png", "a.png.face0.png", "a/b.png", "../a.png", "a.png.face1"]
    names = {face_key(key, index) for key in keys for index in range(12)}
    assert len({name.lower() for name in names}) == len(keys) * 12
    assert not any(name.startswith(("/", "..")) for name in names)


def test_the_detector_finds_edit_puts_back(network_files, tmp_path):
    """The whole way of a real photograph: detect, align, invert and edit, paste."""
    photos = tmp_path / "photos"
    photos.mkdir()
    shutil.copy(ASTRONAUT, photos / "astronaut.jpg")
    (photos / "wall.png").write_bytes(encoded(Image.new("RGB", (200, 200), "grey")))
    source = FaceSource(detector=str(data.FACE_DETECTOR))
    aligned = align_faces(source, str(photos), str(tmp_path / "out")).faces
    assert (aligned.aligned, aligned.without, aligned.failed) == (1, 1, 0)
    row = table(aligned.table).loc["astronaut.jpg"]
    eyes = np.reshape(row.landmarks, (5, 2))[:2]
    assert np.abs(eyes - [[204.7, 101.0], [247.2, 103.1]]).max() < 0.5
    assert row.score > 0.999
    edited = edit_images(
        Models(**network_files), aligned.faces, str(tmp_path / "edits"),
        [Edit(name="hat", target="hat", beta=0.0, templates="none")], "",
        Sampling(statistics=20, codes=2), Relevance(samples=2, channels_per_shard=8), Inversion(steps=1),
    )  # fmt: skip
    assert edited.report.failed == 0
    (folder,) = (tmp_path / "edits" / "images").iterdir()
    result = paste_faces(aligned.table, str(folder), str(tmp_path / "pasted")).pasted
    assert (result.pasted, result.skipped, result.failed) == (1, 1, 0)
    before = decoded(ASTRONAUT)
    (path,) = Path(result.photographs).rglob("*.png")
    depth = inside(FaceQuad.from_list(row.quad).corners, before.shape)
    assert np.array_equal(decoded(path)[depth <= 0], before[depth <= 0])
    assert not np.array_equal(decoded(path)[depth > 0.1], before[depth > 0.1])
    assert table(aligned.table).error_type["wall.png"] == "NoFaceError"
