"""Anybody's text in Markdown, as Prefect's UI shows it: no markup in a prompt, a key or a message counts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_MOST = 300  # characters of a text
_FIGURE = re.compile(r"[-+\d.,%/e±σ ]*")


def plain(text: object) -> str:
    """Return a text without what would end code or a cell of a table, in one line."""
    shown = "".join(character if character.isprintable() else "?" for character in str(text))
    return shown.replace("`", "'").replace("|", "\\|")[:_MOST]


def code(text: object) -> str:
    """Return a text as code; nothing for an empty one."""
    return f"`{plain(text)}`" if text else ""


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return the lines of a table; figures stand bare, any other text as code.

    Args:
        header: Titles of the columns, which are ours and may hold markup.
        rows: Cells, whoever wrote them.
    """
    lines = [[str(cell) if _FIGURE.fullmatch(str(cell)) else code(cell) for cell in row] for row in rows]
    return [f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *lines]]
