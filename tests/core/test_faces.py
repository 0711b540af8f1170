"""Faces: pixels of the published alignment, laws of its quad, and the way back into the photograph.

``golden/align_*.npz`` holds what e4e's ``utils/alignment.py`` makes of ``align_*.png`` and 68 points.
"""

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from styleclip_core import faces
from styleclip_core.errors import FaceError, LandmarksError, NoFaceError, StyleCLIPError
from styleclip_core.faces import Face, FaceQuad, align_face, paste_faces, quad_from_landmarks

GOLDEN = Path(__file__).parents[1] / "golden"
# eyes 40 px apart, mouth 50 px below: half a side is max(2 * 40, 1.8 * 50) = 90 px
FRONTAL = np.array([[80.0, 100], [120, 100], [100, 125], [85, 150], [115, 150]])
finite = st.floats(-50, 50)


def smooth(seed: int, size=(240, 220), cells=8) -> Image.Image:
    """A photograph with no more detail than two samplings in a row keep."""
    pixels = np.random.default_rng(seed).integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else np.inf


def weight_inside(quad: FaceQuad, size: tuple[int, int]) -> np.ndarray:
    """Distance of each pixel from the quad's edge as a fraction of its side; negative outside."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    corner, down, _, right = quad.corners
    axes = np.stack([right - corner, down - corner], axis=1)
    u, v = np.moveaxis((np.stack([x, y], -1) - corner) @ np.linalg.inv(axes).T, -1, 0)
    return np.minimum(np.minimum(u, 1 - u), np.minimum(v, 1 - v))


@pytest.mark.parametrize("name", ["centre", "edge", "large"])
def test_pixels_equal_those_of_the_published_code(parity, name):
    golden = np.load(GOLDEN / f"align_{name}.npz")
    with Image.open(GOLDEN / f"align_{name}.png") as file:
        photograph = file.convert("RGB")
    aligned = align_face(photograph, golden["landmarks"], output_size=256, transform_size=256)
    difference = np.abs(np.asarray(aligned.image).astype(int) - golden["aligned"])
    assert (difference.max(axis=-1) <= 1).mean() >= 0.999
    parity(
        f"FFHQ alignment, {name}: grey levels",
        torch.from_numpy(difference),
        np.zeros(1),
        bar=1.0,
        extent=255.0,
    )
    assert aligned.padded == (name == "edge")


def test_quad_of_a_face_by_hand():
    # c = (100, 100) + 0.1 * (0, 50); the face is upright, so x = (90, 0) and y = (0, 90)
    expected = [[10, 15], [10, 195], [190, 195], [190, 15]]
    assert np.allclose(quad_from_landmarks(FRONTAL).corners, expected)
    assert quad_from_landmarks(FRONTAL).size == pytest.approx(180)


def test_68_points_give_the_quad_of_their_centres_and_corners():
    points = np.random.default_rng(0).uniform(0, 200, (68, 2))
    ring = 8 * np.stack([np.cos(np.arange(6) * np.pi / 3), np.sin(np.arange(6) * np.pi / 3)], axis=1)
    points[36:42], points[42:48] = FRONTAL[0] + ring, FRONTAL[1] + ring
    points[48], points[54] = FRONTAL[3], FRONTAL[4]
    assert np.allclose(quad_from_landmarks(points).corners, quad_from_landmarks(FRONTAL).corners)


@given(
    noise=st.lists(st.tuples(finite, finite), min_size=5, max_size=5),
    angle=st.floats(-3.1, 3.1), scale=st.floats(0.5, 20), shift=st.tuples(finite, finite),
)  # fmt: skip
def test_the_quad_turns_grows_and_moves_with_the_face(noise, angle, scale, shift):
    points = FRONTAL + 0.3 * np.array(noise)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = quad_from_landmarks(points).corners
    moved = quad_from_landmarks(points @ turn.T + shift).corners
    assert np.allclose(moved, corners @ turn.T + shift, rtol=0, atol=1e-6 * scale)


@given(
    angle=st.floats(-3.1, 3.1), scale=st.floats(0.1, 30), place=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    size=st.sampled_from([(16, 20_000), (20_000, 16), (300, 200), (2000, 3000)]),
    output=st.sampled_from([16, 64, 256]),
)  # fmt: skip
def test_no_picture_between_is_larger_than_is_said(angle, scale, place, size, output):
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    landmarks = (FRONTAL - FRONTAL.mean(axis=0)) @ turn.T + np.multiply(place, size)
    made = []

    def padded(image, pad, blur):
        left, top, right, bottom = pad
        made.append((image.width + left + right, image.height + top + bottom))
        return Image.new("RGB", made[-1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faces, "_pad_with_blur", padded)
        with contextlib.suppress(FaceError):  # too large, too small, or outside
            align_face(Image.new("RGB", size), landmarks, output_size=output)
    assert all(width <= 9 * output and height <= 9 * output for width, height in made)


def test_an_upright_square_of_the_same_size_is_a_crop():
    photograph = Image.fromarray(np.random.default_rng(1).integers(0, 256, (260, 260, 3), dtype=np.uint8))
    aligned = align_face(photograph, FRONTAL + 20, output_size=180)
    # corners are centres of pixels: the first pixel of the face lies half a pixel from its corner
    crop = np.asarray(photograph, np.float64)[35:216, 30:211]
    between = (crop[:-1, :-1] + crop[1:, :-1] + crop[:-1, 1:] + crop[1:, 1:]) / 4
    assert np.abs(np.asarray(aligned.image) - between).max() <= 1
    assert not aligned.padded


def test_an_upright_square_on_pixel_edges_is_a_crop_bit_for_bit():
    photograph = Image.fromarray(np.random.default_rng(1).integers(0, 256, (260, 260, 3), dtype=np.uint8))
    aligned = align_face(photograph, FRONTAL + 19.5, output_size=180)
    assert np.array_equal(np.asarray(aligned.image), np.asarray(photograph)[35:215, 30:210])


@given(
    seed=st.integers(0, 99), angle=st.floats(-0.6, 0.6),
    shift=st.tuples(st.floats(-15, 15), st.floats(-15, 15)),
    output=st.sampled_from([128, 180, 256, 512]),
)  # fmt: skip
def test_an_unedited_face_goes_back_where_it_was(seed, angle, shift, output):
    photograph = smooth(seed, size=(300, 290))
    centre = FRONTAL.mean(axis=0)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    landmarks = (FRONTAL - centre) @ turn.T + (150, 150) + shift
    aligned = align_face(photograph, landmarks, output_size=output)
    pasted = np.asarray(paste_faces(photograph, [(aligned.image, aligned.quad)]))
    inside = weight_inside(aligned.quad, photograph.size)
    before = np.asarray(photograph)
    assert np.array_equal(pasted[inside <= 0], before[inside <= 0])
    if not aligned.padded:
        assert psnr(pasted[inside > 0.1], before[inside > 0.1]) > 45
    else:  # near the photograph's edge the recipe blurs
        assert psnr(pasted[inside > 0.1], before[inside > 0.1]) > 24


@pytest.mark.parametrize("shrink", [2, 3, 5])
def test_a_shrunk_face_goes_back_without_a_shift(shrink):
    # the recipe moves what it shrinks by (shrink - 1) / 2 pixels; the quad must know
    photograph = smooth(3, size=(1200, 1100), cells=14)
    landmarks = (FRONTAL - FRONTAL.mean(axis=0)) * 4 + (600, 550)  # 720 px
    aligned = align_face(photograph, landmarks, output_size=720 // (2 * shrink))
    nominal = quad_from_landmarks(landmarks)
    moved = (aligned.quad.corners - nominal.corners).mean(axis=0)
    assert moved == pytest.approx([(shrink - 1) / 2] * 2, abs=0.5)
    inside = weight_inside(aligned.quad, photograph.size) > 0.1
    before = np.asarray(photograph)

    def error(quad: FaceQuad) -> float:
        return psnr(np.asarray(paste_faces(photograph, [(aligned.image, quad)]))[inside], before[inside])

    assert error(aligned.quad) > 42
    assert error(nominal) < error(aligned.quad) - 1.5


def test_an_edit_fades_out_before_the_edge():
    photograph = Image.new("RGB", (260, 260), (100, 100, 100))
    quad = quad_from_landmarks(FRONTAL + 20)
    red = Image.new("RGB", (64, 64), (200, 100, 100))
    pasted = np.asarray(paste_faces(photograph, [(red, quad)], feather=0.1))
    inside = weight_inside(quad, photograph.size)
    assert (pasted[inside <= 0] == 100).all()
    assert (pasted[inside >= 0.1, 0] == 200).all()
    steps = np.abs(np.diff(pasted[..., 0].astype(int), axis=1))
    assert steps.max() <= 100 * 1.5 / 18 + 1  # smoothstep is at most 1.5 times as steep as a line of 18 px


def test_a_fine_face_is_antialiased_when_it_shrinks():
    stripes = np.zeros((700, 700, 3), np.uint8)
    stripes[:, ::2] = 255  # far finer than the photograph can show: grey there, not stripes
    quad = quad_from_landmarks(FRONTAL + 20)
    pasted = paste_faces(Image.new("RGB", (260, 260)), [(Image.fromarray(stripes), quad)])
    middle = np.asarray(pasted)[100:140, 100:140]
    assert np.abs(middle.astype(int) - 127).max() <= 4


def test_a_quad_beyond_the_photograph_changes_only_what_is_there():
    photograph = smooth(5, size=(120, 110))
    aligned = align_face(photograph, FRONTAL - (60, 40), output_size=96)
    assert aligned.padded
    pasted = paste_faces(photograph, [(Image.new("RGB", (96, 96), "red"), aligned.quad)])
    inside = weight_inside(aligned.quad, photograph.size)
    assert pasted.size == photograph.size
    assert (np.asarray(pasted)[inside >= 0.1] == (255, 0, 0)).all()
    assert np.array_equal(np.asarray(pasted)[inside <= 0], np.asarray(photograph)[inside <= 0])


def test_neighbours_keep_their_own_edit_in_any_order():
    # two quads of 180 px, 90 px apart: each shows half of the other one's face, unedited
    photograph = Image.new("RGB", (400, 260), (100, 100, 100))
    left, right = quad_from_landmarks(FRONTAL + 20), quad_from_landmarks(FRONTAL + np.array([110, 20]))
    faces = []
    for colour in ("red", "blue"):
        face = Image.new("RGB", (64, 64), (100, 100, 100))
        face.paste(colour, (20, 20, 44, 44))  # the person in the middle, the rest as it was
        faces.append(face)
    both = paste_faces(photograph, [(faces[0], left), (faces[1], right)])
    other_order = paste_faces(photograph, [(faces[1], right), (faces[0], left)])
    assert np.array_equal(np.asarray(both), np.asarray(other_order))
    assert both.getpixel((120, 125))[0] > 200  # 90 px from the edge of its own quad, at that of the other
    assert both.getpixel((210, 125))[2] > 200
    assert paste_faces(photograph, []).tobytes() == photograph.tobytes()
    bright = Image.new("RGB", (64, 64), (200, 200, 200))
    overlapping = np.asarray(paste_faces(photograph, [(bright, left), (bright, right)]))
    assert overlapping.min() >= 100
    assert overlapping.max() <= 201  # where both show, the edits do not add up


def test_a_quad_survives_its_list():
    quad = quad_from_landmarks(FRONTAL)
    assert np.array_equal(FaceQuad.from_list(quad.to_list()).corners, quad.corners)


@pytest.mark.parametrize(
    ("landmarks", "message"),
    [
        (np.full((68, 2), 40.0), "span no face: eyes 0 and mouth 0 pixels apart"),
        (np.where(np.arange(10).reshape(5, 2) == 4, np.nan, FRONTAL), r"landmark 2 is \[nan, 125"),
        (FRONTAL * np.inf, r"landmark 0 is \[inf"),
        (FRONTAL / 1000, "not fractions of the photograph"),
        (FRONTAL * 1e7, "a landmark lies at 1.5e.09"),
        (FRONTAL[:4], r"have the shape \[4, 2\]; give 68 points"),
        (np.zeros((2, 68)), r"have the shape \[2, 68\]"),
        ([["a", "b"]] * 5, "must be numbers"),
        ([[1, 2], [3]], "must be numbers"),
        (None, r"must be numbers|have the shape"),
    ],
)
def test_landmarks_that_are_no_face_say_why(landmarks, message):
    with pytest.raises(LandmarksError, match=message):
        quad_from_landmarks(landmarks)


@pytest.mark.parametrize(
    ("landmarks", "message"),
    [
        (FRONTAL + 1000, "outside the photograph of 100 x 90 pixels"),
        (FRONTAL - 1000, "outside the photograph of 100 x 90 pixels"),
        (FRONTAL * 50, "photograph 100 x 90|outside the photograph"),
        ((FRONTAL - 100) * 50 + 50, "9000 pixels wide, the photograph 100 x 90"),
    ],
)
def test_landmarks_of_another_photograph_are_refused(landmarks, message):
    with pytest.raises(FaceError, match=message):
        align_face(smooth(0, size=(100, 90)), landmarks)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.0] * 8, "0 pixels wide"),
        ([1.0, 2.0], "eight numbers"),
        ([0, 0, 0, 10, 10, 10, 30, 0], "no parallelogram"),
        ([0, 0, 0, np.nan, 10, 10, 10, 0], "four finite corners"),
    ],
)
def test_broken_quads_are_refused(values, message):
    with pytest.raises(FaceError, match=message):
        FaceQuad.from_list(values)


def test_wrong_arguments_are_value_errors():
    grey, photograph, quad = Image.new("L", (200, 200)), smooth(0), quad_from_landmarks(FRONTAL)
    with pytest.raises(ValueError, match="must be RGB, got L"):
        align_face(grey, FRONTAL)
    with pytest.raises(ValueError, match="must be positive"):
        align_face(photograph, FRONTAL, output_size=0)
    with pytest.raises(ValueError, match="must be RGB, got RGB, L"):
        paste_faces(photograph, [(grey, quad)])
    with pytest.raises(ValueError, match="feather"):
        paste_faces(photograph, [(photograph, quad)], feather=0)


def test_the_form_is_read_off_the_points_and_errors_are_ours():
    assert Face(FRONTAL, 1.0).form == "5"
    assert Face(np.zeros((68, 2)), 1.0).form == "68"
    assert issubclass(NoFaceError, FaceError)
    assert issubclass(FaceError, StyleCLIPError)
