"""The flows on small networks: what they write, what they keep, what one bad image does."""

import io
import json
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from styleclip.flows.build_relevance import build_relevance
from styleclip.flows.edit_images import edit_images
from styleclip.tasks.artifacts import read_provenance
from styleclip.tasks.directions.relevance import read_relevance
from styleclip.tasks.photographs import inversion as inversion_task
from styleclip.tasks.photographs import reading
from styleclip.tasks.photographs.images import NoImagesError
from styleclip.tasks.running.progress import ShardsFailedError
from styleclip.tasks.running.run import ModelHashes, Networks, Run
from styleclip.tasks.settings import Execution, Inversion, Models, Relevance, Sampling, SettingsError
from styleclip.tasks.settings.edits import Edit, EditStep
from styleclip.tasks.storage import AccessDeniedError, list_objects, read_bytes, write_bytes_atomic
from styleclip_core import load_clip, load_generator
from styleclip_core.errors import (
    ArtifactConflictError,
    LayoutMismatchError,
    NoRelevantChannelError,
    PromptError,
)
from styleclip_core.images import decode_image, from_uint8
from tests.left import files_of

pytestmark = pytest.mark.usefixtures("prefect_server")
EDITS = [
    Edit(name="grey", neutral="hair", target="grey hair", alpha=(1, 2), beta=0.0, templates="none"),
    Edit(name="hat", target="face with a hat", alpha=2, top_k=5, include=("b8.*",), templates="none"),
]


@pytest.fixture
def models(network_files) -> Models:
    return Models(**network_files)


def portrait(seed: int, size=(20, 20)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def six_portraits(folder: Path) -> Path:
    folder.mkdir()
    for index in range(6):
        (folder / f"p{index}.png").write_bytes(encoded(portrait(index)))
    return folder


@pytest.fixture
def photos(tmp_path) -> Path:
    return six_portraits(tmp_path / "photos")


def run(models, photos, out, edits=EDITS, **changes):
    settings = {
        "sampling": Sampling(statistics=40, codes=3),
        "relevance": Relevance(samples=3, channels_per_shard=4, batch_size=16),
        "inversion": Inversion(steps=3),
        "execution": Execution(shard_size=2),
    }
    return edit_images(models, str(photos), str(out), edits, **{**settings, **changes})


@pytest.fixture(scope="module")
def chain(prefect_server, network_files, tmp_path_factory):
    """The result of one run, for tests that only look at what it left, and where that is."""
    folder = tmp_path_factory.mktemp("chain")
    out = folder / "out"
    return run(Models(**network_files), six_portraits(folder / "photos"), out), out


def manifest_of(result) -> pd.DataFrame:
    return pd.read_parquet(io.BytesIO(read_bytes(result.report.manifest)))


def test_the_chain_writes_what_it_says_and_a_second_run_computes_nothing(models, photos, tmp_path):
    out = tmp_path / "out"
    first = run(models, photos, out)
    assert {step.step for step in first.steps} == {
        "sample-styles", "build-relevance", "invert-images", "edit-images",
    }  # fmt: skip
    assert all(step.computed == step.shards for step in first.steps)
    rows = manifest_of(first)
    assert len(rows) == 6 * 3
    assert set(rows["status"]) == {"ok"}
    for row in rows.itertuples():
        with Image.open(out / row.output_key) as edited:
            assert edited.size == (16, 16)
    before = files_of(out)
    second = run(models, photos, out)
    assert [step.computed for step in second.steps] == [0, 0, 0, 0]
    assert second.report == first.report
    assert files_of(out) == before


def test_scores_and_pixels_in_the_manifest_are_those_of_the_image(models, chain):
    result, out = chain
    generator, clip = load_generator(models.generator), load_clip(models.clip)
    row = manifest_of(result).query("edit == 'grey' and alpha == 2").iloc[0]
    latents = pd.concat(pd.read_parquet(part) for part in Path(result.latents).glob("*.parquet"))
    w_plus = torch.from_numpy(np.stack(latents.set_index("image_key").loc[[row.image_key]].w_plus))
    before = generator.synthesize(generator.styles(w_plus.view(1, generator.num_ws, -1)))
    after = from_uint8(np.asarray(decode_image((out / row.output_key).read_bytes()))[None])
    text = clip.embed_text(["grey hair"])[0]
    assert row.clip_before == pytest.approx((clip.embed_images(before) @ text).item(), abs=1e-5)
    assert row.clip_after == pytest.approx((clip.embed_images(after) @ text).item(), abs=5e-3)
    direction = text - clip.embed_text(["hair"])[0]
    change = clip.embed_images(after) - clip.embed_images(before)
    cosine = torch.nn.functional.cosine_similarity(change, direction[None]).item()
    assert row.directional == pytest.approx(cosine, abs=0.1)
    made = read_provenance(result.report.manifest)
    assert made.parameters["alpha_unit"] == "standard deviations of the most relevant channel"
    assert (made.generator, made.clip) == (generator.fingerprint, clip.fingerprint)


def test_layer_masks_hold_and_report_opens_alone(chain):
    result, _ = chain
    hat = manifest_of(result).query("edit == 'hat'").iloc[0]
    assert set(hat.layers) <= {"b8.conv0", "b8.conv1"}
    assert 1 <= hat.channels <= 5
    page = read_bytes(result.report.page).decode()
    assert "18 of 18 edits done" in page
    assert all(f'id="data-thumbs-{column}-0">["' in page for column in range(2 + 3))
    assert "http://" not in page
    with Image.open(result.report.contact_sheet) as sheet:
        assert sheet.width > 128 * 5


def test_a_new_image_costs_its_own_shard_alone(models, photos, tmp_path):
    first = run(models, photos, tmp_path / "out")
    (photos / "p2b.png").write_bytes(encoded(portrait(77)))
    second = run(models, photos, tmp_path / "out")
    invert = second.steps[2]
    assert first.steps[2].shards >= 2
    assert 1 <= invert.computed < invert.shards
    assert second.steps[1].computed == 0
    assert len(manifest_of(second)) == 7 * 3


def _declared_bomb() -> bytes:
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def _palette() -> bytes:
    image = portrait(3).convert("P")
    return encoded(image, transparency=0)


def _rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(portrait(4, (30, 20)), "JPEG", exif=exif)


AWKWARD_FILES = {
    "truncated.png": (encoded(Image.effect_noise((64, 64), 60).convert("RGB"))[:900], "ImageDecodeError"),
    "empty.png": (b"", "ImageDecodeError"),
    "text.png": (b"this is a text file", "ImageDecodeError"),
    "sixteen.png": (encoded(Image.fromarray(np.full((20, 20), 40_000, np.uint16))), None),
    "cmyk.jpg": (encoded(portrait(1).convert("CMYK"), "JPEG"), None),
    "palette.png": (_palette(), None),
    "rotated.jpg": (_rotated(), None),
    "onepixel.png": (encoded(Image.new("RGB", (1, 1))), "ImageSizeError"),
    "bomb.png": (_declared_bomb(), "ImageSizeError"),
    "unreadable.png": (encoded(portrait(5)), "AccessDeniedError"),
    "Strange KEY \u00e9.png": (encoded(portrait(6)), None),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_every_bad_image_has_its_outcome_and_the_rest_is_edited(models, photos, tmp_path, monkeypatch):
    for name, (data, _) in AWKWARD_FILES.items():
        (photos / name).write_bytes(data)
    read = reading.read_version

    def refuse(uri: str, etag: str) -> bytes:  # the tests may run as root, whom no file mode stops
        if uri.endswith("unreadable.png"):
            raise AccessDeniedError(f"cannot read {uri}: access denied")
        return read(uri, etag)

    monkeypatch.setattr(reading, "read_version", refuse)
    result = run(models, photos, tmp_path / "out")
    rows = manifest_of(result).query("edit == 'hat'").set_index("image_key")
    assert len(rows) == 6 + len(AWKWARD_FILES)
    for name, (_, error) in AWKWARD_FILES.items():
        expected = ("skipped", error) if error else ("ok", None)
        found = rows.loc[name].where(rows.loc[name].notna(), None)
        assert (found["status"], found["error_type"]) == expected, name
    assert (rows[rows.index.str.startswith("p")].status == "ok").sum() >= 6
    assert result.report.failed == 3 * 6
    page = read_bytes(result.report.page).decode()
    assert "smaller than 16" in page

    # the key becomes readable: a later run does that image alone
    monkeypatch.setattr(reading, "read_version", read)
    calls = []
    monkeypatch.setattr(
        inversion_task, "_invert_batch",
        lambda run, plan, batch, real=inversion_task._invert_batch: (
            calls.append([photo.key for photo in batch]) or real(run, plan, batch)
        ),
    )  # fmt: skip
    again = run(models, photos, tmp_path / "out")
    assert calls == [["unreadable.png"]]
    rows = manifest_of(again).query("edit == 'hat'").set_index("image_key")
    assert rows.loc["unreadable.png", "status"] == "ok"
    assert again.report.failed == 3 * 5


def test_one_failed_shard_fails_the_run_and_the_next_run_does_only_that(
    models, photos, tmp_path, monkeypatch
):
    real, executed = inversion_task._invert, []

    def break_one(run, plan, log, reader, todo):
        executed.append(todo[0][0])
        if len(executed) == 2:
            raise RuntimeError("injected fault")
        return real(run, plan, log, reader, todo)

    monkeypatch.setattr(inversion_task, "_invert", break_one)
    with pytest.raises(ShardsFailedError, match=r"1 of \d+ invert-images shards failed, the others are done"):
        run(models, photos, tmp_path / "out")
    failed = executed[1]
    executed[:] = ["-", "-"]
    result = run(models, photos, tmp_path / "out")
    assert executed[2:] == [failed]
    assert set(manifest_of(result)["status"]) == {"ok"}


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (Edit(target="face", neutral="face"), PromptError, "cannot tell 'face' from 'face'"),
        (
            Edit(target="hat", include=("b512.*",)),
            LayoutMismatchError,
            r"'b512.\*' matches no editable layer",
        ),
        (Edit(target="word " * 100), PromptError, "77 tokens"),
    ],
)
def test_edits_that_cannot_work_stop_the_run_before_any_work(models, photos, tmp_path, edit, error, message):
    with pytest.raises(error, match=message):
        run(models, photos, tmp_path / "out", [edit])
    assert not (tmp_path / "out").exists()


def test_thresholds_that_no_channel_reaches_are_told_together_before_any_image_is_read(
    models, photos, tmp_path
):
    sure = Edit(name="sure", target="face with a hat", top_k=3)
    for others in ([], [Edit(name="open", target="beard", alpha="auto", beta=0.1)]):
        edits = [
            sure, Edit(name="high", target="hat", beta=1, alpha=(1, 2)), *others,
            Edit(name="both", target="grey hair", beta=(0, 1), then=(EditStep(target="beard", beta=0.99),)),
        ]  # fmt: skip
        with pytest.raises(NoRelevantChannelError) as caught:
            run(models, photos, tmp_path / "out", edits)
        told = str(caught.value)
        assert told.startswith("3 cannot work: edit 'high' ('face' to 'hat'): no style channel reaches ")
        assert re.search(r"edit 'both' \('face' to 'grey hair'\): no style channel reaches beta=1: ", told)
        assert re.search(r"edit '(both|beard)' \('face' to 'beard'\): no style channel .*beta=0\.99: ", told)
        largest = r"the largest \|relevance\| is 0\.\d{3}, at b\d+\.conv\d\[\d+\]; give beta <= 0\.\d{3} or"
        assert len(re.findall(largest, told)) == 3
        assert not (tmp_path / "out" / "workspace" / "latents").exists()


def test_places_that_cannot_work_are_refused(models, photos, tmp_path):
    with pytest.raises(SettingsError, match="lies inside the photographs"):
        run(models, photos, photos / "out")
    (tmp_path / "void").mkdir()
    with pytest.raises(NoImagesError, match="no image under"):
        run(models, tmp_path / "void", tmp_path / "out")


def test_a_table_of_other_networks_is_refused(models, tmp_path, network_files):
    result = build_relevance(
        models, str(tmp_path), Sampling(statistics=20, codes=2), Relevance(samples=2, channels_per_shard=8)
    )
    hashes = ModelHashes(generator=load_generator(models.generator).fingerprint, clip="c" * 64)
    mine = Run(models=Networks.of(models), hashes=hashes, workspace="")
    with pytest.raises(
        ArtifactConflictError, match=r"built with CLIP [0-9a-f]{16}, this run uses CLIP c{16}"
    ):
        read_relevance(mine, result.table.relevance)


def test_relevance_table_has_the_columns_of_the_contract(models, tmp_path):
    settings = (Sampling(statistics=20, codes=2), Relevance(samples=2, channels_per_shard=8))
    result = build_relevance(models, str(tmp_path), *settings)
    table = pq.read_table(result.table.relevance)
    assert table.column_names == [
        "layer", "channel", "flat_index", "n", "direction", "consistency", "standard_error",
    ]  # fmt: skip
    assert table.schema.field("direction").type.list_size == 16
    assert table["flat_index"].to_pylist() == list(range(len(table)))
    metadata = json.loads(table.schema.metadata[b"styleclip.provenance"])
    assert metadata["parameters"]["sample_ranges"] == [[0, 2]]
    statistics = pq.read_table(result.table.statistics)
    assert {"layer", "channel", "is_torgb", "mean", "std", "min", "max", "n"} <= set(statistics.column_names)


def test_the_chain_on_s3_never_writes_to_the_input(models, photos, s3_identities, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "none-but-those-of-the-options")
    admin = {"s3://": {"profile": "admin"}}
    admin_file = photos.parent / "admin.json"
    admin_file.write_text(json.dumps(admin))
    with monkeypatch.context() as as_admin:
        as_admin.setenv("STYLECLIP_STORAGE_OPTIONS", str(admin_file))
        for path in photos.iterdir():
            write_bytes_atomic(f"s3://photographs/in/{path.name}", path.read_bytes())
    before = list(list_objects("s3://photographs"))
    result = run(models, "s3://photographs/in", "s3://results/out")
    rows = manifest_of(result)
    assert len(rows) == 18
    assert set(rows["status"]) == {"ok"}
    assert len(read_bytes(f"s3://results/out/{rows.output_key[0]}")) > 100
    assert list(list_objects("s3://photographs")) == before
    again = run(models, "s3://photographs/in", "s3://results/out")
    assert [step.computed for step in again.steps] == [0, 0, 0, 0]

    # the same work in a folder gives the same pictures
    local = run(models, photos, photos.parent / "out")
    theirs = {row.image_key + str(row.alpha) + row.edit: row for row in manifest_of(local).itertuples()}
    for row in rows.itertuples():
        twin = theirs[row.image_key + str(row.alpha) + row.edit]
        mine = read_bytes(f"s3://results/out/{row.output_key}")
        assert mine == (photos.parent / "out" / twin.output_key).read_bytes()
