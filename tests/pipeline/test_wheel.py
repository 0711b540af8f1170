"""What is installed has names of its own: a user's flows/, tasks/ and data.py lie beside it in peace."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SOURCES = (
    "pyproject.toml", "README.md", "LICENSE", "prefect.yaml", "styleclip", "flows", "tasks", "data",
    "styleclip_core", "styleclip_cli",
)  # fmt: skip
THEIRS = ("flows/__init__.py", "tasks/__init__.py", "data.py")
PLACES = ("GENERATOR", "CLIP", "ENCODER", "IDENTITY", "PERCEPTUAL", "WORKSPACE", "PHOTOS", "OUT")
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
_WITHOUT = "import sys; sys.modules[{package!r}] = None; from styleclip_cli.start import run; run()"


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Return a folder with what pip installs of a copy of the sources: it would build in them."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
        else:
            shutil.copyfile(ROOT / name, source / name)

    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    command = [
        *pip,
        "--no-deps",
        "--no-build-isolation",
        "--no-compile",
        "--target",
        str(target),
        str(source),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def folder(tmp_path) -> Path:
    """Return a folder with modules of a user's own, which say so when they are imported."""
    for name in THEIRS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise RuntimeError('a module of the user was imported')\n")
    return tmp_path


def _run(command: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    given = os.environ | environment
    return subprocess.run(command, cwd=cwd, env=given, capture_output=True, text=True, check=False)


def _python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-W", "ignore", "-c", code, *arguments]


def test_nothing_of_a_users_folder_is_imported_and_no_file_of_ours_twice(installed, folder):
    done = _run(_python(_LOOK), folder, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr
    imported = json.loads(done.stdout)

    names = {"styleclip", "styleclip_core", "styleclip_cli", "flows", "tasks", "data"}
    ours = {name: file for name, file in imported.items() if name.partition(".")[0] in names}
    assert "styleclip.tasks.editing.shards" in ours  # that it has looked at all
    assert not {name.partition(".")[0] for name in ours} & {"flows", "tasks", "data"}
    assert all(Path(file).is_relative_to(installed) for file in ours.values())
    assert len(set(ours.values())) == len(ours)


def test_a_file_is_installed_once_and_under_our_names(installed):
    top = {path.name for path in installed.iterdir() if path.suffix != ".dist-info"}
    assert top == {"styleclip", "styleclip_core", "styleclip_cli", "bin"}
    weights = [path for path in installed.rglob("generator.safetensors")]
    assert [path.relative_to(installed).as_posix() for path in weights] == [
        "styleclip/data/weights/generator.safetensors"
    ]
    assert not [path for path in installed.rglob("*") if path.is_symlink()]


@pytest.mark.parametrize("name", ["flows", "tasks", "data"])
def test_a_folder_of_the_repository_cannot_be_imported_under_a_second_name(name):
    done = _run(_python(f"import {name}"), ROOT)
    assert f"ImportError: the folder {name}/ is the package styleclip.{name}" in done.stderr


def test_the_installed_command_deploys_its_own_flows_from_a_users_folder(installed, folder, prefect_server):
    def styleclip(*arguments: str) -> subprocess.CompletedProcess[str]:
        places = {f"STYLECLIP_{name}": f"s3://somewhere/{name.lower()}" for name in PLACES}
        command = [str(installed / "bin" / "styleclip"), *arguments]
        return _run(command, folder, PYTHONPATH=str(installed), PYTHONWARNINGS="ignore", **places)

    lacking = styleclip("deploy")
    assert lacking.returncode == 2
    assert "or write one with `styleclip deploy --write`" in lacking.stderr

    # the file that comes with it, which is kept where it is there
    assert styleclip("deploy", "--write").stdout == "prefect.yaml\n"
    written = (folder / "prefect.yaml").read_text()
    assert written == (ROOT / "prefect.yaml").read_text()
    again = styleclip("deploy", "--write")
    assert (again.returncode, again.stdout) == (2, "")
    assert "prefect.yaml is there already and stays as it is" in again.stderr

    # Prefect puts the folder first on the path of the process that imports the flows; one of them will do
    content = yaml.safe_load(written)
    content["deployments"] = [each for each in content["deployments"] if each["name"] == "nightly"]
    (folder / "prefect.yaml").write_text(yaml.safe_dump(content))
    create = [sys.executable, "-m", "prefect", "work-pool", "create", "styleclip-gpu", "--type", "process"]
    pool = _run(create, folder)
    assert pool.returncode == 0 or "already exists" in pool.stdout + pool.stderr
    done = styleclip("deploy")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("build-relevance/nightly: ")


@pytest.mark.parametrize("package", ["typer", "pydantic", "prefect"])
def test_without_the_extra_a_command_says_what_to_install(package):
    done = _run(_python(_WITHOUT.format(package=package), "storage", "nowhere"), ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: the package {package!r} is not installed, which the command line needs: "
        "pip install 'styleclip-pipeline[pipeline]'\n"
    )


def test_a_module_of_ours_that_is_missing_is_no_matter_of_extras():
    done = _run(_python(_WITHOUT.format(package="styleclip.tasks"), "storage", "nowhere"), ROOT)
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr
    assert "pip install" not in done.stderr
