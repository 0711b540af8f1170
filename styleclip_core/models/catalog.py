"""The published models: names, places, hashes, licences, and what belongs together.

The table is ``catalog.toml`` beside this module; its head says which origins of a hash are good
enough. This module reads and checks it, and knows nothing of downloading.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

from styleclip_core.errors import UnknownModelError

KINDS = (
    "generator", "clip", "encoder", "identity", "perceptual", "mapper", "relevance", "statistics", "latents",
)  # fmt: skip
ORIGINS = {
    "publisher": "stated by the publisher",
    "agreement": "not stated by the publisher; two unrelated projects recorded the same",
}
_HASH = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]*")


@dataclass(frozen=True, slots=True)
class License:
    """What a model may be used for, as its publisher says.

    Attributes:
        name: Short name.
        url: Where its text is.
        non_commercial: Whether commercial use is excluded, by it or by what the model is made from.
    """

    name: str
    url: str
    non_commercial: bool


@dataclass(frozen=True, slots=True)
class PublishedModel:
    """One file that somebody else publishes.

    Attributes:
        name: Name in the catalogue.
        kind: One of ``KINDS``.
        description: What it is, in a line.
        license: What it may be used for.
        file: Name of the file.
        url: Where its bytes are.
        page: Where a person can read about it, or download it by hand.
        sha256: What its bytes must hash to; None where no trustworthy value is known.
        sha256_origin: A key of ``ORIGINS``; empty without ``sha256``.
        reported_sha256: A hash that one project recorded: to compare with, not to rely on.
        size: Bytes, if known.
        resolution: Side of the generator's images, or of CLIP's or the identity network's input [px].
        mapping_layers: Depth of a generator's mapping network.
        pairs_with: Names of what it belongs with; ``partners`` adds those that name it.
        notes: What its user should know.
        verified: Whether the URL was read as a link, rather than put together from paths.
    """

    name: str
    kind: str
    description: str
    license: License
    file: str
    url: str
    page: str
    sha256: str | None = None
    sha256_origin: str = ""
    reported_sha256: str | None = None
    size: int | None = None
    resolution: int | None = None
    mapping_layers: int | None = None
    pairs_with: tuple[str, ...] = ()
    notes: str = ""
    verified: bool = True

    def __post_init__(self) -> None:
        hashes = [each for each in (self.sha256, self.reported_sha256) if each is not None]

        # all that is wrong at once: who mends the table should not have to run it five times
        wrong = [
            what
            for what, right in {
                "name": _NAME.fullmatch(self.name) is not None,
                "kind": self.kind in KINDS,
                "file": _FILE.fullmatch(self.file) is not None,
                "sha256": all(_HASH.fullmatch(each) for each in hashes),
                "sha256_origin": self.sha256_origin in (ORIGINS if self.sha256 else ("",)),
                "size": self.size is None or self.size > 0,
            }.items()
            if not right
        ]

        if wrong:
            raise ValueError(f"catalogue entry {self.name!r}: {', '.join(wrong)} cannot be right")


@cache
def catalog() -> Mapping[str, PublishedModel]:
    """Return all published models by name, in the table's order.

    Raises:
        ValueError: If the table is malformed: an unknown field, a name that is taken twice or that
            nothing has, a hash without origin.
    """
    text = resources.files("styleclip_core.models").joinpath("catalog.toml").read_text(encoding="utf-8")
    return MappingProxyType(parse_catalog(text))


def parse_catalog(text: str) -> dict[str, PublishedModel]:
    """Read a table of published models.

    Raises:
        ValueError: If it is malformed.
    """
    table = tomllib.loads(text)
    licenses = {name: License(**values) for name, values in table["licenses"].items()}

    models: dict[str, PublishedModel] = {}
    for row in table["models"]:
        model = _model(row, licenses)
        if model.name in models:
            raise ValueError(f"catalogue entry {model.name!r} is there twice")
        models[model.name] = model

    # only now are all names known: a pair may stand before its partner
    for model in models.values():
        missing = set(model.pairs_with) - set(models)
        if missing:
            raise ValueError(f"catalogue entry {model.name!r} pairs with {sorted(missing)}, which nothing is")

    return models


def _model(row: dict[str, Any], licenses: Mapping[str, License]) -> PublishedModel:
    values = dict(row)
    drive = values.pop("drive", None)
    if drive:
        values["url"] = f"https://drive.usercontent.google.com/download?id={drive}&export=download&confirm=t"
        values["page"] = f"https://drive.google.com/file/d/{drive}/view"

    # a catalogue that is read by everybody must not lead anybody off to an unencrypted place
    if not all(str(values.get(each, "")).startswith("https://") for each in ("url", "page")):
        raise ValueError(f"catalogue entry {row.get('name')!r} has a url or page that is not https://")

    # a misspelt field would be a fact that silently got lost
    unknown = set(values) - {each.name for each in fields(PublishedModel)}
    if unknown or values.get("license") not in licenses:
        what = f"has no such field: {sorted(unknown)}" if unknown else "names no licence of the table"
        raise ValueError(f"catalogue entry {row.get('name')!r} {what}")

    values["license"] = licenses[values["license"]]
    values["pairs_with"] = tuple(values.get("pairs_with", ()))
    return PublishedModel(**values)


def find_model(name: str) -> PublishedModel:
    """Return a published model by its name; OpenAI's own CLIP names are understood too.

    Raises:
        UnknownModelError: If there is none.
    """
    models = catalog()
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")

    # the catalogue's own name, the same with other punctuation, and OpenAI's "ViT-B/32"
    for candidate in (name, slug, f"clip-{slug}"):
        if candidate in models:
            return models[candidate]

    near = difflib.get_close_matches(slug, models, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise UnknownModelError(
        f"no published model is called {name!r}{hint} (styleclip models list shows all names)"
    )


def partners(model: PublishedModel) -> tuple[str, ...]:
    """Return the names of all models that a model must be used with for its edits to mean anything."""
    naming = [other.name for other in catalog().values() if model.name in other.pairs_with]
    return tuple(dict.fromkeys([*model.pairs_with, *naming]))
