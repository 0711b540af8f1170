"""A batch becomes a set of pairs that the packages of training read, with the very pictures of the batch."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import duckdb
import pytest
import yaml
from PIL import Image

from styleclip.flows.edit_images import edit_images
from styleclip.flows.evaluate import evaluate_edits
from styleclip.flows.export_pairs import export_pairs
from styleclip.tasks.reports.pairs import NoPairsError
from styleclip.tasks.running.progress import ShardsFailedError
from styleclip.tasks.settings import Comparison, Execution, Inversion, Judges, Models, SettingsError
from styleclip.tasks.settings.edits import Edit
from styleclip.tasks.settings.pairs import Pairing
from styleclip.tasks.storage import join, list_objects, read_bytes
from styleclip_core.errors import ArtifactConflictError
from tests.data_sets import as_frame, write_folder
from tests.pipeline.test_faces import encoded, portrait

pytestmark = pytest.mark.usefixtures("prefect_server")
SMALL = {"instant": {"codes": 4}, "sampling": {"codes": 4, "statistics": 8}}
EDITS = [
    Edit(name=name, neutral="a face", target=target, relevance="instant", templates="none", beta=0.0)
    for name, target in (("smile", "a smiling face"), ("hat", "a face with a hat"))
]


@pytest.fixture(scope="module")
def batch(prefect_server, network_files, tmp_path_factory):
    """A batch of twelve photographs with a caption each, one of them broken, and two edits."""
    root = tmp_path_factory.mktemp("batch")
    images = {f"p{number:02d}.png": encoded(portrait(number, (20, 20))) for number in range(12)}
    images["p03.png"] = images["p03.png"][:60]
    write_folder(root / "in", images, "csv")
    return edit_images(
        Models(**network_files), str(root / "in"), str(root / "out"), EDITS, inversion=Inversion(steps=0),
        execution=Execution(shard_size=4, device="cpu"), **SMALL,
    )  # fmt: skip


def manifest_of(batch):
    return as_frame(read_bytes(batch.report.manifest))


def pixels(content: bytes) -> bytes:
    return Image.open(io.BytesIO(content)).convert("RGB").tobytes()


def test_datasets_reads_the_very_pictures_of_the_batch(batch, tmp_path):
    import datasets

    where = "clip_after > clip_before or edit = 'hat'"
    pairing = Pairing(
        where=where, instruction=("make it {target}", "{edit}!"), validation=0.3, pairs_per_file=5
    )
    result = export_pairs(batch.report.manifest, str(tmp_path / "set"), pairing)
    query = f"SELECT count(*) FROM '{batch.report.manifest}' WHERE status = 'ok' AND ({where})"
    assert result.pairs == duckdb.execute(query).fetchone()[0]
    assert result.considered == 22

    found = datasets.load_dataset(result.folder, cache_dir=str(tmp_path / "cache"))
    assert sum(len(split) for split in found.values()) == result.pairs
    rows = manifest_of(batch).set_index(["image_key", "variant"])
    out = str(Path(batch.report.manifest).parents[2])
    for split in found.values():
        assert split.column_names[:4] == ["input_image", "edit_prompt", "edited_image", "image_key"]
        for pair in split:
            row = rows.loc[(pair["image_key"], pair["variant"])]
            drawn = read_bytes(join(str(Path(batch.latents).parent), row.inversion_key))
            assert pair["input_image"].convert("RGB").tobytes() == pixels(drawn)
            assert pair["edited_image"].convert("RGB").tobytes() == pixels(
                read_bytes(join(out, row.output_key))
            )
            assert pair["edit_prompt"] in (f"make it {row.target}", f"{row.edit}!")
            assert (pair["caption"], pair["directional"]) == (row.caption, pytest.approx(row.directional))

    # no photograph is in both
    train, held = (set(found[split]["image_key"]) for split in ("train", "validation"))
    assert train
    assert held
    assert not train & held

    card = read_bytes(result.card).decode()
    head = yaml.safe_load(card.split("---\n")[1])
    assert [each["split"] for each in head["configs"][0]["data_files"]] == ["train", "validation"]
    for said in (where, "make it {target}", f"{result.pairs:,} pairs", "a smiling face"):
        assert said in card


# webdataset leaves the files open that it has read to their end
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_tar_shards_are_samples_of_webdataset(batch, tmp_path):
    import webdataset

    pairing = Pairing(to="webdataset", validation=0, before="photograph", pairs_per_file=8)
    result = export_pairs(batch.report.manifest, str(tmp_path / "set"), pairing)
    names = sorted(item.key for item in list_objects(result.folder))
    assert names == ["README.md"] + [f"train-{number:05d}-of-00003.tar" for number in range(3)]
    rows = manifest_of(batch).set_index(["image_key", "variant"])
    seen = []
    for name in names[1:]:
        for sample in webdataset.WebDataset(join(result.folder, name), shardshuffle=False):
            said = json.loads(sample["json"])
            row = rows.loc[(said["image_key"], said["variant"])]
            assert hashlib.sha256(sample["input_image.png"]).hexdigest() == row.content_hash
            out = str(Path(batch.report.manifest).parents[2])
            assert sample["edited_image.png"] == read_bytes(join(out, row.output_key))
            assert sample["edit_prompt.txt"].decode() == f"make it {row.target}"
            seen.append(sample["__key__"])
    assert len(seen) == len(set(seen)) == result.pairs == 22


def test_a_rerun_finds_files_and_a_lost_one_comes_back_the_same(batch, tmp_path):
    pairing = Pairing(to="webdataset", pairs_per_file=6)
    first = export_pairs(batch.report.manifest, str(tmp_path / "set"), pairing)
    before = {path.name: path.read_bytes() for path in Path(first.folder).iterdir()}
    again = export_pairs(batch.report.manifest, str(tmp_path / "set"), pairing)
    assert again.steps[0].computed == 0
    lost = next(Path(first.folder).glob("*.tar"))
    lost.unlink()
    assert export_pairs(batch.report.manifest, str(tmp_path / "set"), pairing).steps[0].computed == 1
    assert {path.name: path.read_bytes() for path in Path(first.folder).iterdir()} == before
    with tarfile.open(lost) as tar:
        assert {(member.mtime, member.uid, member.uname) for member in tar} == {(0, 0, "")}


def test_a_condition_may_ask_an_evaluation(batch, network_files, tmp_path):
    judges = Judges(clip=network_files["clip"])
    scored = evaluate_edits(batch.report.manifest, judges=judges, comparison=Comparison(templates="none"))
    table = scored.evaluation.evaluation
    pairing = Pairing(evaluation=table, where="psnr > 0 and evaluation_clip_after is not null")
    result = export_pairs(batch.report.manifest, str(tmp_path / "set"), pairing)
    query = f"SELECT count(*) FROM '{table}' WHERE status = 'ok' AND psnr > 0 AND clip_after IS NOT NULL"
    assert result.pairs == duckdb.execute(query).fetchone()[0] > 0
    with pytest.raises(ArtifactConflictError, match="is no evaluation of"):
        export_pairs(batch.report.manifest, str(tmp_path), Pairing(evaluation=batch.report.manifest))


@pytest.mark.parametrize(
    ("pairing", "error", "said"),
    [
        (Pairing(where="identity >"), SettingsError, "cannot be asked"),
        (Pairing(where="1 in (select 1 from read_text('/etc/hostname'))"), SettingsError, "cannot be asked"),
        (Pairing(where="edit = 'nothing'"), NoPairsError, r"none of the 22 edits"),
        (Pairing(instruction=("make it {colour}",)), SettingsError, r"names 'colour'; there are"),
    ],
)
def test_what_makes_no_set_says_why(pairing, error, said, batch, tmp_path):
    with pytest.raises(error, match=said):
        export_pairs(batch.report.manifest, str(tmp_path / "set"), pairing)


def test_a_picture_that_is_gone_ends_its_file_and_names_it(batch, tmp_path):
    rows = manifest_of(batch).query("status == 'ok'")
    path = Path(batch.report.manifest).parents[2] / rows.output_key.iloc[0]
    content = path.read_bytes()
    path.unlink()
    try:
        with pytest.raises(ShardsFailedError, match=path.name):
            export_pairs(batch.report.manifest, str(tmp_path / "set"), Pairing(pairs_per_file=4))
    finally:
        path.write_bytes(content)
    assert export_pairs(batch.report.manifest, str(tmp_path / "set"), Pairing(pairs_per_file=4)).pairs == 22
