"""A page for every public module of ``styleclip_core``, made while the site is built: no list is kept."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_ROOT = Path(__file__).parents[2]
_FOLDERS = {"": "method", "models": "networks", "settings": "settings", "files": "weights-files"}
_LOADED = re.compile(r"""<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)=["']?((?:https?:)?//[^"' >]+)""")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the modules, in a folder for each package.

    Raises:
        KeyError: If there is a package that has no folder yet.
    """
    package = _ROOT / "styleclip_core"
    for path in sorted(package.rglob("*.py")):
        if path.stem.startswith("_"):
            continue

        # the text is a directive alone: mkdocstrings puts what it reads in its place
        inside = path.relative_to(package)
        folder = _FOLDERS["/".join(inside.parts[:-1])]
        name = ".".join(("styleclip_core", *inside.with_suffix("").parts))
        text = f"---\ntitle: {path.stem}\n---\n\n::: {name}\n"
        files.append(File.generated(config, f"{folder}/{path.stem}.md", content=text))
    return files


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Let a page pass that a browser shows without a network.

    Raises:
        PluginError: If it would load something from elsewhere, a font or a script say.
    """
    if elsewhere := _LOADED.findall(output):
        raise PluginError(
            f"{page.file.src_uri} loads {', '.join(elsewhere)}; bring it along, or leave it out"
        )
    return output
