"""Generators that draw each image of a batch with something of its own, and the files that it is kept in.

What is an image's own is a tuning of the generator (``tuned``) or a residual of its features (``features``).
A style code, a direction or an edit is the same for these generators as for the one that they change.

Shapes: B images, L rows of w_plus, W w_dim.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from styleclip_core.errors import CheckpointError, LayoutMismatchError
from styleclip_core.models.stylegan2 import Generator, GeneratorConfig, Noise
from styleclip_core.style_space import StyleCode, StyleLayout

_HEADER = "styleclip"


class PerImageGenerator(ABC):
    """A generator that draws image b of a batch with what is its own; in all else it is the plain one."""

    def __init__(self, generator: Generator, size: int) -> None:
        self.plain, self._size = generator, size

    def __len__(self) -> int:
        return self._size

    @property
    def config(self) -> GeneratorConfig:
        """Return the architecture."""
        return self.plain.config

    @property
    def layout(self) -> StyleLayout:
        """Return the style layers."""
        return self.plain.layout

    @property
    def fingerprint(self) -> str:
        """Return the content hash of the generator's weights file."""
        return self.plain.fingerprint

    @property
    def num_ws(self) -> int:
        """Return L, the number of rows of w_plus."""
        return self.plain.num_ws

    @property
    def resolution(self) -> int:
        """Return the height of the image in pixels."""
        return self.plain.resolution

    @property
    def image_size(self) -> tuple[int, int]:
        """Return height and width of the image in pixels."""
        return self.plain.image_size

    @property
    def device(self) -> torch.device:
        """Return where the weights are."""
        return self.plain.device

    def map(
        self,
        z: Tensor,
        label: Tensor | None = None,
        *,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
    ) -> Tensor:
        """Map z to w_plus, in which nothing is an image's own. See ``Generator.map``."""
        return self.plain.map(z, label, truncation_psi=truncation_psi, truncation_cutoff=truncation_cutoff)

    def styles(self, w_plus: Tensor) -> StyleCode:
        """Map w_plus to style codes, in which nothing is an image's own. See ``Generator.styles``."""
        return self.plain.styles(w_plus)

    @abstractmethod
    def synthesize(self, styles: StyleCode, *, noise: Noise = "const") -> Tensor:
        """Draw image b of the batch with what is its own; see ``Generator.synthesize``.

        Raises:
            ValueError: If there are not as many codes as images.
        """

    @abstractmethod
    def take(self, index: Tensor) -> Self:
        """Return the generator of some images of the batch, ``[n]`` int64; one may come several times."""

    def _expect(self, styles: StyleCode, what: str) -> None:
        if styles.batch_size != self._size:
            raise ValueError(
                f"there are {styles.batch_size} style codes, but the {what} of {self._size} images; "
                "take() those that are drawn"
            )


AnyGenerator = Generator | PerImageGenerator


def write_own(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """Return the content of a safetensors file; the header says ``format`` and ``generator``."""
    ready = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    content: bytes = safetensors.torch.save(ready, {_HEADER: json.dumps(header, sort_keys=True)})
    return content


def read_own(
    content: bytes, generator: Generator, *, what: str, expected: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return header and tensors of what ``write_own`` wrote.

    Args:
        content: Of the file.
        generator: Whose it has to be.
        what: What messages call it, e.g. "tuning of a generator".
        expected: The format that the header has to name.

    Raises:
        CheckpointError: If the content is damaged or of another format.
        LayoutMismatchError: If it belongs to another generator.
    """
    # a header can nest as deep as it likes: RecursionError is damage too
    try:
        tensors = safetensors.torch.load(content)
        length = int.from_bytes(content[:8], "little")
        header = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][_HEADER])
    except (safetensors.SafetensorError, LookupError, ValueError, TypeError, RecursionError) as error:
        raise damaged(what, " ".join(str(error).split())[:120]) from error

    if not isinstance(header, dict):
        raise damaged(what, "its header is no object")
    if header.get("format") != expected:
        raise CheckpointError(
            f"this is no {what} (format {header.get('format')!r:.40}, expected {expected!r}); delete it, and "
            "the next inversion makes it again"
        )

    # the same sizes under other weights would draw something, and nobody would see that it is wrong
    if header.get("generator") != generator.fingerprint:
        raise of_another(what, header.get("generator"), generator)
    return header, tensors


def of_another(what: str, found: object, generator: Generator) -> LayoutMismatchError:
    """Return the error of what belongs to another generator."""
    return LayoutMismatchError(
        f"the {what.partition(' ')[0]} is of generator {found!r:.14}, not of {generator.fingerprint!r:.14}; "
        "invert the image with the generator that edits it"
    )


def damaged(what: str, reason: str) -> CheckpointError:
    """Return the error of a file that is not as it was written."""
    return CheckpointError(
        f"the {what} is damaged: {reason}; delete it, and the next inversion makes it again"
    )
