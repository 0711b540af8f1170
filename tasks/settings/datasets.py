"""How a data set is read, and which of its images count."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from styleclip.tasks.settings.settings import Settings
from styleclip.tasks.settings.uris import OptionalUri, Uri

Form = Literal["auto", "images", "list", "tars", "parquet"]


class DataSet(Settings):
    """How the images of a place are read, and which of them count."""

    form: Form = Field(
        "auto",
        description="What lies there: images (objects), list (a table of keys), tars (WebDataset shards), "
        "parquet (rows with bytes); auto finds it out",
    )
    column: str = Field(
        "", description="Column of a list's keys, or of a table's bytes; found by its usual names if empty"
    )
    keys_under: OptionalUri = Field(
        "", description="URI of the prefix that a list's keys are relative to; the list's own folder if empty"
    )
    include: tuple[str, ...] = Field(
        (), description="Keys that count, as glob patterns, e.g. faces/**; none for all"
    )
    exclude: tuple[str, ...] = Field((), description="Keys that do not count, as glob patterns")
    where: str = Field(
        "", description="Condition on columns, in SQL, e.g. width >= 512 and caption not like '%hat%'"
    )
    tables: tuple[Uri, ...] = Field(
        (), description="URIs of Parquet tables whose columns a condition may name, joined on image_key"
    )
    sample: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of the images to take, the same ones for ever, by their keys' hash",
    )
    limit: int | None = Field(None, ge=1, description="Images to take, the first ones by key; none for all")

    @property
    def is_subset(self) -> bool:
        """Return whether some images may not count."""
        return bool(self.include or self.exclude or self.where or self.sample < 1 or self.limit)
