"""What is overwritten between listing and reading is never stored as the version that was listed."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import pytest

from styleclip.flows.align_faces import align_faces
from styleclip.flows.invert_images import invert_images
from styleclip.flows.paste_faces import paste_faces
from styleclip.flows.score_images import score_images
from styleclip.tasks.evaluation import image_scores
from styleclip.tasks.evaluation.labels import LabelPrompt
from styleclip.tasks.photographs import faces, inversion, pasting
from styleclip.tasks.photographs.images import ImageShard, read_shard
from styleclip.tasks.settings import Alignment, Execution, FaceSource, Inversion, Models
from styleclip.tasks.storage import join, list_objects, read_bytes, version, write_bytes_atomic
from styleclip_core.images import decode_image
from tests.pipeline.test_faces import ONE, photograph

pytestmark = pytest.mark.usefixtures("prefect_server")
KEYS = ["a.png", "b.png", "c.png"]
ONCE = Execution(shard_size=100, device="cpu")


@dataclass(frozen=True)
class Place:
    """A prefix for photographs and one for results, whose table of landmarks knows a face of each."""

    photos: str
    out: str
    landmarks: str


@pytest.fixture(params=["local", "s3"])
def place(request, tmp_path, monkeypatch) -> Place:
    root = str(tmp_path)
    if request.param == "s3":
        request.getfixturevalue("s3_identities")
        options = tmp_path / "options.json"  # one who may write the photographs, too
        options.write_text(json.dumps({"s3://": {"profile": "admin"}}))
        monkeypatch.setenv("STYLECLIP_STORAGE_OPTIONS", str(options))
        name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)
        root = f"s3://results/changed/{name}"
    landmarks = tmp_path / "landmarks.json"
    landmarks.write_text(json.dumps(dict.fromkeys(KEYS, ONE.tolist())))
    for number, key in enumerate(KEYS):
        write_bytes_atomic(join(root, "photos", key), photograph(number))
    return Place(join(root, "photos"), join(root, "out"), str(landmarks))


def rows(uri: str) -> pd.DataFrame:
    return pd.read_parquet(io.BytesIO(read_bytes(uri))).set_index("image_key")


def align(place: Place, _networks: dict[str, str]) -> pd.DataFrame:
    source = FaceSource(landmarks=place.landmarks)
    aligned = align_faces(source, place.photos, place.out, "", Alignment(output_size=32), ONCE)
    return rows(aligned.faces.table)


def invert(place: Place, networks: dict[str, str]) -> pd.DataFrame:
    result = invert_images(Models(**networks), place.photos, place.out, Inversion(steps=1), ONCE)
    found = [item.key for item in list_objects(result.latents, (".parquet",))]
    return pd.concat([rows(join(result.latents, key)) for key in found])


def score(place: Place, networks: dict[str, str]) -> pd.DataFrame:
    prompts = [LabelPrompt(prompt="a smile", negative="a face")]
    scored = score_images(place.photos, prompts, place.out, networks["clip"], execution=ONCE)
    return rows(scored.scores.scores)


STEPS = {"align": (align, faces), "invert": (invert, inversion), "score": (score, image_scores)}


def overwrite_once(uri: str, content: bytes) -> Callable[[ImageShard], list[tuple[str, str]]]:
    """Return a ``read_shard`` whose first call comes just before somebody overwrites an object."""
    waiting = [content]

    def read_and_lose(shard: ImageShard) -> list[tuple[str, str]]:
        listed = read_shard(shard)
        while waiting:
            write_bytes_atomic(uri, waiting.pop())
        return listed

    return read_and_lose


@pytest.mark.parametrize("step", STEPS)
def test_a_photograph_overwritten_after_it_was_listed_is_a_row_and_a_new_run_takes_it(
    step, place, network_files, monkeypatch
):
    run, module = STEPS[step]
    uri = join(place.photos, "b.png")
    listed = version(uri)
    monkeypatch.setattr(module, "read_shard", overwrite_once(uri, photograph(7, size=(300, 200))))
    first = run(place, network_files)
    assert first.status.to_dict() == {"a.png": "ok", "b.png": "failed", "c.png": "ok"}
    assert first.error_type["b.png"] == "ChangedObjectError"
    assert "b.png has changed since it was listed; a new run takes the new version" in first.error["b.png"]
    assert first.etag["b.png"] == listed
    second = run(place, network_files).query("status == 'ok'")
    assert sorted(second.index.unique()) == KEYS
    assert second.etag["b.png"] == version(uri) != listed


def test_an_edited_face_overwritten_after_it_was_listed_is_a_row_and_a_new_run_takes_it(place, monkeypatch):
    source = FaceSource(landmarks=place.landmarks)
    aligned = align_faces(source, place.photos, place.out, "", Alignment(output_size=32), ONCE).faces
    face = join(aligned.faces, "b.png.face0.png")
    other = photograph(7, size=(32, 32))
    monkeypatch.setattr(pasting, "read_shard", overwrite_once(face, other))
    target = f"{place.out}-pasted"
    first = rows(paste_faces(aligned.table, aligned.faces, target, execution=ONCE).pasted.table)
    assert first.status.to_dict() == {"a.png": "ok", "b.png": "failed", "c.png": "ok"}
    assert first.error_type["b.png"] == "ChangedObjectError"
    second = paste_faces(aligned.table, aligned.faces, target, execution=ONCE).pasted
    assert second.pasted == 3
    pasted = decode_image(read_bytes(join(second.photographs, rows(second.table).output_key["b.png"])))
    assert pasted.getpixel((100, 110)) != decode_image(photograph(1)).getpixel((100, 110))
