"""What is installed has names of its own: a user's flows/, tasks/ and data.py lie beside it in peace."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
THEIRS = ("flows/__init__.py", "tasks/__init__.py", "data.py")
# of what a process has imported: its name, and the file it was read from, links followed
_LOOK = """
import importlib, json, os, pkgutil, sys
import styleclip.flows, styleclip_cli
for package in (styleclip_cli, styleclip.flows):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
files = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
print(json.dumps({name: os.path.realpath(file) for name, file in files.items() if file}))
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """Return a folder with modules of a user's own, which say so when they are imported."""
    for name in THEIRS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise RuntimeError('a module of the user was imported')\n")
    return tmp_path


def _python(code: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-c", code]
    given = os.environ | environment
    return subprocess.run(command, cwd=cwd, env=given, capture_output=True, text=True, check=False)


def test_nothing_of_a_users_folder_is_imported_and_no_file_of_ours_twice(folder):
    done = _python(_LOOK, folder, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    imported = json.loads(done.stdout)
    ours = [file for file in imported.values() if Path(file).is_relative_to(ROOT) and ".venv" not in file]
    assert len(ours) == len(set(ours)) > 100
    assert "styleclip.tasks.editing.shards" in imported  # that it has looked at all
    assert not {name.partition(".")[0] for name in imported} & {"flows", "tasks", "data"}


@pytest.mark.parametrize("name", ["flows", "tasks", "data"])
def test_a_folder_of_the_repository_cannot_be_imported_under_a_second_name(name):
    done = _python(f"import {name}", ROOT)
    assert f"ImportError: the folder {name}/ is the package styleclip.{name}" in done.stderr
