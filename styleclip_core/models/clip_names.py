"""What a CLIP is called: the spellings that ``load_clip``, the forms and ``--clip`` understand.

    ViT-B/32                                one of OpenAI's nine
    open_clip:ViT-B-32/laion2b_s34b_b79k    an architecture of open_clip and a tag of its published weights
    open_clip:ViT-B-32@s3://models/own.pt   an architecture of open_clip and weights that lie anywhere
    hf-hub:timm/ViT-B-16-SigLIP             a repository of the Hugging Face hub, or hf-hub:...@REVISION
    s3://models/clip.pt, ./folder           a file of OpenAI's architecture, or a folder with a configuration
    gelu@s3://models/clip.pt                a file of OpenAI's architecture that does not state its activation

This module knows spellings alone: no torch, no storage, and nothing of what open_clip publishes.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from typing import Literal, get_args

from styleclip_core.errors import CheckpointError

Activation = Literal["quickgelu", "gelu"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
OPENAI_NAMES = (
    "RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px",
)  # fmt: skip
OPEN_CLIP, HUB = "open_clip:", "hf-hub:"
# what stands before the place of a file; servers match forms with it too
PREFIXES = r"(?:(?:quickgelu|gelu|open_clip:[^@/]+)@)"
_PREFIXED = re.compile(rf"({PREFIXES})([\s\S]+)")
# what names a weights file and not a network that is published under a name (``ViT-B/32``)
_FILE = re.compile(r"[./~]|[A-Za-z][A-Za-z0-9+.-]*:|.*\.(?:pt|pth|bin|safetensors)$|.*[=?;@#]")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?:@[\w./-]+)?")


@dataclass(frozen=True, slots=True)
class ClipChoice:
    """A CLIP as somebody named it.

    Attributes:
        given: The whole spelling.
        kind: ``"openai"``, ``"open_clip"`` (published weights), ``"hub"``, or ``"place"`` (a file or folder).
        architecture: Of open_clip, if one was named.
        tag: Of open_clip's published weights.
        repository: Of the hub, ``org/name``.
        revision: Of that repository; its newest if empty.
        place: Path or URI of a file or folder.
        activation: What was said of a file that does not state it.
    """

    given: str
    kind: Literal["openai", "open_clip", "hub", "place"]
    architecture: str = ""
    tag: str = ""
    repository: str = ""
    revision: str = ""
    place: str = ""
    activation: Activation | None = None

    def at(self, place: str) -> ClipChoice:
        """Return the same with its weights at another place."""
        before = self.given[: len(self.given) - len(self.place)]
        return replace(self, given=before + place, place=place)


def parse_clip(given: str) -> ClipChoice:
    """Read the spelling of a CLIP; whether there is such a one is found out when it is loaded.

    Raises:
        CheckpointError: If it begins like one of the spellings and is none.
    """
    if given in OPENAI_NAMES:
        return ClipChoice(given, "openai")

    # before what follows: the weights of an architecture may lie at any place
    if found := _PREFIXED.fullmatch(given):
        said = found[1][:-1]
        activation = next((each for each in ACTIVATIONS if each == said), None)
        architecture = "" if activation else said.removeprefix(OPEN_CLIP)
        return ClipChoice(given, "place", architecture, place=found[2], activation=activation)

    if given.startswith(OPEN_CLIP):
        architecture, _, tag = given.removeprefix(OPEN_CLIP).rpartition("/")
        if not architecture or not tag:
            raise CheckpointError(
                f"{given!r} names no weights; write open_clip:ARCHITECTURE/TAG for published ones "
                "(open_clip:ViT-B-32/laion2b_s34b_b79k) or open_clip:ARCHITECTURE@URI for a file"
            )
        return ClipChoice(given, "open_clip", architecture.replace("/", "-"), tag)

    if given.startswith(HUB):
        repository = given.removeprefix(HUB)
        if not _REPOSITORY.fullmatch(repository):
            raise CheckpointError(f"{given!r} names no repository; write hf-hub:ORGANIZATION/NAME")
        name, _, revision = repository.partition("@")
        return ClipChoice(given, "hub", repository=name, revision=revision)

    return ClipChoice(given, "place", place=given)


def is_clip_name(given: str) -> bool:
    """Return whether a CLIP is given by its published name, not as a file or folder."""
    return given.startswith((OPEN_CLIP, HUB)) or not _FILE.match(given)


def clip_place(given: str) -> str:
    """Return where the weights of a CLIP lie; nothing where a name says it.

    Raises:
        CheckpointError: If it begins like one of the spellings and is none.
    """
    choice = parse_clip(given)
    named = choice.kind != "place" or (choice.place == given and is_clip_name(given))
    return "" if named else choice.place


def nearest_names(given: str) -> str:
    """Return a hint at the spellings that somebody may have meant, or nothing."""
    # people write slashes, hyphens, capitals and the pixels of a name as they remember them
    plain = {re.sub(r"[^a-z0-9]", "", name.lower()): name for name in OPENAI_NAMES}
    near = difflib.get_close_matches(re.sub(r"[^a-z0-9]", "", given.lower()), plain, n=3, cutoff=0.75)
    return did_you_mean([plain[each] for each in near])


def did_you_mean(names: list[str]) -> str:
    """Return ``"; did you mean A or B?"``, or nothing where there are no names."""
    return f"; did you mean {' or '.join(names)}?" if names else ""
