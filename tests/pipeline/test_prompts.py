"""Prompts and channels looked at before and after a run, on small networks."""

import io
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.testing import assert_close

from styleclip.flows.explore_channels import Question, explore_channels
from styleclip.flows.inspect_prompts import inspect_prompts
from styleclip.tasks.evaluation.attributes import AttributePrompts
from styleclip.tasks.inspection.pictures import Strip, draw_strips
from styleclip.tasks.inspection.prompts import (
    BETAS,
    CORRELATIONS_SCHEMA,
    PROMPTS_SCHEMA,
    DiagnosisRef,
    foreign,
    markdown,
    pair_rows,
    warnings,
)
from styleclip.tasks.running.shown import markdown_table
from styleclip.tasks.settings import Models, Optimization, Relevance, Sampling, SettingsError
from styleclip.tasks.settings.edits import Edit
from styleclip.tasks.storage import read_bytes
from styleclip_core import load_clip, load_generator
from styleclip_core.errors import LayoutMismatchError
from styleclip_core.prompts import text_direction
from tests.left import files_of
from tests.pipeline.test_flows import encoded, portrait, run

pytestmark = pytest.mark.usefixtures("prefect_server")
TABLE = {
    "sampling": Sampling(statistics=40, codes=3),
    "relevance": Relevance(samples=3, channels_per_shard=50),
}
EDITS = [
    Edit(name="grey", target="grey hair", alpha=(1, 2), beta=0.07),
    Edit(name="again", target="grey hair", alpha=5, beta=0.08),
    Edit(name="hat", target="face with a hat", beta=0.05),
]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture(scope="module")
def inspected(prefect_server, network_files, workspace):
    return inspect_prompts(Models(**network_files), EDITS, str(workspace), **TABLE)


def rows(uri):
    return pq.read_table(uri).to_pylist()


def measured(network_files, inspected, target):
    """Return the relevance of every channel, from the table's own columns."""
    table = pq.read_table(next(iter_tables(inspected))).to_pandas()
    direction = torch.tensor(np.stack(list(table.direction)))
    text = text_direction(load_clip(network_files["clip"]), neutral="face", target=target)
    return torch.nn.functional.normalize(direction, dim=1) @ text.direction, text.norm


def iter_tables(inspected):
    return Path(inspected.diagnosis.folder).parents[1].rglob("relevance.parquet")


def test_prompts_have_norms_and_counts_at_every_beta(network_files, inspected):
    found = rows(inspected.diagnosis.prompts)
    assert {row["beta"] for row in found if row["target"] == "face with a hat"} == {*BETAS, 0.07, 0.08}
    relevance, norm = measured(network_files, inspected, "grey hair")
    for row in found:
        if row["target"] == "grey hair":
            assert row["text_norm"] == pytest.approx(norm, abs=1e-5)
            assert row["channels"] == int((relevance.abs() >= row["beta"]).sum())
    assert "‖Δt‖" in markdown(inspected.diagnosis)


def test_strongest_channels_are_listed_and_drawn(network_files, inspected):
    relevance, _ = measured(network_files, inspected, "face with a hat")
    mine = [row for row in rows(inspected.diagnosis.channels) if row["target"] == "face with a hat"]
    assert [row["rank"] for row in mine] == list(range(1, 9))
    assert_close(
        torch.tensor([row["relevance"] for row in mine]).abs(),
        relevance.abs().sort(descending=True).values[:8],
    )
    picture = Image.open(io.BytesIO(read_bytes(inspected.diagnosis.pictures)))
    assert picture.width > 9 * 96
    assert picture.height > 3 * 8 * 96


def test_prompts_that_coincide_are_warned_of(inspected):
    found = rows(inspected.diagnosis.correlations)
    same = [row for row in found if "grey hair" in row["first"] and "grey hair" in row["second"]]
    assert {row["kind"] for row in same} == {"text", "style"}
    assert all(row["coincide"] for row in same if row["kind"] == "text")
    assert next(row["cosine"] for row in same if row["kind"] == "text") == pytest.approx(1, abs=1e-5)
    assert any("text directions" in line for line in warnings(inspected.diagnosis.correlations))


def test_prompts_in_another_language_are_warned_of(tmp_path):
    table = pa.Table.from_pylist([{"neutral": "Haare", "target": "graue Haare"}] * 2, PROMPTS_SCHEMA)
    pq.write_table(table, tmp_path / "prompts.parquet")
    found = DiagnosisRef(folder=str(tmp_path), prompts=str(tmp_path / "prompts.parquet"))
    (line,) = foreign(found)
    assert not foreign(found.model_copy(update={"multilingual": True}))
    assert line.startswith("'graue Haare' seems to be in another language than English")


def test_a_second_inspection_computes_nothing(network_files, inspected, workspace):
    before = files_of(workspace)
    again = inspect_prompts(Models(**network_files), EDITS, str(workspace), **TABLE)
    assert again.diagnosis == inspected.diagnosis
    assert [step.computed for step in again.steps] == [0, 0]
    assert files_of(workspace) == before


def test_channels_of_a_prompt_and_prompts_of_a_channel(network_files, inspected, workspace):
    models = Models(**network_files)
    question = Question(target="face with a hat", count=3)
    found = explore_channels(models, question, str(workspace), **TABLE).found
    listed = rows(found.table)
    mine = [row for row in rows(inspected.diagnosis.channels) if row["target"] == "face with a hat"]
    assert [row["name"] for row in listed] == [row["name"] for row in mine[:3]]
    assert Image.open(io.BytesIO(read_bytes(found.picture))).height > 3 * 96
    attributes = (
        AttributePrompts(name="hat", positive="face with a hat"),
        AttributePrompts(name="grey", positive="grey hair"),
    )
    name = listed[0]["name"]
    nearest = rows(
        explore_channels(models, Question(channel=name), str(workspace), attributes, **TABLE).found.table
    )
    cosines = {row["attribute"]: row["cosine"] for row in nearest}
    assert cosines["hat"] == pytest.approx(listed[0]["relevance"], abs=1e-5)
    assert abs(nearest[0]["cosine"]) >= abs(nearest[1]["cosine"])
    with pytest.raises(LayoutMismatchError, match=r"is called 'b4\.nothing\.3'"):
        explore_channels(models, Question(channel="b4.nothing.3"), str(workspace), attributes, **TABLE)
    with pytest.raises(SettingsError, match="one of them"):
        explore_channels(models, Question(), str(workspace), **TABLE)


def test_a_batch_says_what_its_prompts_do_and_how_alike_its_steps_are(network_files, tmp_path):
    (tmp_path / "photos").mkdir()
    for index in range(3):
        (tmp_path / "photos" / f"p{index}.png").write_bytes(encoded(portrait(index)))
    edits = [
        Edit(name="direction", target="grey hair", alpha=2, beta=0.0),
        *(
            Edit(
                name=f"by-{space[0]}", target="grey hair", method="optimization",
                optimization=Optimization(steps=4, chunk=3, space=space, learning_rate=0.05),
            )
            for space in ("w_plus", "s")
        ),
    ]  # fmt: skip
    result = run(Models(**network_files), tmp_path / "photos", tmp_path / "out", edits)
    prompts = rows(result.diagnosis.prompts)
    assert {row["method"] for row in prompts} == {"global", "optimization"}
    found = rows(result.step_similarity)
    assert {row["kind"] for row in found} == {"step"}
    assert len(found) == 6
    cosines = {(row["first"], row["second"]): row["cosine"] for row in found}
    assert len(cosines) == 6
    assert cosines["direction_a2_b0", "direction_a2_b0"] == pytest.approx(1, abs=1e-4)  # one for all images
    expected = step_of(tmp_path / "out" / "workspace", result, network_files)
    assert cosines["by-w_o4", "by-w_o4"] == pytest.approx(expected, abs=1e-4)
    assert -1 <= cosines["by-w_o4", "by-s_o4"] < 0.9999


def step_of(workspace, result, network_files):
    """Return the mean cosine of the steps of the optimization in W+, from its stored latents."""
    generator = load_generator(network_files["generator"])

    def codes(table):
        latents = torch.tensor([row["w_plus"] for row in sorted(table, key=lambda row: row["image_key"])])
        return generator.styles(latents.view(len(latents), generator.num_ws, -1)).flat()

    before = codes([row for part in Path(result.latents).glob("*.attempt-*") for row in rows(part)])
    parts = [rows(part) for part in workspace.rglob("*.latents-*.parquet")]
    after = codes([row for part in parts for row in part if "w_plus" in row])
    unit = torch.nn.functional.normalize(after - before, dim=1)
    matrix = unit @ unit.T
    return ((matrix.sum() - matrix.diag().sum()) / 6).item()


def test_strips_are_drawn_with_titles_once_and_any_shape():
    tall = torch.zeros(2, 3, 3, 32, 16)
    one, two = Strip("a title", ["x"], tall), Strip("a title", ["y", "z"], tall)
    sheet = Image.open(io.BytesIO(draw_strips([one, two], ["-", "0", "+"], tile=40)))
    other = Image.open(io.BytesIO(draw_strips([one, Strip("other", ["y"], tall)], ["-", "0", "+"], tile=40)))
    assert other.height - sheet.height == 24
    with pytest.raises(ValueError, match="no row"):
        draw_strips([], [])


@given(st.lists(st.tuples(st.text(max_size=12), st.text("`|<>[]()!*_\\\n\r0", max_size=8)), max_size=4))
def test_no_markup_of_anybody_counts_in_a_table(rows_):
    header, rule, *lines = markdown_table(("a", "b"), rows_)
    assert (header, rule) == ("| a | b |", "| --- | --- |")
    assert len(lines) == len(rows_)
    for line in lines:
        assert line.isprintable()  # so it is one line
        assert len(re.findall(r"(?<!\\)\|", line)) == 3
        outside = re.sub(r"`[^`]*`", "", line).replace("|", "")
        assert re.fullmatch(r"[-+\d.,%/e±σ ]*", outside)


def test_of_many_prompts_those_are_paired_that_are_most_alike():
    many = torch.nn.functional.normalize(
        torch.randn(150, 3, generator=torch.Generator().manual_seed(1)), dim=1
    )
    names = [f"prompt {number}" for number in range(150)]
    matrix = many @ many.T
    few = pair_rows("text", names[:100], matrix[:100, :100])
    assert len(few) == 100 * 99 / 2

    found = pair_rows("text", names, matrix)
    pairs = {frozenset((row["first"], row["second"])) for row in found}
    assert len(pairs) == len(found) <= 5 * 150
    size = matrix.abs().fill_diagonal_(-1)
    for number in range(150):
        nearest = names[int(size[number].argmax())]
        assert {names[number], nearest} in pairs
    assert all(row["coincide"] == (abs(row["cosine"]) >= 0.9) for row in found)


def test_people_are_told_of_some_of_very_many_prompts(tmp_path):
    count = 130
    prompts = [
        {"neutral": "face", "target": f"hat {number}", "templates": "none", "method": "global",
         "text_norm": 1.0, "beta": 0.1, "channels": 3} for number in range(count)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(prompts, PROMPTS_SCHEMA), tmp_path / "prompts.parquet")
    rows = pair_rows("text", [each["target"] for each in prompts], torch.ones(count, count))
    pq.write_table(pa.Table.from_pylist(rows, CORRELATIONS_SCHEMA), tmp_path / "correlations.parquet")
    places = {name: str(tmp_path / f"{name}.parquet") for name in ("prompts", "correlations")}
    said = markdown(DiagnosisRef(folder=str(tmp_path), **places, multilingual=True))
    assert said.count("cosine") == 20
    assert f"and {len(rows) - 20} more pairs" in said
    assert said.count("| `face` |") == 100
    assert "and 30 more prompts" in said
