"""What decides an artifact, as one value: it names the artifact's folder and is written into its files."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from styleclip.tasks.storage import join
from styleclip_core.errors import StyleCLIPError
from styleclip_core.version import code_version


class ChangedInputError(StyleCLIPError):
    """What a run reads has been replaced since it began, so its results would lie under a wrong name."""


@dataclass(frozen=True)
class Provenance:
    """What made a table; stored in the file's metadata.

    Attributes:
        kind: What a row is about, e.g. ``"relevance"``.
        fingerprint: Name of the inputs and settings.
        step: Step that made it.
        version: Version of the step's meaning.
        parameters: Settings, as JSON values.
        inputs: Fingerprints or URIs of what went in.
        generator: Content hash of the generator, if one took part.
        clip: Content hash of the CLIP, if one took part.
        code_version: Version of the code, see ``styleclip_core.version``; it decides nothing.
    """

    kind: str
    fingerprint: str
    step: str
    version: str
    parameters: Mapping[str, Any]
    inputs: Mapping[str, str]
    generator: str
    clip: str
    code_version: str


@dataclass(frozen=True)
class Recipe:
    """What decides an artifact; it names the artifact's folder and is written into its files.

    Attributes:
        step: Step that makes it.
        version: Version of the step's meaning.
        parameters: Settings that decide the content, as JSON values.
        inputs: Fingerprints of what goes in.
        generator: Content hash of the generator, if one takes part.
        clip: Content hash of the CLIP, if one takes part.
    """

    step: str
    version: str
    parameters: Mapping[str, Any]
    inputs: Mapping[str, str]
    generator: str = ""
    clip: str = ""

    @property
    def fingerprint(self) -> str:
        """Return the artifact's name, 32 hex digits.

        Raises:
            ValueError: If a parameter is no JSON value, or not a finite number.
        """
        return fingerprint(self.step, self.version, self.parameters, self.inputs)

    def folder(self, workspace: str, kind: str) -> str:
        """Return where the artifact lies: ``<workspace>/<kind>/<fingerprint>``."""
        return artifact_uri(workspace, kind, self.fingerprint)

    def made(self, kind: str, inputs: Mapping[str, str] | None = None, /, **about: object) -> Provenance:
        """Return what a table says about itself.

        Args:
            kind: What a row is about.
            inputs: URIs to name beside the fingerprints, or in their place.
            about: What was found while it was made, beside the parameters.
        """
        return Provenance(
            kind=kind,
            fingerprint=self.fingerprint,
            step=self.step,
            version=self.version,
            parameters={**self.parameters, **about},
            inputs=self.inputs if inputs is None else inputs,
            generator=self.generator,
            clip=self.clip,
            code_version=code_version(),
        )


def fingerprint(step: str, version: str, parameters: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Return the name of a step's result, 32 hex digits.

    Raises:
        ValueError: If a parameter is no JSON value, or not a finite number.
    """
    content = {"step": step, "version": version, "parameters": parameters, "inputs": inputs}
    return hashlib.sha256(_canonical(content).encode()).hexdigest()[:32]


def _canonical(value: object) -> str:
    _check_json(value, "parameters")
    # equal values give one text, in whatever order they came: the hash is of its bytes
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _check_json(value: object, where: str) -> None:
    if isinstance(value, Mapping):
        for name, item in value.items():
            if not isinstance(name, str):
                raise ValueError(f"{where} has a key that is no text: {name!r}")
            _check_json(item, f"{where}.{name}")
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            _check_json(item, f"{where}[{number}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}; a fingerprint needs finite numbers")
    elif not isinstance(value, (str, int, float, bool, type(None))):
        raise ValueError(f"{where} is a {type(value).__name__}; a fingerprint needs JSON values")


def artifact_uri(workspace: str, kind: str, print_: str) -> str:
    """Return the folder of an artifact."""
    return join(workspace, kind, print_)


def part_name(number: int, total: int) -> str:
    """Return the file name of one part, e.g. ``part-00012-of-00096.parquet``."""
    return f"part-{number:05d}-of-{total:05d}.parquet"
