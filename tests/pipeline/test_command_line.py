"""The command line as a user meets it: help, results, errors of one line, and kills in a row.

What only depends on the arguments is called in this process; what is printed where, exit statuses and kills
are those of processes of their own. These use the server of the tests, one of them starts its own.
"""

import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest

from styleclip_cli import main
from tests.forked import completed, started
from tests.left import files_of
from tests.pipeline.test_flows import encoded, portrait

ROOT = Path(__file__).parents[2]


@pytest.fixture
def environment(prefect_server, migrated, tmp_path):
    return {
        **os.environ,
        "PREFECT_HOME": str(migrated(tmp_path / "prefect")),
        "PREFECT_API_URL": prefect_server,
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
    }


@pytest.fixture
def called(prefect_server, monkeypatch, capsys):
    """Return the command line as a function: its exit status, and what it printed."""

    def call(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["styleclip", *map(str, arguments)])
        monkeypatch.chdir(ROOT)
        with (
            mock.patch.dict(os.environ, {"COLUMNS": "200"}),  # a command sets what Prefect is to read
            pytest.raises(SystemExit) as ended,
        ):
            main.run()
        return int(ended.value.code or 0), *capsys.readouterr()

    return call


def styleclip(environment, *arguments) -> subprocess.CompletedProcess[str]:
    return completed(arguments, environment)


@pytest.fixture
def job(network_files, tmp_path):
    """A small edit of the command line, as arguments after ``--out``."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(10):
        (photos / f"p{index}.png").write_bytes(encoded(portrait(index)))
    networks = [part for name, uri in network_files.items() for part in (f"--{name}", uri)]
    return [
        "edit", "--photos", photos, *networks, "--target", "grey hair", "--neutral", "hair", "--alpha", "2",
        "--alpha", "3", "--beta", "0", "--statistics", "15000", "--samples", "8", "--steps", "60",
        "--shard-size", "1",
    ]  # fmt: skip


def test_every_command_has_help_with_units(called):
    status, overview, _ = called("--help")
    flows = ["demo", "sample-styles", "build-relevance", "invert", "edit", "align", "paste", "train-mapper"]
    flows += ["evaluate", "score", "prompts", "channels", "report"]
    assert status == 0
    for command in [*flows, "convert", "import", "export", "models", "storage", "prune"]:
        assert command in overview
        status, shown, _ = called(command, "--help")
        assert status == 0
        assert ("--workers" in shown) == (command in flows)
    assert "deviations" in called("edit", "--help")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["edit", "--photos", "x", "--out", "y"], "say what to edit: --target with a prompt, or --edits"),
        (["edit", "--photos", "x", "--out", "y", "--target", "hat", "--beta", "3"], "from 0 to 1, got 3"),
        (["edit", "--photos", "x", "--out", "y", "--edits", "none.yaml"], "none.yaml: there is no such object"),
        (["edit", "--photos", "x", "--out", "x/y", "--target", "hat"], "lies inside the photographs"),
        (["invert", "--photos", "x", "--workspace", "y"], "cannot list"),
        (
            ["invert", "--photos", str(ROOT / "docs"), "--workspace", "y", "--generator", "no.safetensors"],
            "/no.safetensors; give",
        ),
        (["invert", "--photos", "s3:/b/x", "--workspace", "y"], "error: photos: s3:/b/x is neither a URI nor a"),
        (["edit", "--photos", "x", "--out", "./x/../x", "--target", "hat"], "x lies inside the photographs"),
        (["edit", "--photos", "x/images", "--out", "x", "--target", "hat"], "images lies inside the photographs"),
        (["edit", "--photos", "x", "--out", "y", "--target", " "], "target: a prompt is blank"),
        (["edit", "--photos", "x", "--out", "y", "--target", "hat", "--alpha", "inf"], "a finite number, got"),
        (["edit", "--photos", "x", "--out", "y", "--target", "hat", "--alpha", "1e300"], "alpha must be from -1"),
        (["edit", "--photos", "x", "--out", "y", "--target", "hat", "--exclude", "*"], "leaves no layer to edit"),
        (["edit", "--photos", "x"], "Missing option"),
        (["report"], "say what to report: --manifest of a batch, or --partial with a prefix"),
        (["report", "--partial", "y"], "no run has begun to edit into"),
        (["report", "--manifest", "none.parquet"], "none.parquet: there is no such object"),
        (["build-relevance", "--workspace", "y", "--precision", "int8"], "Invalid value for '--precision'"),
        (["build-relevance", "--workspace", "y", "--fast", "--centre", "mean"], "use centre 'sample'"),
        (["build-relevance", "--workspace", "y", "--reference-compat", "--eight-bit"], "eight_bit itself"),
        (["invert", "--photos", "x", "--workspace", "y", "--pivotal-locality", "1"], "give --pivotal-steps too"),
        (["invert", "--photos", "x", "--workspace", "y", "--features-rank", "2"], "give --features-steps too"),
        (["invert", "--photos", "x", "--workspace", "y", "--features-steps", "2", "--pivotal-steps", "2"], "not both"),
        (["evaluate", "--manifest", "none.parquet"], "none.parquet: there is no such object"),
        (["score", "--images", "x", "--out", "y"], "say what to look for: --prompts with a file, or --prompt"),
        (["prune", "y"], "say which batches go: older than an age, by name, or all but the last ones"),
        (["channels", "--target", "hat"], "give --table with the folder of a relevance table, or --workspace"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_status_2(called, arguments, message):
    status, _, told = called(*arguments)
    assert status == 2, told
    assert message in " ".join(re.sub(r"[\u2500-\u257f]", " ", told).split())
    assert "Traceback" not in told
    assert not (ROOT / "y").exists()
    assert not (ROOT / "x").exists()


def test_a_missing_prefix_is_named(environment, network_files, tmp_path):
    networks = [part for name, uri in network_files.items() if name != "clip" for part in (f"--{name}", uri)]
    result = styleclip(
        environment, "invert", "--photos", tmp_path / "none", "--workspace", tmp_path / "w", *networks
    )
    assert result.returncode == 2, result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("error: cannot list")
    assert "Traceback" not in result.stderr


def test_the_last_line_says_where_the_result_is(environment, job, tmp_path):
    """Without a server that is named, as on a laptop: the command starts one of its own."""
    alone = {"PREFECT_API_URL": "", "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300"}
    result = styleclip(environment | alone, *job, "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    page = Path(result.stdout.strip().splitlines()[-1].split()[-1])
    assert page.name == "index.html"
    assert page.exists()
    assert "edit-images: 20 rows" in result.stderr


@pytest.mark.parametrize("option", ["--pivotal-steps", "--features-steps"])
def test_inversion_keeps_what_is_an_image_s_own_where_it_is_asked_to(
    option, environment, job, network_files, tmp_path
):
    networks = [part for name, uri in network_files.items() if name != "clip" for part in (f"--{name}", uri)]
    place = ("invert", "--photos", job[2], "--workspace", tmp_path / "w", "--steps", "2")
    result = styleclip(environment, *place, option, "2", *networks)
    assert result.returncode == 0, result.stderr
    latents = Path(result.stdout.strip().splitlines()[-1])
    assert len(list(latents.glob("tunings/*.safetensors"))) == 10


@pytest.mark.timeout(1200)
def test_five_kills_at_random_leave_no_trace(environment, job, tmp_path):
    rng, out = random.Random(2024), tmp_path / "out"
    for _ in range(5):
        with started([*job, "--out", out], environment) as (process, _):
            deadline = time.monotonic() + 120
            while not out.exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)  # before there is anything is no moment worth killing
            time.sleep(rng.uniform(0, 4))
    sixth = styleclip(environment, *job, "--out", out)
    assert sixth.returncode == 0, sixth.stderr
    ours = files_of(out)
    pictures = [name for name in ours if name.startswith("images/")]
    assert len(pictures) == 20
    assert not list(out.rglob(".styleclip-tmp-*"))
    # byte by byte what an undisturbed run leaves in the same place: nothing of the kills is there
    shutil.rmtree(out)
    undisturbed = styleclip(environment, *job, "--out", out)
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert files_of(out) == ours


@pytest.mark.timeout(900)
def test_a_mapper_s_training_survives_three_kills_bit_for_bit(environment, network_files, tmp_path):
    networks = [f"--{name}={uri}" for name, uri in network_files.items() if name != "encoder"]
    train = [
        "train-mapper", *networks, "--target", "grey hair", "--steps", "400", "--validate-every", "5",
        "--codes", "20", "--validation", "8", "--learning-rate", "0.1", "--level", "coarse", "--workspace",
    ]  # fmt: skip
    undisturbed = styleclip(environment, *train, tmp_path / "a")
    assert undisturbed.returncode == 0, undisturbed.stderr
    place, stored, kills = tmp_path / "b", [], 0
    while kills < 3:
        with started([*train, place], environment) as (process, _):
            deadline = time.monotonic() + 120
            while process.poll() is None and time.monotonic() < deadline:
                states = [path.read_bytes() for path in place.rglob("training.safetensors")]
                if states and states not in stored:  # it has come further than the one before
                    stored.append(states)
                    break
                time.sleep(0.01)
            assert process.poll() is None
        kills += 1
    assert not list(place.rglob("curve.parquet"))
    resumed = styleclip(environment, *train, place)
    assert resumed.returncode == 0, resumed.stderr
    theirs, ours = files_of(tmp_path / "a"), files_of(place)
    results = [
        name for name in ours if name.endswith(("best.safetensors", "last.safetensors", "curve.parquet"))
    ]
    assert len(results) == 3
    assert all(theirs[name] == ours[name] for name in results)
