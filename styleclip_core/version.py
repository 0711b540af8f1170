"""Which code this is: the package's version, and the commit where it is known."""

from __future__ import annotations

import os
import re
import subprocess
from functools import cache
from pathlib import Path

import styleclip_core

VARIABLE = "STYLECLIP_COMMIT"  # set where the code lies without its history, as in an image
_GIT = ("git", "--no-optional-locks", "-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false")
_PATIENCE = 10.0  # seconds; a checkout on a slow disk is no reason to wait


@cache
def code_version() -> str:
    """Return the version of the code, e.g. ``0.1.0``, ``0.1.0+1c9a4f7be210`` or ``0.1.0+1c9a4f7be210-dirty``.

    It says what made something and decides nothing: no artifact is named by it.
    """
    commit = os.environ.get(VARIABLE) or _commit(Path(styleclip_core.__file__).parents[1])
    # of a whole hash its beginning is enough
    short = re.sub(r"^([0-9a-f]{12})[0-9a-f]+", r"\1", commit)
    return f"{styleclip_core.__version__}+{short}" if short else styleclip_core.__version__


def _commit(folder: Path) -> str:
    """Return the commit of a git checkout, ``-dirty`` behind it if files differ; empty for other folders."""
    # a package that was installed may lie somewhere below the checkout of another project
    if not (folder / ".git").exists():
        return ""

    # git may be missing, or refuse a checkout that belongs to somebody else
    described = (*_GIT, "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    try:
        done = subprocess.run(described, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
