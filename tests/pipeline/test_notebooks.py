"""The notebooks run as they stand, every cell says what it is for, and little of their output is kept."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def outputs(notebook: nbformat.NotebookNode) -> list[list[set[str]]]:
    """Return which forms of output each cell of code has."""
    return [[set(each.get("data", {})) for each in cell.outputs] for cell in notebook.cells[1::2]]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_explains_every_cell(path, tmp_path):
    kept = nbformat.read(path, as_version=4)
    nbformat.validate(kept)
    kinds = [cell.cell_type for cell in kept.cells]
    assert kinds == ["markdown", "code"] * (len(kinds) // 2)
    assert all(cell.source.rstrip().endswith(".") for cell in kept.cells[::2])
    assert path.stat().st_size < 120_000

    # in a process of its own, which fails where a cell raises, without settings of whoever runs the tests
    copy = Path(shutil.copy(path, tmp_path))
    folders = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR")
    given = os.environ | {name: str(tmp_path / name) for name in folders} | {"PYTHONPATH": str(ROOT)}
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        "from nbclient.cli import main; main()",
        "--inplace",
        copy.name,
    ]
    done = subprocess.run(command, cwd=tmp_path, env=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert outputs(nbformat.read(copy, as_version=4)) == outputs(kept)


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == ["edit_a_photograph", "look_into_a_table"]
