"""The manifest: every documented column with its type, the documented queries, and manifests of before."""

from __future__ import annotations

import json
import re
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from styleclip.flows.evaluate import evaluate_edits
from styleclip.flows.report_batch import report_batch
from styleclip.tasks.artifacts import read_provenance, write_table
from styleclip.tasks.artifacts.outcomes import OK
from styleclip.tasks.editing.schemas import (
    MANIFEST_SCHEMA,
    ROW_SCHEMA,
    SETTINGS_TYPE,
    STEP_TYPE,
    typed_settings,
)
from styleclip.tasks.settings import Execution, Judges, Models, Optimization
from styleclip.tasks.settings.edits import Edit
from styleclip_core.settings.optimization import OptimizationSettings
from tests.pipeline.test_flows import encoded, portrait, run

pytestmark = pytest.mark.usefixtures("prefect_server")
PAGE = Path(__file__).parents[2] / "docs" / "manifest.md"
EDITS = [
    Edit(name="grey", neutral="hair", target="grey hair", alpha=(1, 2), beta=0.0, templates="none"),
    Edit(name="hat", target="face with a hat", alpha=2, top_k=5, include=("b8.*",), templates="none"),
    Edit(
        name="slow", target="smiling face", method="optimization",
        optimization=Optimization(steps=2, l2_weight=0.5),
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def batch(prefect_server, network_files, tmp_path_factory):
    """A batch of some edits, with a photograph that is none, and where it was made."""
    folder = tmp_path_factory.mktemp("manifest")
    photos = folder / "photos"
    photos.mkdir()
    for number in range(5):
        (photos / f"P {number}.PNG").write_bytes(encoded(portrait(number)))
    (photos / "broken.png").write_bytes(b"no image")
    models = Models(**network_files)
    return run(models, photos, folder / "out", EDITS, execution=Execution(shard_size=3)), folder


def block(name: str) -> str:
    found = re.findall(rf"<!-- block: {re.escape(name)} -->\n\n((?:    .*\n|\n)+)", PAGE.read_text())
    assert len(found) == 1
    return "".join(line[4:] for line in found[0].strip("\n").splitlines(keepends=True)) + "\n"


def documented(section: str) -> dict[str, str]:
    """The columns that a section of the page has, and their types."""
    text = PAGE.read_text().partition(f"## {section}\n")[2].partition("\n## ")[0]
    found = {}
    for names, kind in re.findall(r"^\| (`[^|]+`) \| ([^|]+) \|", text, re.MULTILINE):
        found |= dict.fromkeys(re.findall(r"`(\w+)`", names), kind.strip())
    return found


def plain(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"list of {plain(kind.value_type)}"
    return "struct" if pa.types.is_struct(kind) else str(kind)


def test_the_page_has_every_column_with_its_type(batch):
    schema = pq.read_schema(batch[0].report.manifest)
    columns = {field.name: plain(field.type) for field in schema}
    said = documented("Columns")
    assert said.pop("place") == "string"  # of data sets with parts of archives
    assert said == columns
    assert documented("Settings") == {field.name: plain(field.type) for field in SETTINGS_TYPE}
    timings = pq.read_schema(batch[0].report.timings)
    assert documented("Timings") == {field.name: plain(field.type) for field in timings}


@pytest.fixture
def here(batch, monkeypatch):
    monkeypatch.chdir(Path(batch[0].report.folder))
    return pd.read_parquet("manifest.parquet")


def test_the_queries_in_sql_run_and_say_what_is_there(here):
    (failed,) = duckdb.execute(block("failures")).fetchall()
    assert failed[:2] == ("ImageDecodeError", 1)
    best = duckdb.execute(block("best")).df()
    assert len(best) == 5 * 3
    one = here[(here.image_key == "P 0.PNG") & (here.edit == "grey")]
    mine = best[(best.image_key == "P 0.PNG") & (best.edit == "grey")].iloc[0]
    assert mine.alpha == one.loc[one.directional.idxmax()].alpha
    cost = duckdb.execute(block("cost")).df()
    assert set(cost.variant) == set(here.variant)
    assert cost.images.tolist() == [5] * 4
    assert (cost.seconds > 0).all()
    assert cost.megapixels.tolist() == pytest.approx([5 * 16 * 16 / 1e6] * 4)


def test_the_queries_in_python_run(here, capsys):
    names: dict = {}
    exec(compile(block("wide"), "wide", "exec"), names)
    assert names["wide"].shape == (5, 4)
    exec(compile(block("layers"), "layers", "exec"), names)
    found = names["layers"]
    hat = found.filter(pl.col("variant").str.starts_with("hat"))
    assert set(hat["layers"]) <= {"b8.conv0", "b8.conv1"}
    assert set(hat["images"]) == {5}
    assert "count" in capsys.readouterr().out


def test_rows_lead_to_files_latents_and_times(batch, here):
    out = Path(batch[0].report.manifest).parents[2]
    good = here[here.status == OK]
    latents = out / "workspace" / "latents"
    for row in good.itertuples():
        assert (latents / row.inversion_key).read_bytes().startswith(b"\x89PNG")
        assert (
            row.image_key in pd.read_parquet(latents / row.latent).query("status == 'ok'").image_key.tolist()
        )
    bad = here[here.status != OK]
    assert len(bad) == 4
    assert bad[["inversion_key", "latent", "width", "output_key"]].isna().all(axis=None)
    times = pd.read_parquet("timings.parquet")
    assert len(times.merge(here, on=["image_key", "variant"])) == len(good) == len(times)


def test_settings_have_types_and_nothing_is_left_out(here):
    grey, slow = (here[(here.edit == name) & (here.status == OK)].iloc[0] for name in ("grey", "slow"))
    assert grey.settings["templates"] == "none"
    assert grey.settings["alpha_unit"].startswith("standard deviations")
    assert grey.settings["optimization"] is None
    assert slow.settings["optimization"]["l2_weight"] == 0.5
    assert slow.settings["optimization"]["steps"] == 2
    assert slow.steps[0]["settings"]["optimization"]["learning_rate"] == OptimizationSettings().learning_rate
    assert all(settings["others"] is None for settings in here.settings.dropna())


def test_a_setting_that_has_no_field_is_kept():
    said = json.dumps({"alpha": 3, "templates": "none", "later": [1, 2]})
    found = typed_settings(said)
    assert found == {"templates": "none", "optimization": None, "others": '{"later": [1, 2]}'}
    assert pa.array([found], SETTINGS_TYPE)[0].as_py()["others"] == '{"later": [1, 2]}'


def test_manifests_of_before_are_evaluated_and_shown(batch, network_files, tmp_path):
    result, _ = batch
    rows = pq.read_table(result.report.manifest).to_pylist()
    old = pa.schema([field for field in ROW_SCHEMA if field.name not in ("width", "height")])
    made = read_provenance(result.report.manifest)
    folder = Path(result.report.folder).with_name("0123456789abcdef")

    # layers were words, and settings a text
    def words(row: dict) -> dict:
        settings = json.dumps({**(row["settings"] or {}), "alpha": row["alpha"]}) if row["settings"] else None
        return row | {"layers": " ".join(row["layers"] or []) or None, "settings": settings}

    before = [words(row) | {"steps": [words(step) for step in row["steps"] or []] or None} for row in rows]
    write_table(str(folder / "manifest.parquet"), pa.Table.from_pylist(before, old), made)
    judges = Judges(clip=network_files["clip"])
    found = evaluate_edits(str(folder / "manifest.parquet"), judges=judges)
    again = evaluate_edits(result.report.manifest, judges=judges)
    columns = ["image_key", "variant", "clip_after", "directional", "agreement", "status"]
    tables = [pd.read_parquet(each.evaluation.evaluation)[columns] for each in (found, again)]
    pd.testing.assert_frame_equal(*tables)
    page = Path(report_batch(str(folder / "manifest.parquet"))).read_text()
    assert "20 of 24 edits done" in page


def test_the_schema_of_rows_holds_all_of_the_manifest_but_what_the_report_adds():
    added = {"inversion_key", "latent"}
    assert set(MANIFEST_SCHEMA.names) - added == set(ROW_SCHEMA.names)
    assert {field.name for field in STEP_TYPE} == {
        field.name for field in ROW_SCHEMA.field("steps").type.value_type
    }
