"""What the code says it is: the package's version, and the commit of its checkout."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import styleclip_core

CORE = Path(styleclip_core.__file__).parent
VERSION = styleclip_core.__version__


@pytest.fixture
def checkout(tmp_path):
    """A checkout of what the version is told from, with hooks and a monitor that would leave a trace."""
    package = tmp_path / "styleclip_core"
    package.mkdir()
    for name in ("__init__.py", "version.py"):
        shutil.copy(CORE / name, package)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "styleclip_core")
    git(tmp_path, "commit", "--quiet", "--message", "one")

    trace = tmp_path / "hook"
    trace.write_text(f"#!/bin/sh\ntouch {tmp_path / 'traced'}\n")
    trace.chmod(0o755)
    git(tmp_path, "config", "core.fsmonitor", str(trace))
    git(tmp_path, "config", "core.hooksPath", str(tmp_path))
    (tmp_path / "post-index-change").symlink_to(trace)
    return tmp_path


def git(folder, *arguments) -> str:
    who = ("-c", "user.name=n", "-c", "user.email=e")
    done = subprocess.run(
        ["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )  # fmt: skip
    return done.stdout.strip()


def told(folder, **environment) -> str:
    """Return the version that the code in a folder says."""
    inherited = {name: value for name, value in os.environ.items() if name != "STYLECLIP_COMMIT"}
    done = subprocess.run(
        [sys.executable, "-B", "-c", "from styleclip_core import version; print(version.code_version())"],
        cwd=folder, env=inherited | {"PYTHONPATH": str(folder)} | environment, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.strip()


def test_a_checkout_names_its_commit_and_says_what_is_changed(checkout):
    commit = git(checkout, "rev-parse", "--short=12", "HEAD")
    assert told(checkout) == f"{VERSION}+{commit}"
    (checkout / "beside.txt").write_text("not of the code")
    assert told(checkout) == f"{VERSION}+{commit}"
    with (checkout / "styleclip_core" / "version.py").open("a") as file:
        file.write("# changed\n")
    assert told(checkout) == f"{VERSION}+{commit}-dirty"
    assert not (checkout / "traced").exists()  # nothing that the checkout configures was run


def test_code_without_a_history_says_what_the_environment_does(tmp_path):
    for name in ("__init__.py", "version.py"):
        (tmp_path / "site" / "styleclip_core").mkdir(parents=True, exist_ok=True)
        shutil.copy(CORE / name, tmp_path / "site" / "styleclip_core")
    git(tmp_path, "init", "--quiet")  # of a project that has the package installed somewhere below
    assert told(tmp_path / "site") == VERSION
    assert told(tmp_path / "site", STYLECLIP_COMMIT="") == VERSION
    assert told(tmp_path / "site", STYLECLIP_COMMIT="a" * 40) == f"{VERSION}+{'a' * 12}"
    assert told(tmp_path / "site", PATH="") == VERSION


def test_a_library_is_imported_without_torch_until_a_network_is_asked_for():
    look = (
        "import sys, styleclip_core, styleclip_core.errors, styleclip_core.options; first = 'torch' in "
        "sys.modules; from styleclip_core import load_generator; print(first, 'torch' in sys.modules, "
        "load_generator.__name__, 'load_clip' in dir(styleclip_core), hasattr(styleclip_core, 'other'))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", look], cwd=CORE.parent, check=True, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.stdout.split() == ["False", "True", "load_generator", "True", "False"]
