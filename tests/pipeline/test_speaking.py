"""What the command line says and to whom: help, completion, JSON, quiet, lines that stay whole."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from styleclip import data
from styleclip.tasks.settings.edits import load_edits
from styleclip_cli import main, options, output
from styleclip_cli.commands import PLACES, load
from styleclip_cli.progress import EVERY, Lines, span
from styleclip_core.models.catalog import find_model

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "prefect", "pandas", "pyarrow", "fsspec", "botocore", "rich", "matplotlib"}
WIDE = {"COLUMNS": "120"}  # text is wrapped, but no word of it
BASH = {"_STYLECLIP_COMPLETE": "complete_bash"}
KEYS = [
    "command", "version", "status", "result", "counts", "steps", "passed_over", "notes", "error", "seconds",
]  # fmt: skip


def commands():
    """Yield every command with the words that call it."""
    for name in PLACES:
        command = load(name)
        if not hasattr(command, "commands"):
            yield (name,), command
            continue
        for inner, each in command.commands.items():
            yield (name, inner), each


COMMANDS = list(commands())


@pytest.fixture
def called(monkeypatch, capsys):
    """Return the command line as a function: its exit status, and what it printed."""

    def call(*arguments, **environment) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["styleclip", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "40")
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            main.run()
        return int(ended.value.code or 0), *capsys.readouterr()

    return call


def python(code, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments], cwd=ROOT, env=os.environ | environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


LOOK = """
import sys
from styleclip_cli import main
try:
    main.run()
finally:
    print("imported:", *sorted(sys.modules), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (["--help"], {}),
        (["-h"], {}),
        (["--version"], {}),
        (["edit", "--help"], {}),
        (["models", "fetch", "--help"], {}),
        (["serve", "-h"], {}),
        ([], BASH | {"COMP_WORDS": "styleclip ed", "COMP_CWORD": "1"}),
        ([], BASH | {"COMP_WORDS": "styleclip edit --wei", "COMP_CWORD": "2"}),
    ],
)  # fmt: skip
def test_help_and_completion_import_nothing_heavy(arguments, environment):
    done = python(LOOK, *arguments, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    imported = set(done.stderr.partition("imported:")[2].split())
    assert not imported & HEAVY


def completed(words: str) -> list[str]:
    last = str(len(words.split(" ")) - 1)
    return python(LOOK, **BASH, COMP_WORDS=words, COMP_CWORD=last).stdout.split()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("styleclip ed", ["edit"]),
        ("styleclip edit --weights ", ["relevance", "least-squares"]),
        ("styleclip edit --templates ima", ["imagenet-80"]),
        ("styleclip train-mapper --level ", ["coarse", "medium", "fine"]),
        ("styleclip edit --clip ViT-L", ["ViT-L/14", "ViT-L/14@336px"]),
        ("styleclip edit --generator ", [str(data.GENERATOR)]),
        ("styleclip score --clip emb", ["embedded"]),
        ("styleclip models show clip-rn50x", ["clip-rn50x4", "clip-rn50x16", "clip-rn50x64"]),
        ("styleclip models list --kind enc", ["encoder"]),
    ],
)  # fmt: skip
def test_the_shell_completes_commands_and_values(words, wanted):
    assert completed(words) == wanted


def test_names_of_clips_that_are_suggested_exist():
    embedded, *names = options.clip_names()
    assert Path(embedded) == data.CLIP
    assert [find_model(name).kind for name in names] == ["clip"] * len(names)
    assert len(names) >= 9


@pytest.mark.parametrize(("words", "command"), COMMANDS, ids=[" ".join(words) for words, _ in COMMANDS])
def test_every_default_and_every_sentence_is_shown_in_the_help(called, words, command):
    status, shown, told = called(*words, "--help", **WIDE)
    assert (status, told) == (0, "")
    flat = " ".join(shown.split())
    context = typer.main.get_command(main.app).make_context("styleclip", [], resilient_parsing=True)
    for option in command.get_params(context):
        assert " ".join(option.help.split()) in flat
        if option.envvar:
            assert f"env var: {option.envvar}" in flat
        if isinstance(option.show_default, str):
            assert f"default: ({option.show_default})" in flat
        elif option.default not in (None, "", False):
            assert f"default: {option.default}" in flat
    assert "--json" in shown
    assert "-q, --quiet" in shown
    assert "-h, --help" in shown


def test_what_a_preset_decides_is_shown_for_each_preset(called):
    shown = " ".join(called("edit", "--help", **WIDE)[1].split())
    assert (
        "Evaluations of the loss, at most [default: (published 300, gentle 60, faithful 15); x>=1]" in shown
    )
    assert "[default: (edit)]" in shown
    shown = " ".join(called("train-mapper", "--help", **WIDE)[1].split())
    assert "[default: (coarse and medium and fine)]" in shown


def test_the_everyday_options_come_before_those_of_experts(called):
    shown = called("edit", "--help", **WIDE)[1]
    places = [shown.index(each) for each in (
        "\nOptions:", "--photos", "--target", "\nPrompts, a method", "--alpha", "\nNetworks:", "--generator",
        "\nHow photographs become latents:", "--pivotal-rank", "--workers", "--json",
    )]  # fmt: skip
    assert places == sorted(places)


def test_the_listing_says_of_commands_what_they_say_of_themselves(called):
    listing = called("--help", **WIDE)[1]
    names = [line.split()[0] for line in listing.splitlines() if line.startswith("  ") and line[2] != " "]
    assert [name for name in names if name in PLACES] == list(PLACES)
    flat = " ".join(listing.split())
    for name in PLACES:
        assert " ".join(load(name).help.split("\n\n")[0].split()) in flat


def said(printed: str) -> dict:
    """Return the one object on stdout."""
    (line,) = printed.splitlines()
    found = json.loads(line)
    assert list(found) == KEYS
    assert found["seconds"] >= 0
    return found


def test_json_says_what_was_made(called, tmp_path):
    target = tmp_path / ("a-name-that-is-longer-than-forty-characters" * 2 + ".safetensors")
    status, printed, told = called("convert", data.GENERATOR, target, "--json")
    assert (status, target.exists()) == (0, True)
    found = said(printed)
    assert (found["command"], found["status"], found["error"]) == ("convert", "done", None)
    assert found["result"] == {"weights": str(target)}
    assert found["notes"] == told.splitlines()
    assert found["version"].endswith("+tested")

    listed = said(called("models", "list", "--kind", "encoder", "--json")[1])["result"]["models"]
    assert {each["kind"] for each in listed} == {"encoder"}


@pytest.mark.parametrize(
    ("arguments", "status", "why"),
    [
        (["edit", "--photos", "x"], 2, "'--out' (env var: 'STYLECLIP_OUT'); see styleclip edit --help"),
        (["edit", "--no-such"], 2, "No such option: --no-such; see styleclip edit --help"),
        (["no-such"], 2, "No such command 'no-such'; see styleclip --help"),
        (["models", "show", "no-such"], 2, "no published model is called 'no-such' (styleclip models list"),
        (["build-relevance", "--workspace=y", "--precision=int8"], 2, "Invalid value for '--precision'"),
        (["report"], 2, "say what to report: --manifest of a batch, or --partial with a prefix"),
        (["convert", "none.pt", "y.safetensors"], 2, "error: no weights at none.pt; give the path"),
        (
            ["convert", "stylegan2-ada-ffhq", "y.safetensors"], 2,
            "stylegan2-ada-ffhq is a published model, of which the file is wanted: 'styleclip models fetch "
            "stylegan2-ada-ffhq' downloads it",
        ),
    ],
)  # fmt: skip
def test_an_error_is_one_line_and_one_object_in_a_narrow_terminal(
    called, prefect_server, arguments, status, why
):
    ended, printed, told = called(*arguments)
    assert (ended, printed) == (status, "")
    (line,) = told.splitlines()
    assert line.startswith("error: ")
    assert why in line

    ended, printed, told = called(*arguments, "--json")
    found = said(printed)
    assert (ended, found["status"], found["result"]) == (status, "refused", {})
    assert told == f"error: {found['error']}\n" == f"{line}\n"


def test_what_only_a_traceback_explains_is_an_object_too(called, monkeypatch, tmp_path):
    def broken(*_arguments, **_options):
        raise RuntimeError("of nobody's making")

    monkeypatch.setattr("styleclip.tasks.exchange.published_files.convert_weights", broken)
    monkeypatch.setattr(sys, "argv", ["styleclip", "convert", "a", "b", "--json"])
    printed: list[str] = []
    monkeypatch.setattr(output.typer, "echo", lambda text, **_: printed.append(text))
    with pytest.raises(RuntimeError, match="of nobody's making"):
        main.run()
    found = said(printed[-1])
    assert (found["status"], found["error"]) == ("failed", "RuntimeError: of nobody's making")


def test_quiet_leaves_errors_and_the_result(called, tmp_path):
    target = tmp_path / "g.safetensors"
    assert called("convert", data.GENERATOR, target, "--quiet") == (0, f"{target}\n", "")
    status, printed, told = called("convert", tmp_path / "none.pt", target, "-q")
    assert (status, printed, len(told.splitlines())) == (2, "", 1)


def test_results_steps_and_errors_are_never_wrapped(called, network_files, prefect_server, tmp_path):
    """A run in a terminal of forty columns, and again as JSON, which finds everything done."""
    networks = [part for name, uri in network_files.items() if name != "clip" for part in (f"--{name}", uri)]
    arguments = ["sample-styles", "--workspace", tmp_path / "w", *networks[:2], "--statistics", "15000"]
    status, printed, told = called(*arguments)
    assert status == 0, told
    (place,) = printed.splitlines()
    assert Path(place).exists()
    lines = told.splitlines()
    assert any(line.startswith("sample-styles: 0 of ") for line in lines)
    assert [line for line in lines if " rows in " in line and line.endswith("rows/s")]

    # what is found done was made at no pace
    (again,) = [line for line in called(*arguments)[2].splitlines() if " rows in " in line]
    assert " 0 computed now" in again
    assert again.endswith(" 0.0 rows/s")

    found = said(called(*arguments, "--json", "-q")[1])
    assert found["result"] == {"statistics": place}
    (step,) = [each for each in found["steps"] if each["step"] == "sample-styles"]
    assert (step["computed"], step["failed"]) == (0, 0)


def test_options_of_every_day_are_read_from_the_deployments_variables(called, prefect_server, tmp_path):
    status, _, told = called("invert", STYLECLIP_PHOTOS=str(tmp_path / "none"), STYLECLIP_WORKSPACE="w")
    assert status == 2
    assert f"cannot list {tmp_path / 'none'}" in told
    status, _, told = called("invert", "--photos", tmp_path / "other")
    assert f"cannot list {tmp_path / 'other'}" in told
    status, _, told = called("prune", STYLECLIP_OUT="y")  # what deletes is told its place
    assert "Missing argument 'OUT'" in told


def test_a_table_for_people_is_whole_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    output.start(as_json=False)
    cell = "a cell that is far wider than all of forty columns are"
    output.table(["first", "second"], [[cell, "x" * 60]])
    assert any(cell in line and "x" * 60 in line for line in capsys.readouterr().err.splitlines())


def progress(*said: tuple[float, int, int | None], unit="shards") -> list[str]:
    lines: list[str] = []
    clock = iter(each[0] for each in said)
    observer = Lines(lines.append, unit, lambda: next(clock))
    for _, done, total in said:
        observer("invert", done, total)
    return lines


def test_progress_without_a_terminal_is_a_line_at_each_tenth():
    lines = progress(*((0.01 * done, done, 200) for done in range(201)))
    assert [line.split(",")[0] for line in lines] == [f"invert: {d} of 200 shards" for d in range(0, 201, 20)]


def test_progress_is_said_every_half_minute_with_the_time_left():
    lines = progress((0, 0, 1000), (10, 1, 1000), (29, 2, 1000), (30, 3, 1000), (59, 5, 1000), (60, 6, 1000))
    assert lines == [
        "invert: 0 of 1000 shards", "invert: 3 of 1000 shards, about 2 h 46 min left",
        "invert: 6 of 1000 shards, about 2 h 46 min left",
    ]  # fmt: skip
    # what was done when it began has taken no time
    assert progress((0, 50, 100), (40, 60, 100))[-1] == "invert: 60 of 100 shards, about 3 min left"
    assert progress((0, 0, None), (EVERY, 7, None), unit="bytes")[-1] == "invert: 7 of ? bytes"
    assert [span(each) for each in (0.4, 89, 91, 5300, 5400)] == [
        "0 s",
        "89 s",
        "2 min",
        "88 min",
        "1 h 30 min",
    ]


def test_edits_of_the_demo_are_read_without_what_is_heavy():
    done = python(
        "import sys, styleclip.data; from styleclip.tasks.settings.edits import Edit; print(*sys.modules)"
    )
    assert not set(done.stdout.split()) & HEAVY
    assert load_edits(str(data.EDITS))
