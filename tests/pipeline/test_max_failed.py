"""When failed items fail a run: all of them, or more than are allowed; what is written stays, Retry mends."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from styleclip.flows.align_faces import align_faces
from styleclip.flows.edit_images import edit_images
from styleclip.flows.evaluate import evaluate_edits
from styleclip.flows.invert_images import invert_images
from styleclip.flows.paste_faces import paste_faces
from styleclip.flows.score_images import score_images
from styleclip.tasks.evaluation.attributes import AttributePrompts
from styleclip.tasks.evaluation.labels import LabelPrompt
from styleclip.tasks.running.progress import ItemsFailedError
from styleclip.tasks.settings import Alignment, Execution, FaceSource, Inversion, Judges, Models
from styleclip.tasks.settings.edits import Edit
from tests.pipeline.test_command_line import called as called  # a fixture
from tests.pipeline.test_faces import ONE, photograph
from tests.pipeline.test_retry import press_retry

pytestmark = pytest.mark.usefixtures("prefect_server")
EDITS = [Edit(name="smile", neutral="a face", target="a smiling face", relevance="instant", alpha=3.0)]
SMALL = {"instant": {"codes": 4}, "sampling": {"codes": 4, "statistics": 8}, "inversion": Inversion(steps=0)}
BROKEN = b"this is no image"
HAT = LabelPrompt(prompt="a hat")


def folder_of(place: Path, good: int, broken: int) -> Path:
    """Write photographs and files that are none, and return their folder."""
    place.mkdir(parents=True)
    for number in range(good + broken):
        (place / f"{number}.png").write_bytes(photograph(number) if number < good else BROKEN)
    return place


def allowing(share: float) -> Execution:
    return Execution(device="cpu", max_failed=share)


def test_an_edit_of_which_everything_failed_fails_when_its_manifest_and_page_are_written(
    network_files, tmp_path
):
    photos = folder_of(tmp_path / "photos", 0, 3)
    with pytest.raises(ItemsFailedError) as told:
        edit_images(Models(**network_files), str(photos), str(tmp_path / "out"), EDITS, **SMALL)
    (manifest,) = (tmp_path / "out" / "batches").glob("*/manifest.parquet")
    assert manifest.with_name("index.html").is_file()
    assert set(pd.read_parquet(manifest).status) == {"skipped"}
    assert f"3 of 3 edits failed: 3 ImageDecodeError; each is listed with its error in {manifest}" in str(
        told.value
    )


def test_an_edit_with_one_good_image_completes_unless_fewer_failures_are_allowed(network_files, tmp_path):
    photos = folder_of(tmp_path / "photos", 1, 3)
    given = (Models(**network_files), str(photos), str(tmp_path / "out"), EDITS)
    assert edit_images(*given, **SMALL).report.failed == 3
    assert edit_images(*given, **SMALL, execution=allowing(0.75)).report.failed == 3
    with pytest.raises(
        ItemsFailedError, match=r"3 of 4 edits failed, and max_failed is 0\.7: 3 ImageDecodeError"
    ):
        edit_images(*given, **SMALL, execution=allowing(0.7))


def test_retry_of_a_run_that_failed_for_its_items_tries_them_again_and_completes(network_files, tmp_path):
    photos = folder_of(tmp_path / "photos", 0, 2)
    parameters = {
        "models": Models(**network_files), "photos": str(photos), "workspace": str(tmp_path / "workspace"),
        "inversion": Inversion(steps=0),
    }  # fmt: skip
    first = invert_images(**parameters, return_state=True)
    assert first.is_failed()
    assert "2 of 2 images failed" in first.message

    # what was in the way of them has gone: the same files are readable now
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "styleclip.tasks.photographs.reading.read_version", lambda uri, _etag: photograph(len(uri))
        )
        second = press_retry(invert_images, first.state_details.flow_run_id, parameters)
    assert second.is_completed(), second.message
    assert second.result().steps[0].failed == 0


@pytest.mark.parametrize("flow", ["score", "align", "paste", "evaluate"])
def test_every_flow_with_items_counts_failures_and_not_what_is_left_out(flow, network_files, tmp_path):
    """Each is run over one good item and two failed ones: allowed half of them it fails, by default not."""
    run = {"score": scored, "align": aligned, "paste": pasted, "evaluate": evaluated}[flow]
    assert run(network_files, tmp_path / "by default", Execution(device="cpu"))
    with pytest.raises(ItemsFailedError, match=r"2 of 3 .* failed, and max_failed is 0\.5: 2 "):
        run(network_files, tmp_path / "strict", allowing(0.5))


def scored(networks: dict[str, str], place: Path, execution: Execution):
    photos = folder_of(place / "photos", 1, 2)
    return score_images(str(photos), [HAT], str(place / "out"), networks["clip"], execution=execution)


def aligned(_networks: dict[str, str], place: Path, execution: Execution):
    photos = folder_of(place / "photos", 1, 2)
    landmarks = place / "landmarks.json"
    landmarks.write_text(json.dumps({f"{number}.png": ONE.tolist() for number in range(3)}))
    source, cut = FaceSource(landmarks=str(landmarks)), Alignment(output_size=32)
    return align_faces(source, str(photos), str(place / "out"), "", cut, execution)


def pasted(_networks: dict[str, str], place: Path, execution: Execution):
    photos = folder_of(place / "photos", 3, 0)
    landmarks = place / "landmarks.json"
    landmarks.write_text(json.dumps({f"{number}.png": ONE.tolist() for number in range(3)}))
    source, cut = FaceSource(landmarks=str(landmarks)), Alignment(output_size=32)
    found = align_faces(source, str(photos), str(place / "faces"), "", cut).faces
    for face in sorted(Path(found.faces).rglob("*.png"))[1:]:
        face.write_bytes(BROKEN)
    return paste_faces(found.table, found.faces, str(place / "out"), execution=execution)


def evaluated(networks: dict[str, str], place: Path, execution: Execution):
    photos = folder_of(place / "photos", 3, 1)  # one fails before, and is none of the evaluation's
    report = edit_images(Models(**networks), str(photos), str(place / "out"), EDITS, **SMALL).report
    for image in sorted((place / "out" / "images").rglob("*.png"))[1:]:
        image.write_bytes(BROKEN)
    attributes = (AttributePrompts(name="hat", positive="with a hat", negative="without a hat"),)
    return evaluate_edits(report.manifest, attributes, Judges(clip=networks["clip"]), execution=execution)


@pytest.mark.parametrize(
    ("options", "status"), [([], 0), (["--max-failed", "0.5"], 1), (["--max-failed", "2"], 2)]
)
def test_the_command_line_says_so_and_ends_with_1(called, network_files, tmp_path, options, status):
    photos = folder_of(tmp_path / "photos", 1, 2)
    networks = [f"--{name}={network_files[name]}" for name in ("generator", "encoder")]
    where = ["--photos", photos, "--workspace", tmp_path / "workspace", "--steps", 0]
    ended, printed, told = called("invert", *where, *networks, *options, "--json")
    said = json.loads(printed.splitlines()[-1])
    assert (ended, said["status"]) == (status, {0: "done", 1: "failed", 2: "refused"}[status])
    if status == 1:
        assert "2 of 3 images failed, and max_failed is 0.5" in said["error"]
        assert "start it again: the failed ones are tried again" in told
