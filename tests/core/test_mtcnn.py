"""The face detector on a real photograph, against facenet-pytorch, and by what must not matter.

``PUBLISHED`` is what facenet-pytorch 2.6.0 (keep_all, min_face_size 20) finds in the same pixels.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from styleclip.data.world.face_detector import join_facenet_weights
from styleclip_core.errors import CheckpointError
from styleclip_core.faces import align_face
from styleclip_core.files.checkpoint import read_state, write_state
from styleclip_core.models.mtcnn import DetectionSettings, Mtcnn, load_face_detector

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "data" / "weights" / "face_detector.safetensors"
LARGE = [
    [205.1042, 100.5405],
    [247.3997, 103.3255],
    [225.2106, 128.9083],
    [202.8458, 139.2452],
    [245.3755, 142.0882],
]
SMALL = [
    [656.3800, 367.9679],
    [684.7922, 369.8450],
    [670.2485, 386.9653],
    [655.0339, 393.5762],
    [683.6684, 394.6938],
]
PUBLISHED = [LARGE, SMALL]


@pytest.fixture(scope="module")
def detector() -> Mtcnn:
    return load_face_detector(WEIGHTS)


@pytest.fixture(scope="module")
def astronaut() -> Image.Image:
    with Image.open(ROOT / "tests" / "data" / "astronaut.jpg") as image:
        return image.convert("RGB")


@pytest.fixture(scope="module")
def two_faces(astronaut) -> Image.Image:
    canvas = Image.new("RGB", (760, 512), (90, 120, 90))
    canvas.paste(astronaut, (0, 0))
    canvas.paste(astronaut.crop((120, 0, 330, 210)).resize((140, 140), Image.Resampling.BICUBIC), (600, 300))
    return canvas


def test_landmarks_are_those_of_the_published_implementation(detector, two_faces):
    found = detector.detect(two_faces)
    assert [face.form for face in found] == ["5", "5"]  # the large one first
    for face, published in zip(found, PUBLISHED, strict=True):
        assert np.abs(face.landmarks - published).max() < 0.05
        assert face.score > 0.999


def test_the_aligned_face_shows_the_face(detector, astronaut):
    (face,) = detector.detect(astronaut)
    aligned = align_face(astronaut, face.landmarks, output_size=256)
    # FFHQ puts the eyes at 0.48 of the height, and the mouth at about 0.7; found again where it must be
    (again,) = detector.detect(aligned.image)
    eyes, mouth = again.landmarks[:2].mean(axis=0), again.landmarks[3:].mean(axis=0)
    assert eyes == pytest.approx([128, 116], abs=10)
    assert mouth == pytest.approx([128, 180], abs=12)
    assert abs(again.landmarks[0, 1] - again.landmarks[1, 1]) < 5  # upright


def test_size_and_place_of_the_photograph_do_not_matter(detector, astronaut):
    (face,) = detector.detect(astronaut)
    (larger,) = detector.detect(astronaut.resize((1536, 1536), Image.Resampling.BICUBIC))
    assert np.abs(((larger.landmarks + 0.5) / 3 - 0.5) - face.landmarks).max() < 2.5
    moved = Image.new("RGB", (700, 600))
    moved.paste(astronaut, (150, 70))
    (shifted,) = detector.detect(moved)
    assert np.abs(shifted.landmarks - (150, 70) - face.landmarks).max() < 2.5


def test_a_face_over_the_edge_is_no_fault(detector, astronaut):
    half = astronaut.crop((190, 80, 512, 512))
    for face in detector.detect(half):
        assert np.isfinite(face.landmarks).all()


@pytest.mark.parametrize("size", [(16, 16), (20, 600), (1, 1), (300, 200)])
def test_where_nobody_is_nobody_is_found(detector, size):
    assert detector.detect(Image.new("RGB", size, (120, 130, 140))) == []
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    assert detector.detect(Image.fromarray(noise)) == []


def test_settings_decide_what_counts(detector, astronaut):
    unreachable = load_face_detector(WEIGHTS, settings=DetectionSettings(min_score=1.0))
    assert unreachable.detect(astronaut) == []
    only_large = load_face_detector(WEIGHTS, settings=DetectionSettings(min_side=300))
    assert only_large.detect(astronaut) == []
    with pytest.raises(ValueError, match="min_score"):
        DetectionSettings(min_score=2)
    with pytest.raises(ValueError, match="min_side"):
        DetectionSettings(min_side=4)
    with pytest.raises(ValueError, match="must be RGB, got L"):
        detector.detect(Image.new("L", (64, 64)))


def test_other_weights_are_refused_by_name(tmp_path):
    state, metadata = read_state(WEIGHTS)
    write_state(tmp_path / "other.safetensors", state, {"format": "styleclip-encoder-1"})
    with pytest.raises(CheckpointError, match="is no face detector of this project"):
        load_face_detector(tmp_path / "other.safetensors")
    state["onet.extra"] = state.pop("onet.dense5.weight")
    write_state(tmp_path / "renamed.safetensors", state, metadata)
    with pytest.raises(CheckpointError, match=r"missing onet\.dense5\.weight; unexpected onet\.extra"):
        load_face_detector(tmp_path / "renamed.safetensors")


def test_weights_of_the_wheel_convert_to_the_same_detector(tmp_path, detector):
    for part in ("pnet", "rnet", "onet"):
        torch.save(getattr(detector, part).state_dict(), tmp_path / f"{part}.pt")
    join_facenet_weights(tmp_path, tmp_path / "joined.safetensors")
    assert load_face_detector(tmp_path / "joined.safetensors").fingerprint == detector.fingerprint
    (tmp_path / "onet.pt").write_bytes((tmp_path / "rnet.pt").read_bytes())
    with pytest.raises(CheckpointError, match="face detector"):
        join_facenet_weights(tmp_path, tmp_path / "wrong.safetensors")
