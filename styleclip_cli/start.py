"""Where the command begins: the one module that needs nothing but Python, to say what else is missing."""

from __future__ import annotations

import sys

_OURS = {"styleclip", "styleclip_core", "styleclip_cli"}


def run() -> None:
    """Run the command line; where a package is missing, exit with status 2 and say what to install."""
    try:
        from styleclip_cli import main
    except ModuleNotFoundError as error:
        if not (text := remedy(error)):
            raise
        sys.stderr.write(f"error: {text}\n")
        sys.exit(2)
    main.run()


def remedy(error: ModuleNotFoundError) -> str:
    """Say what brings a package that is missing; empty for modules of ours, which no extra brings."""
    package = (error.name or "").partition(".")[0]
    if not package or package in _OURS:
        return ""
    return (
        f"the package {package!r} is not installed, which the command line needs: "
        "pip install 'styleclip-pipeline[pipeline]'"
    )
