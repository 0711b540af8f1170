"""The core stands alone: it imports nothing of the layers above, and works where they are not installed.

What is imported is what pyproject.toml declares: for the core, for the pipeline, and for each other extra.
"""

import ast
import functools
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = ("styleclip_core", "tasks", "flows", "styleclip_cli", "data")
OURS = {"styleclip", "styleclip_core", "styleclip_cli", "benchmarks", "tests"}
# Declared and not imported, as something else needs it; pyproject.toml says beside each of them what for.
OF_OTHERS = {"torchvision", "setuptools", "fastapi", "sqlalchemy", "s3fs", "pandas", "sentencepiece"}

PROBE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import importlib, pkgutil, styleclip_core
for module in pkgutil.walk_packages(styleclip_core.__path__, "styleclip_core."):
    importlib.import_module(module.name)
"""
ABOVE = (
    "prefect", "fsspec", "s3fs", "pandas", "pyarrow", "styleclip", "clip", "open_clip", "transformers",
)  # fmt: skip


def _import_without(*absent: str) -> subprocess.CompletedProcess[str]:
    code = PROBE.format(absent=set(absent))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_core_imports_without_prefect_storage_or_clip():
    result = _import_without(*ABOVE)
    assert result.returncode == 0, result.stderr


def test_bounds_hold_where_annotated_types_is_not_installed():
    # a machine that was set up for torch alone; where the package is, pydantic reads the same bounds from it
    check = """
from styleclip_core.settings.relevance import RelevanceSettings
RelevanceSettings()
for wrong in ({"strength": 0.0}, {"batch_size": 3}, {"tolerance": -1.0}, {"minimum": 1}):
    try:
        RelevanceSettings(**wrong)
    except ValueError as error:
        print(error)
"""
    without, usual = (
        subprocess.run(
            [sys.executable, "-c", code + check], capture_output=True, text=True, check=True
        ).stdout
        for code in (PROBE.format(absent={"annotated_types", "pydantic"}), "")
    )
    assert without == usual
    assert len(usual.splitlines()) == 4


@pytest.mark.parametrize("needed", ["torch", "safetensors"])
def test_the_probe_can_fail(needed):
    result = _import_without(needed)
    assert result.returncode != 0
    assert f"ModuleNotFoundError: {needed}" in result.stderr


def test_public_names_exist():
    import styleclip_core

    assert all(hasattr(styleclip_core, name) for name in styleclip_core.__all__)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _declared() -> dict[str, set[str]]:
    """Return the distributions of the core, as ``""``, and of each extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    return {
        extra: {_normal(re.match(r"[\w.-]+", each)[0]) for each in needed} for extra, needed in groups.items()
    }


@functools.cache
def _distributions() -> dict[str, list[str]]:
    return packages_distributions()


def _imported(source: str) -> set[str]:
    """Return the distributions that a module imports, of those that are neither Python's nor ours."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {each.name.split(".")[0] for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    by_name = _distributions()
    others = found - sys.stdlib_module_names - OURS
    return {_normal(by_name.get(name, [name])[0]) for name in others}


def _imported_under(*folders: str) -> set[str]:
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return set().union(*(_imported(path.read_text()) for path in files))


def test_the_core_imports_what_it_declares_and_nothing_else():
    declared = _declared()
    assert (
        _imported_under("styleclip_core")
        == (declared[""] | declared["openclip"] | declared["heic"]) - OF_OTHERS
    )


def test_the_pipeline_and_its_extras_import_what_they_declare_and_nothing_else():
    declared = _declared()
    imported = _imported_under("tasks", "flows", "styleclip_cli", "data")
    extras = declared["pipeline"] | declared["ray"] | declared["video"]
    assert imported - declared[""] == extras - OF_OTHERS


def test_what_only_an_extra_brings_is_imported_in_its_place_alone():
    declared = _declared()
    for extra, place in (("ray", "flows/on_ray.py"), ("video", "tasks/editing/videos.py")):
        files = [path for layer in LAYERS for path in (ROOT / layer).rglob("*.py")]
        users = {path for path in files if _imported(path.read_text()) & declared[extra]}
        assert {path.relative_to(ROOT).as_posix() for path in users} == {place}
    core = [path for path in (ROOT / "styleclip_core").rglob("*.py")]
    users = {path.stem for path in core if _imported(path.read_text()) & declared["openclip"]}
    assert users == {"clip_sources", "clip_open_clip", "clip_transformers"}
    users = {path.stem for path in core if _imported(path.read_text()) & declared["heic"]}
    assert users == {"images"}


def test_tests_and_benchmarks_import_what_some_extra_declares():
    beside = {_normal(path.stem) for path in (ROOT / "tests").rglob("*.py")}  # imported from their folder
    assert _imported_under("tests", "benchmarks") - beside <= set().union(*_declared().values())


def test_an_import_that_is_not_declared_would_be_seen():
    assert _imported("import os, aiohttp\nfrom PIL import Image\nfrom . import own\nimport styleclip") == {
        "aiohttp", "pillow",
    }  # fmt: skip
