"""The benchmark of a GPU, rehearsed on the CPU: it runs where torch is nearly alone, and counts rightly."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from clip.clip import _transform
from clip.model import CLIP, convert_weights
from PIL import Image
from torch.testing import assert_close

from benchmarks.gpu import relevance
from benchmarks.gpu.__main__ import PARTS
from benchmarks.gpu.networks import Bench, computing
from benchmarks.gpu.output import JSON_NAME, TABLE_NAME, write
from benchmarks.gpu.parts import Goal, Part, Row, run
from benchmarks.gpu.vision import ImageClip, TowerSize, image_clip
from benchmarks.reference import published_preprocessing
from styleclip_core.relevance import RelevanceSettings

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
ABSENT = (
    "prefect", "clip", "pyarrow", "typer", "torchmetrics", "duckdb", "torchvision", "open_clip",
    "transformers", "rich", "pandas", "pydantic", "annotated_types", "fsspec",
)  # fmt: skip
PROBE = f"""
import runpy, sys
class Without:
    # as where they are not installed: who asks whether they are there is told that they are not
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in {set(ABSENT)} else self.finder.find_spec(name, path, target)
sys.meta_path[:] = map(Without, sys.meta_path)
runpy.run_module("benchmarks.gpu", run_name="__main__")
"""


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROBE, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_every_part_runs_where_torch_is_nearly_alone(tmp_path):
    result = _run("--device", "cpu", "--small", "--out", str(tmp_path))
    assert result.returncode == 0, result.stderr

    found = json.loads((tmp_path / JSON_NAME).read_text())
    assert [(part["name"], part["state"]) for part in found["parts"]] == [
        (each.name, "done") for each in PARTS
    ]
    assert found["rehearsal"] is True
    assert found["machine"]["torch"] == torch.__version__
    rows = [row for part in found["parts"] for row in part["rows"]]
    assert all(row["value"] is not None and math.isfinite(row["value"]) for row in rows)

    # a CPU is its own measure
    same = [row for row in rows if "float32: a pixel's largest difference" in row["what"]]
    assert [row["value"] for row in same] == [0.0, 0.0]
    assert [row["met"] for row in same] == [True, True]
    (golden,) = (row for row in rows if row["what"].startswith("NVIDIA's generator"))
    assert golden["met"] is True

    text = (tmp_path / TABLE_NAME).read_text()
    assert "A rehearsal" in text
    assert all(f"## {part.name}" in text for part in PARTS)
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted((JSON_NAME, TABLE_NAME))


def test_without_a_gpu_it_says_so(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    result = _run("--out", str(tmp_path))
    assert result.returncode == 2
    assert "torch finds no GPU here; rehearse on the CPU: --device cpu --small" in result.stderr
    assert _run("speed", "--device", "cpu").returncode == 2


def test_shares_are_the_whole_time():
    assert sum(part.share for part in PARTS) == pytest.approx(1)


# ---- parts --------------------------------------------------------------------------------------------


def _endless(bench):
    yield Row("before", 1.0, "s")
    while True:
        time.sleep(0.001)


def _failing(bench):
    yield Row("before", math.nan, "s", goal=Goal(1.0))
    raise ValueError("nothing | to\nmeasure")


def _fine(bench):
    yield Row("a | b", 3.0, "times", 0.5, Goal(2.0, at_most=False), "as said")


def test_a_part_that_fails_or_runs_out_says_so_and_the_rest_runs(tmp_path, capsys):
    parts = [
        Part("endless", "Never", 0.1, _endless),
        Part("bad", "Bad", 0.4, _failing),
        Part("good", "Good", 0.5, _fine),
    ]
    bench, seen = Bench(CPU, small=True), []

    def note(outcomes):
        seen.append([each.state for each in outcomes])
        write(tmp_path, bench, {"device": "cpu"}, outcomes)

    outcomes = run(bench, parts, 0.01, note)
    assert seen == [["ran out"], ["ran out", "failed"], ["ran out", "failed", "done"]]
    assert [len(each.rows) for each in outcomes] == [1, 1, 1]
    assert outcomes[1].why == "ValueError: nothing | to measure"
    assert "raise ValueError" in capsys.readouterr().err

    # what is no number is none in JSON, and reaches no goal
    first, second, third = json.loads((tmp_path / JSON_NAME).read_text())["parts"]
    assert (first["why"], second["rows"][0]["value"], second["rows"][0]["met"]) == (
        "its 0 s were over",
        None,
        False,
    )
    assert third["rows"][0] == {
        "what": "a | b", "value": 3.0, "unit": "times", "standard_error": 0.5, "note": "as said", "goal": 2.0,
        "met": True,
    }  # fmt: skip
    text = (tmp_path / TABLE_NAME).read_text()
    assert "| a \\| b | 3 times | 0.5 | at least 2 times | yes | as said |" in text
    assert "**failed**: ValueError: nothing | to measure" in text


def test_a_table_is_extrapolated_along_a_line_over_the_channels(monkeypatch):
    # a code of a layer costs 2 s, and 0.1 s for each of its channels; widths of less than two batches too
    bench = Bench(CPU, small=True)
    case = bench.case(64)
    measured = []

    def measure(name, channels, settings, codes):
        measured.append((name, len(channels)))

    def seconds(device, work):
        work()
        return 2 + 0.1 * measured[-1][1]

    monkeypatch.setattr(relevance, "seconds", seconds)
    monkeypatch.setattr(type(case), "measure", lambda self, *given: measure(*given))
    layers = case.generator.layout.editable
    expected = sum(2 + 0.1 * layer.channels for layer in layers)
    for moves in (4, 6, 64):
        found = relevance._code(bench, case, RelevanceSettings(batch_size=moves), 0)
        assert found == pytest.approx(expected)


# ---- networks -----------------------------------------------------------------------------------------


def _published(size):
    made = CLIP(
        size.embedding, size.side, size.layers, size.width, size.patch, 77, 100, size.embedding, 1, 1
    )  # fmt: skip
    return made.eval().requires_grad_(False)


def test_the_image_tower_is_the_published_one():
    size = TowerSize(side=48, patch=16, width=128, layers=2, heads=2, embedding=24)
    torch.manual_seed(0)
    theirs = _published(size)
    ours = ImageClip(size).eval()
    names = ours.state_dict().keys()
    ours.load_state_dict({name: value for name, value in theirs.state_dict().items() if name in names})

    pixels = torch.randn(3, 3, 48, 48)
    with torch.no_grad():
        assert_close(ours.encode_image(pixels), theirs.encode_image(pixels), atol=1e-6, rtol=1e-5)

    # and so are its halves: what multiplies has 16 bits, what normalizes has 32
    convert_weights(theirs)
    ours.halve()
    kinds = {name: value.dtype for name, value in theirs.state_dict().items() if name in names}
    assert {name: value.dtype for name, value in ours.state_dict().items()} == kinds
    assert set(kinds.values()) == {torch.float16, torch.float32}
    with torch.no_grad():
        assert_close(ours.encode_image(pixels), theirs.encode_image(pixels), atol=2e-3, rtol=2e-3)
    assert image_clip(ours, CPU).embed_images(torch.rand(2, 3, 64, 64)).norm(dim=1) == pytest.approx(
        1, abs=1e-3
    )


def test_its_usual_sizes_are_those_of_vit_b_32():
    with torch.device("meta"):
        theirs = CLIP(512, 224, 12, 768, 32, 77, 49408, 512, 8, 12).state_dict()
        ours = ImageClip().state_dict()
    assert {name: each.shape for name, each in theirs.items() if name in ours} == {
        name: each.shape for name, each in ours.items()
    }
    assert {name for name in theirs if name.startswith("visual.")} <= ours.keys()


@pytest.mark.parametrize("size", [(64, 64), (32, 32), (90, 61), (40, 131), (33, 32), (224, 300)])
def test_the_loops_preprocessing_is_the_published_one(size):
    drawn = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(1))
    image = Image.fromarray(drawn.to(torch.uint8).numpy())
    assert torch.equal(published_preprocessing(32)(image), _transform(32)(image))


def test_a_device_gets_the_weights_that_the_cpu_has():
    bench = Bench(CPU, small=True)
    for first, second in (
        (bench.generator(16), Bench(CPU, small=True).generator(16)),
        (bench.clip().model, bench.clip().model),
    ):
        state = second.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in first.state_dict().items())
        assert all(value.isfinite().all() for value in state.values())


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16", "float16"])
def test_a_precision_ends_with_its_block(precision):
    switches = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [each.fp32_precision for each in switches]
    x = torch.randn(4, 4)
    with computing(CPU, precision):
        inside = (x @ x).dtype
        assert {each.fp32_precision for each in switches} == {"ieee" if precision == "float32" else "tf32"}
    assert inside == getattr(torch, precision.replace("tf32", "float32"))
    assert [each.fp32_precision for each in switches] == before
    assert (x @ x).dtype == torch.float32
