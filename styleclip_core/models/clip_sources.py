"""Where the CLIPs of open_clip and transformers come from: configurations, weights and tokenizers as files.

A source is a folder, a repository of the Hugging Face hub, or an architecture that open_clip has with weights
of its own publishing or of any place. Configurations of folders and repositories are hostile: what they
say is checked against what is known, and nothing that they name is imported, run or fetched but a
tokenizer's data.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from styleclip_core.errors import CheckpointError
from styleclip_core.files.checkpoint import DAMAGE, file_sha256, guarded, printable
from styleclip_core.models.clip_files import describe_other, read_clip_file
from styleclip_core.models.clip_names import ClipChoice, did_you_mean

OPEN_CLIP_CONFIG, TRANSFORMERS_CONFIG = "open_clip_config.json", "config.json"
WEIGHTS = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
    "model.safetensors", "pytorch_model.bin",
)  # fmt: skip
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model",
)  # fmt: skip
FILES = (
    OPEN_CLIP_CONFIG, TRANSFORMERS_CONFIG, "preprocessor_config.json", "processor_config.json",
    *TOKENIZER_FILES,
)  # fmt: skip
_MAX_CONFIG = 1 << 20
_T = TypeVar("_T")


class Source(Protocol):
    """A folder, here or on the hub."""

    name: str

    def find(self, file: str) -> Path | None:
        """Return the path of one of its files; None where it has none of that name."""
        ...

    def tokenizer(self) -> str:
        """Return the path of the folder with its tokenizer's files, or nothing where it has none."""
        ...

    def missing(self, what: str) -> CheckpointError:
        """Return the error for what it lacks."""
        ...


class Folder:
    """A folder of this machine."""

    def __init__(self, path: Path) -> None:
        self._path, self.name = path, str(path)

    def find(self, file: str) -> Path | None:
        """Return the path of a file in it, if there is one."""
        path = self._path / file
        return path if path.is_file() else None

    def tokenizer(self) -> str:
        """Return the folder, if a tokenizer lies in it."""
        return self.name if any(self.find(each) for each in TOKENIZER_FILES) else ""

    def missing(self, what: str) -> CheckpointError:
        """Return the error for what it lacks."""
        return CheckpointError(
            f"there is no {what} in {self.name}; give the whole folder, as it was published"
        )


class Repository:
    """A repository of the Hugging Face hub; its files are fetched into the hub's own cache, once."""

    def __init__(self, name: str, revision: str) -> None:
        self.name, self._failure = f"hf-hub:{name}", ""
        self._repository, self._revision = name, revision

    def find(self, file: str) -> Path | None:
        """Fetch a file of it, if there is one.

        Raises:
            CheckpointError: If the hub says that there is no such repository, or that it is not for us.
        """
        from huggingface_hub import errors, hf_hub_download

        try:
            return Path(hf_hub_download(self._repository, file, revision=self._revision or None))
        except errors.LocalEntryNotFoundError as error:  # not in the cache, and the hub does not answer
            self._failure = str(error)
            return None
        except errors.EntryNotFoundError:
            return None
        except (errors.HfHubHTTPError, errors.HFValidationError, OSError, ValueError) as error:
            raise self._unreachable(str(error)) from error

    def tokenizer(self) -> str:
        """Return the folder of its tokenizer's files, fetched, if it has some."""
        found = [self.find(each) for each in (TRANSFORMERS_CONFIG, *TOKENIZER_FILES)]
        return next((str(each.parent) for each in reversed(found) if each), "") if any(found[1:]) else ""

    def missing(self, what: str) -> CheckpointError:
        """Return the error for what it lacks, or for why that cannot be known."""
        if self._failure:
            return self._unreachable(self._failure)
        return CheckpointError(f"there is no {what} in {self.name}; give a repository of a CLIP")

    def _unreachable(self, reason: str) -> CheckpointError:
        return CheckpointError(
            f"{self.name} cannot be downloaded ({short(reason)}); check the name and the network, set "
            "HF_TOKEN if it is not open to all, or give the folder of its files"
        )


def load_published(choice: ClipChoice) -> tuple[Any, dict[str, object]]:
    """Build the network of a CLIP that open_clip or transformers has the architecture of.

    Returns:
        The network, and all that decides what it computes, as plain values.

    Raises:
        CheckpointError: If a package is missing, the name is unknown, it cannot be downloaded, or the
            configuration or weights are damaged, hostile or do not fit each other.
    """
    if choice.architecture:
        return _of_open_clip(choice)
    if choice.activation:
        raise CheckpointError(
            f"{choice.place} is a folder, whose configuration says the activation; give it without "
            f"'{choice.activation}@'"
        )

    source: Source = (
        Folder(Path(choice.place))
        if choice.kind == "place"
        else Repository(choice.repository, choice.revision)
    )
    if config := source.find(OPEN_CLIP_CONFIG):
        needed(choice.given, "open_clip")
        from styleclip_core.models.clip_open_clip import from_config

        return from_config(source, read_config(config), weights_of(source))
    if config := source.find(TRANSFORMERS_CONFIG):
        needed(choice.given, "transformers")
        from styleclip_core.models.clip_transformers import from_transformers

        return from_transformers(source, read_config(config), weights_of(source))
    raise source.missing(f"{OPEN_CLIP_CONFIG} or {TRANSFORMERS_CONFIG}")


def _of_open_clip(choice: ClipChoice) -> tuple[Any, dict[str, object]]:
    needed(choice.given, "open_clip")
    from open_clip import factory, pretrained

    from styleclip_core.models.clip_open_clip import from_architecture

    name = choice.architecture
    config = factory.get_model_config(name) if name in factory.list_models() else None
    if config is None:
        near = difflib.get_close_matches(name, factory.list_models(), n=3)
        raise CheckpointError(f"open_clip has no architecture {name!r}{did_you_mean(near)}")
    if choice.place:
        return from_architecture(name, config, {}, Path(choice.place))

    # what the weights were trained with is said by the tag, not by the architecture's name
    tags = pretrained.list_pretrained_tags_by_model(name)
    published = pretrained.get_pretrained_cfg(name, choice.tag)
    if not published:
        raise CheckpointError(_unknown_tag(choice, tags))
    try:
        weights = Path(pretrained.download_pretrained(published))
    except Exception as error:  # it raises what urllib, the hub and their transports do
        raise CheckpointError(
            f"{choice.given} cannot be downloaded ({short(str(error))}); check the network, or give its file "
            f"as open_clip:{name}@PATH"
        ) from error
    return from_architecture(name, config, published, weights)


def _unknown_tag(choice: ClipChoice, tags: list[str]) -> str:
    # people leave the end of a tag away
    wanted = choice.tag.lower().replace("-", "_")
    near = [tag for tag in tags if wanted in tag] or difflib.get_close_matches(wanted, tags, n=3)
    hint = did_you_mean([f"open_clip:{choice.architecture}/{tag}" for tag in near[:3]])
    there = f"it has {', '.join(tags)}" if tags else f"give a file, as open_clip:{choice.architecture}@PATH"
    return f"open_clip publishes no weights {choice.tag!r} of {choice.architecture}{hint}; {there}"


def needed(name: str, package: str) -> None:
    """Import a package of the extra ``openclip``.

    Raises:
        CheckpointError: If it is not installed.
    """
    try:
        __import__(package)
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"{name} needs {package}, and there is no module {error.name}; install it with "
            "pip install 'styleclip-pipeline[openclip]'"
        ) from error


def weights_of(source: Source) -> Path:
    """Return the weights of a folder or repository.

    Raises:
        CheckpointError: If there are none.
    """
    for name in WEIGHTS:
        if path := source.find(name):
            return path
    raise source.missing(f"weights file ({', '.join(WEIGHTS)})")


def read_state_of(path: Path, what: str, fit: Callable[[dict[str, Any]], _T]) -> tuple[_T, str]:
    """Read a weights file and put its tensors into a network.

    Args:
        path: The file.
        what: What it is taken for.
        fit: Builds the network around a state dict.

    Returns:
        What ``fit`` returns, and the file's SHA-256.

    Raises:
        CheckpointError: If the file is missing, damaged or hostile, or does not fit.
    """
    with guarded(path):
        state, digest = read_clip_file(path).state, file_sha256(path)
        try:
            return fit(state), digest
        except (CheckpointError, AssertionError, *DAMAGE) as error:
            held = describe_other(state)[0] or "of another architecture"
            raise CheckpointError(
                f"{path} is no {what}: {short(str(error))}; the file seems to be {held}"
            ) from error


def read_config(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: If it is none, or longer than any configuration.
    """
    with guarded(path):
        if path.stat().st_size > _MAX_CONFIG:
            raise CheckpointError(f"{path} is longer than any configuration; fetch it again")
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise CheckpointError(f"{path} holds no configuration; fetch it again")
        return found


def short(text: str) -> str:
    """Return a text of others in one line that is fit for an error."""
    return printable(" ".join(text.split()))[:240]
