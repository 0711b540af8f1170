"""Which edits become pairs of a training set, and how they are written."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from styleclip.tasks.settings.settings import Settings
from styleclip.tasks.settings.uris import OptionalUri, Prompt


class Pairing(Settings):
    """Which edits of a batch become pairs, and in which form."""

    to: Literal["parquet", "webdataset"] = Field(
        "parquet", description="Form of the set: Parquet with bytes, as datasets reads it, or tar shards"
    )
    instruction: tuple[Prompt, ...] = Field(
        ("make it {target}",),
        min_length=1,
        description="What is to be done, with columns in braces; of several, each pair gets one by its hash",
    )
    before: Literal["inversion", "photograph"] = Field(
        "inversion", description="What the edited image is beside: what the generator drew, or the photograph"
    )
    where: str = Field(
        "", description="Which edits, a condition in SQL, e.g. directional > 0.2 and identity > 0.7"
    )
    evaluation: OptionalUri = Field(
        "", description="URI of an evaluation.parquet of the batch, whose columns a condition may name, too"
    )
    validation: float = Field(
        0.05, ge=0, lt=1, description="Share of the photographs for validation, by their keys' hash"
    )
    pairs_per_file: int = Field(1000, ge=1, description="Pairs of one file, at most")
