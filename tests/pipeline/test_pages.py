"""The page of a batch, without a browser: its data, its thumbnails, its files and its links."""

import base64
import html.parser
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from benchmarks.batches import draw, make_batch
from styleclip.flows.report_batch import report_batch
from styleclip.tasks.artifacts import (
    DamagedArtifactError,
    Provenance,
    read_provenance,
    read_table,
    write_table,
)
from styleclip.tasks.artifacts.outcomes import OK
from styleclip.tasks.photographs import reading
from styleclip.tasks.reports.page import charts, thumbnails
from styleclip.tasks.reports.page import page as pages
from styleclip.tasks.reports.page.batch import SCORES, read_batch
from styleclip.tasks.reports.page.edits import sweeps
from styleclip.tasks.reports.page.evaluations import add_evaluations, find_evaluations
from styleclip.tasks.reports.page.links import below, parent, public_url, relative_link, safe_name
from styleclip.tasks.reports.page.page import ALONE, LEAF, build_page, script_json
from styleclip.tasks.reports.page.thumbnails import leaves, plan_page, thumbnail_chunk
from styleclip.tasks.running.run import Run
from styleclip.tasks.settings import SettingsError
from styleclip.tasks.settings.edits import Edit
from styleclip.tasks.storage import delete_objects, output_key, read_bytes, write_bytes_atomic

HOSTILE = [
    "<script>document.title='owned'</script>.png", 'a "quoted" & <b>.png', "über/\u202ertl 日本語#?%.png",
    "'; alert(1); '.jpg", "</script><img src=x onerror=alert(1)>.png", "UPPER/../x.png",
]  # fmt: skip
KEYS = [f"faces/{number:03d}.png" for number in range(30)] + HOSTILE
BROKEN = ["faces/007.png", HOSTILE[0]]
EDITS = [
    Edit(name="grey-hair", target="face with grey hair", alpha=(1, 2, 4), beta=(0.1, 0.2)),
    Edit(name="hat", neutral="$x^2$", target="<i>hat</i>", alpha=2, top_k=5),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_batch(str(tmp_path_factory.mktemp("batch")), KEYS, EDITS, size=32, failed=BROKEN)


@pytest.fixture(scope="module")
def plan(made):
    planned = plan_page.fn(Run(workspace=made.workspace), made.manifest)
    results = [thumbnail_chunk.fn(planned.source, chunk) for chunk in planned.chunks]
    assert sum(result.size for result in results) < ALONE
    return planned


def thumbnail_all(made):
    planned = plan_page.fn(Run(workspace=made.workspace), made.manifest)
    return [thumbnail_chunk.fn(planned.source, chunk) for chunk in planned.chunks]


def test_a_batch_has_every_row_of_its_manifest(made):
    batch = read_batch(made.manifest)
    rows = read_table(made.manifest).to_pylist()
    assert batch.keys == sorted(KEYS)
    assert [edit.summary for edit in batch.edits[:2]] == ["alpha 1, beta 0.1", "alpha 2, beta 0.1"]
    assert batch.edits[6].summary == "alpha 2, top 5"
    assert batch.done() == sum(row["status"] == OK for row in rows) == 7 * (len(KEYS) - 2)
    for place, row in enumerate(rows):
        edit, image = place // len(KEYS), batch.keys.index(row["image_key"])
        assert (batch.status[edit, image] == 0) == (row["status"] == OK)
        if row["status"] == OK:
            assert batch.values["directional"][edit, image] == np.float32(row["directional"])
            gain = row["clip_after"] - row["clip_before"]
            assert batch.values["clip_gain"][edit, image] == pytest.approx(gain, abs=1e-6)
            assert f"{batch.folders[edit]}/{output_key(row['image_key'], suffix='.png')}" == row["output_key"]
    assert np.isnan(batch.values["lpips"]).all()
    assert [score.name for score in batch.scores] == ["directional", "clip_gain", "identity"]
    assert {(each.image_key, each.edits) for each in batch.problems} == {(key, 7) for key in BROKEN}
    assert batch.problem_counts == {"ImageDecodeError": 14}


def test_rows_may_come_image_by_image_too(made, tmp_path):
    batch, table = read_batch(made.manifest), read_table(made.manifest)
    place = np.arange(len(table)).reshape(len(batch.edits), -1)
    turned = str(tmp_path / "batches" / "x" / "manifest.parquet")
    write_table(turned, table.take(place.T.reshape(-1)), read_provenance(made.manifest))
    other = read_batch(turned)
    assert other.keys == batch.keys
    assert np.array_equal(other.status, batch.status)
    for name, values in batch.values.items():
        assert np.array_equal(other.values[name], values, equal_nan=True)


def test_a_manifest_without_variants_is_read_as_one_with_them(made, tmp_path):
    batch, about = read_batch(made.manifest), read_provenance(made.manifest)
    edits = [
        {name: value for name, value in record.items() if name != "variant"}
        for record in about.parameters["edits"]
    ]
    old = str(tmp_path / "batches" / "x" / "manifest.parquet")
    write_table(
        old,
        read_table(made.manifest).drop_columns("variant"),
        replace(about, parameters={**about.parameters, "edits": edits}),
    )
    other = read_batch(old)
    assert other.variants == batch.variants == [[made.variant(edit)] for edit in range(7)]
    assert other.folders == batch.folders == [made.folder(edit) for edit in range(7)]
    assert np.array_equal(other.status, batch.status)
    for name, values in batch.values.items():
        assert np.array_equal(other.values[name], values, equal_nan=True)


def test_a_mean_has_the_error_of_a_mean(made):
    batch = read_batch(made.manifest)
    values = batch.values["identity"][2]
    values = values[np.isfinite(values)].astype(float)
    expected = (values.mean(), values.std(ddof=1) / len(values) ** 0.5)
    assert batch.mean(2, "identity") == pytest.approx(expected)
    assert np.isnan(batch.mean(2, "lpips")).all()


def test_tables_that_are_no_manifest_are_refused(made, tmp_path):
    chunk = plan_page.fn(Run(workspace=made.workspace), made.manifest).chunks[0]
    with pytest.raises(DamagedArtifactError, match="of kind 'page-chunk', not the manifest of a batch"):
        read_batch(chunk.uri)
    twice = str(tmp_path / "twice.parquet")
    table = read_table(made.manifest)
    write_table(twice, pa.concat_tables([table, table]), read_provenance(made.manifest))
    with pytest.raises(DamagedArtifactError, match="more rows of the image"):
        read_batch(twice)


def test_a_sweep_is_a_table_of_strengths_and_thresholds(made):
    (sweep,) = sweeps(read_batch(made.manifest).edits)
    assert (sweep.name, sweep.axis, sweep.by) == ("grey-hair", "alpha", "beta")
    assert (sweep.strengths, sweep.thresholds) == ([1, 2, 4], [0.1, 0.2])
    assert sweep.cells == [[0, 1, 2], [3, 4, 5]]


def test_thumbnails_are_made_once_and_those_that_failed_again(tmp_path, monkeypatch):
    made = make_batch(str(tmp_path), KEYS[:8], EDITS[1:], size=48, failed=BROKEN[:1])
    lost = Path(made.out) / made.folder(0) / KEYS[3]
    whole = lost.read_bytes()
    lost.write_bytes(whole[:100])
    (first,) = thumbnail_all(made)
    assert (first.rows, first.failed, first.reused) == (3 * 7, 1, False)

    read, seen = reading.read_bytes, []
    monkeypatch.setattr(reading, "read_bytes", lambda uri: seen.append(uri) or read(uri))
    (second,) = thumbnail_all(made)
    assert (second.reused, second.failed) == (True, 1)
    assert seen[1:] == [str(lost)]  # before it, one image for the shape of the others
    lost.write_bytes(whole)
    seen.clear()
    (third,) = thumbnail_all(made)
    assert (third.reused, third.failed) == (False, 0)
    assert seen[1:] == [str(lost)]


def test_another_image_costs_its_own_chunk_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(thumbnails, "_CHUNK", 8)
    keys = [f"{number:02d}.png" for number in range(60)]
    make = lambda some: make_batch(str(tmp_path), some, EDITS[1:], size=16, copies=2)  # noqa: E731
    assert len(thumbnail_all(make(keys))) > 3
    results = thumbnail_all(make([*keys, "30b.png"]))
    assert [result.reused for result in results].count(False) == 1


def test_a_photograph_of_another_version_gets_another_thumbnail(tmp_path):
    made = make_batch(str(tmp_path), KEYS[:3], EDITS[1:], size=32)
    thumbnail_all(made)
    chunk = plan_page.fn(Run(workspace=made.workspace), made.manifest).chunks[0]
    column = plan_page.fn(Run(workspace=made.workspace), made.manifest).source.photographs
    known = {row["image_key"]: row["source"] for row in column.log(chunk.digest).latest()}
    assert len(set(known.values())) == 3
    assert thumbnails._is_done({"status": OK, "source": "1"}, "1")
    assert not thumbnails._is_done({"status": OK, "source": "1"}, "2")


def test_leaves_hold_thumbnails_in_the_order_of_the_keys(made, plan):
    found: dict[int, list[bytes]] = {}
    for column, number, webps in leaves(plan, LEAF):
        assert len(webps) == LEAF or number == len(KEYS) // LEAF
        assert len(found.setdefault(column, [])) == number * LEAF
        found[column] += webps
    assert set(found) == set(range(2 + 7))
    batch = read_batch(made.manifest)
    for column, webps in found.items():
        for key, webp in zip(batch.keys, webps, strict=True):
            assert bool(webp) == (key not in BROKEN), (column, key)
    # a thumbnail is the image it stands for: nearer to its own pixels than to the unedited ones
    image = batch.keys.index("faces/012.png")
    place = sorted(KEYS).index("faces/012.png")
    own, before = (pixels(draw(place, hair, 1.0, 32)) for hair in (hair_of("grey-hair"), -1))
    shown = pixels(found[2 + 2][image])  # alpha 4 is the whole colour
    assert np.abs(shown - own).mean() < 6 < np.abs(shown - before).mean()


def hair_of(name):
    from zlib import crc32

    from benchmarks.batches import _HAIR

    return crc32(name.encode()) % len(_HAIR)


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.float64)


def test_a_thumbnail_is_small_keeps_proportions_and_never_grows():
    wide = Image.new("RGB", (640, 320), "red")
    size = lambda data: Image.open(io.BytesIO(data)).size  # noqa: E731
    assert size(thumbnails.encode_thumbnail(wide)) == (160, 80)
    assert size(thumbnails.encode_thumbnail(wide, (64, 64))) == (64, 64)
    assert size(thumbnails.encode_thumbnail(Image.new("RGB", (20, 30)))) == (20, 30)


class Parsed(html.parser.HTMLParser):
    """Elements of a page, and the data blocks in it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.blocks: dict[str, object] = {}
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open = dict(attrs).get("id", "") if tag == "script" else ""

    def handle_data(self, data):
        if self._open.startswith("data-"):
            self.blocks[self._open.removeprefix("data-")] = json.loads(data)
            self._open = ""


@pytest.fixture(scope="module")
def alone(made, plan) -> str:
    uri, beside = build_page(plan, 0, [])
    assert beside == 0
    return Path(uri).read_text()


def test_a_small_page_is_one_file_with_everything_in_it(made, alone):
    parsed = Parsed(alone)
    assert parsed.blocks["meta"]["base"] == ""
    assert parsed.blocks["keys"]["keys"] == sorted(KEYS)
    rows = parsed.blocks["edit-3"]
    batch = read_batch(made.manifest)
    found = np.frombuffer(base64.b64decode(rows["scores"]["identity"]), "<f4")
    assert np.array_equal(found, batch.values["identity"][3], equal_nan=True)
    assert np.array_equal(np.frombuffer(base64.b64decode(rows["status"]), np.uint8), batch.status[3])
    assert {f"thumbs-{column}-{leaf}" for column in range(9) for leaf in range(3)} <= set(parsed.blocks)
    named = [item for _, attributes in parsed.tags for item in attributes.items()]
    sources = [value for name, value in named if name in ("src", "href")]
    assert [each for each in sources if not each.startswith(("#", "./", "data:,"))] == []
    assert not re.search(r"https?://|url\((?!#)|@import", alone)


def test_hostile_texts_are_texts(alone):
    parsed = Parsed(alone)
    scripts = [attributes for tag, attributes in parsed.tags if tag == "script"]
    assert sum(each.get("type") != "application/json" for each in scripts) == 1
    assert not [tag for tag, _ in parsed.tags if tag in ("i", "img", "iframe", "object")]
    assert not [name for _, attributes in parsed.tags for name in attributes if name.startswith("on")]
    assert "&lt;i&gt;hat&lt;/i&gt;" in alone
    policy = next(a["content"] for t, a in parsed.tags if t == "meta" and "http-equiv" in a)
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]


def test_a_large_page_has_its_data_beside_it(made, plan):
    uri, beside = build_page(plan, ALONE + 1, [])
    page = Parsed(Path(uri).read_text())
    assert set(page.blocks) == {"meta"}
    folder = Path(uri).parent / page.blocks["meta"]["base"]
    files = sorted(folder.glob("*.js"))
    assert len(files) == beside == 9 * 3 + 1 + 7
    name, value = re.fullmatch(r"styleclip\((\"[^\"]+\"),(.*)\)\n", (folder / "keys.js").read_text()).groups()
    assert json.loads(name) == "keys"
    assert json.loads(value)["keys"] == sorted(KEYS)
    again, _ = build_page(plan, ALONE + 1, [])
    assert sorted(folder.glob("*.js")) == files
    assert again == uri


@pytest.mark.parametrize("where", ["local", "s3"])
def test_a_page_that_is_made_again_writes_no_data_that_is_there(where, request, tmp_path, monkeypatch):
    place = str(tmp_path)
    if where == "s3":
        request.getfixturevalue("s3_identities")
        place = "s3://results/pages-again"
    batch = make_batch(place, KEYS[:14], EDITS[1:], size=32)
    planned = plan_page.fn(Run(workspace=batch.workspace), batch.manifest)
    for chunk in planned.chunks:
        thumbnail_chunk.fn(planned.source, chunk)
    writes: list[str] = []

    def counted(uri: str, data: bytes) -> None:
        writes.append(uri)
        write_bytes_atomic(uri, data)

    monkeypatch.setattr(pages, "write_bytes_atomic", counted)
    uri, beside = build_page(planned, ALONE + 1, [])
    assert len(writes) == beside + 1 > 6
    scripts, writes[:] = sorted(set(writes) - {uri}), []
    assert build_page(planned, ALONE + 1, []) == (uri, beside)
    assert writes == [uri]

    # one that is gone, one of the same size and other content, and one that is cut off are written again
    content = read_bytes(scripts[1])
    delete_objects(scripts[0].rpartition("/")[0], [scripts[0].rpartition("/")[2]])
    write_bytes_atomic(scripts[1], content[:-1] + b" ")
    write_bytes_atomic(scripts[2], b"half")
    writes.clear()
    build_page(planned, ALONE + 1, [])
    assert sorted(writes) == sorted([*scripts[:3], uri])
    assert read_bytes(scripts[1]) == content


@given(st.dictionaries(st.text(max_size=8), st.lists(st.text(max_size=20), max_size=3), max_size=3))
def test_data_in_a_script_neither_ends_it_nor_changes(data):
    text = script_json(data)
    assert not set(text) & set("<>&")
    assert json.loads(text) == data


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 3))
def test_no_key_leads_out_of_its_prefix(key, up):
    link = relative_link(key, up)
    base = "https://bucket.example/a/b/c/index.html"
    if not link:
        assert not safe_name(key)
        return
    resolved = urlsplit(urljoin(base, link))
    prefix = urlsplit(urljoin(base, "../" * up or ".")).path
    assert (resolved.scheme, resolved.netloc) == ("https", "bucket.example")
    assert (resolved.query, resolved.fragment) == ("", "")
    assert resolved.path.startswith(prefix)
    assert unquote(resolved.path[len(prefix) :]) == key


@pytest.mark.parametrize("key", ["", "..", "a/../b", "/etc/passwd", "a//b", "a/./b", "..\\..\\x", "a\0b"])
def test_keys_that_would_leave_have_no_link(key):
    assert relative_link(key, up=2) == ""


def test_a_schema_in_a_key_is_no_schema():
    assert relative_link("javascript:alert(1)") == "./javascript%3Aalert%281%29"


def test_a_page_is_found_where_it_is_served(monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    assert public_url("s3://results/a b/i.html") == "https://s3.amazonaws.com/results/a%20b/i.html"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000/")
    assert public_url("s3://results/i.html") == "http://127.0.0.1:9000/results/i.html"
    assert public_url(str(tmp_path / "ü.html")).startswith("file:///")
    monkeypatch.setenv(
        "STYLECLIP_LINKS", "s3://results/=https://r.example s3://results/x/=https://x.example/y/"
    )
    assert public_url("s3://results/i.html") == "https://r.example/i.html"
    assert public_url("s3://results/x/i.html") == "https://x.example/y/i.html"
    monkeypatch.setenv("STYLECLIP_LINKS", "s3://results")
    with pytest.raises(SettingsError, match="write PREFIX=https://PLACE"):
        public_url("s3://results/i.html")


def test_prefixes_end_where_folders_end():
    assert below("s3://b/out/images/x", "s3://b/out") == "images/x"
    assert below("s3://b/output/x", "s3://b/out") == ""
    assert parent("s3://b/out/batches/1/manifest.parquet", 3) == "s3://b/out"


def test_charts_say_what_they_show_in_the_page_s_colours(made):
    batch = read_batch(made.manifest)
    batch.edits[6] = batch.edits[6].__class__(**{**batch.edits[6].__dict__, "name": "$x^2$ <b>"})
    svg = charts.distributions(batch, SCORES[0], range(7))
    assert svg == charts.distributions(batch, SCORES[0], range(7))
    assert svg.count("grey-hair") == 6
    assert "$x^2$ &lt;b&gt;" in svg
    assert "var(--accent)" in svg
    assert not re.search(r"#0a0a|http|<script|<b>|<!--| id=\"figure", svg)
    assert charts.distributions(batch, SCORES[3], range(7)) == ""
    (sweep,) = sweeps(batch.edits)
    trade = charts.trade_off(batch, SCORES[0], SCORES[2], sweep)
    assert all(text in trade for text in ("beta 0.1", "beta 0.2", "1 − Identity", "Directional"))


@pytest.mark.usefixtures("prefect_server")
def test_the_flow_writes_the_page_and_prefect_links_to_it(made):
    page = report_batch(made.manifest)
    assert page == f"{parent(made.manifest)}/index.html"
    assert "edits done</title>" in Path(page).read_text()
    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=["report-batch-page"]))
    with get_client(sync_client=True) as client:
        links = client.read_artifacts(artifact_filter=wanted)
    # the server is shared: pages of other tests have their links there too
    (link,) = [each for each in links if each.description == page]
    assert f"({Path(page).as_uri()})" in link.data
    again = report_batch(made.manifest, workspace=made.workspace)
    assert again == page


def test_a_choice_is_drawn_with_its_reason(made, plan, tmp_path):
    uri = str(tmp_path / "choice.parquet")
    table = pa.table({
        "alpha": [1.0, 2.0, 3.0, 2.5], "beta": [0.1, 0.1, 0.2, 0.1], "effect": [0.3, 0.5, 0.6, 0.7],
        "movement": [0.1, 0.2, 0.25, 0.22],
    })  # fmt: skip
    provenance = read_provenance(made.manifest).__dict__ | {
        "kind": "choice",
        "parameters": {"target": "grey <hair>", "effect": 0.68, "reason": "least movement at 0.7"},
    }
    write_table(uri, table, Provenance(**provenance))
    page = Path(build_page(plan, 0, [], [uri])[0]).read_text()
    assert "grey &lt;hair&gt;: alpha 2.5, beta 0.1 chosen" in page
    assert "least movement at 0.7" in page
    assert "Movement elsewhere" in page
    with pytest.raises(DamagedArtifactError, match="has no column"):
        build_page(plan, 0, [], [made.manifest])


def evaluation(made, change):
    rows = []
    for row in read_table(made.manifest).to_pylist():
        empty = ("agreement", "target_after", "psnr", "ssim", "lpips", "target_move", "others_move")
        scores = dict.fromkeys(empty)
        rows.append({
            "image_key": row["image_key"], "variant": row["variant"], **scores,
            "directional": row["directional"],
            "identity": None if row["identity"] is None else change(row["identity"]),
        })  # fmt: skip
    return pa.Table.from_pylist(rows, schema=pa.schema([
        ("image_key", pa.string()), ("variant", pa.string()),
        *[(name, pa.float32()) for name in list(rows[0])[2:]],
    ]))  # fmt: skip


def test_an_evaluation_adds_the_scores_that_are_new(made, tmp_path):
    uri = f"{parent(made.manifest)}/evaluations/0123456789abcdef/evaluation.parquet"
    write_table(uri, evaluation(made, lambda value: value / 2), read_provenance(made.manifest))
    assert find_evaluations(made.manifest) == [uri]
    batch = read_batch(made.manifest)
    add_evaluations(batch, [uri])
    titles = [score.title for score in batch.scores]
    assert titles == ["Directional", "CLIP gain", "Identity", "Identity (evaluation)"]
    halved = batch.values["evaluation_1_identity"]
    assert np.allclose(halved, batch.values["identity"] / 2, equal_nan=True)

    elsewhere = str(tmp_path / "evaluation.parquet")
    table = evaluation(made, float).slice(0, 5).set_column(0, "image_key", pa.array(["elsewhere"] * 5))
    write_table(elsewhere, table, read_provenance(made.manifest))
    assert find_evaluations(elsewhere) == []
    with pytest.raises(DamagedArtifactError, match="no row of the batch"):
        add_evaluations(read_batch(made.manifest), [elsewhere])


def test_objects_of_s3_say_what_they_are(s3):
    import s3fs

    write_bytes_atomic("s3://pages/typed/index.html", b"<!doctype html>")
    write_bytes_atomic("s3://pages/typed/rows.parquet", b"PAR1")
    fs = s3fs.S3FileSystem(profile="admin")
    assert fs.info("pages/typed/index.html")["ContentType"] == "text/html; charset=utf-8"
