"""What edited images are written as."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Ge
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from styleclip_core.options import NamedIfChanged, Says, parameters
from styleclip_core.settings.saving import SavingSettings

Form = Literal["images", "webdataset", "parquet"]
PACKED: dict[Form, str] = {"webdataset": ".tar", "parquet": ".parquet"}


@dataclass(frozen=True, config=ConfigDict(extra="forbid", hide_input_in_errors=True))
class Saving(SavingSettings):
    """What edited images are written as: format, size, and loose or packed."""

    to: Annotated[
        Form, NamedIfChanged(),
        Says("images (a file each), or per shard and edit a tar (webdataset) or a table (parquet)"),
    ] = "images"  # fmt: skip
    most_mb: Annotated[
        int | None, Ge(1), NamedIfChanged(),
        Says("Most megabytes of images in one tar or table, a larger shard has several; none for any size"),
    ] = None  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.most_mb is not None and self.to == "images":
            raise ValueError("most_mb limits tars and tables; give to webdataset or parquet with it")

    def parameters(self) -> dict[str, Any]:
        """Return what decides the files, by the marks of the fields; nothing where all is as by default."""
        return parameters(self)

    @property
    def packed(self) -> str:
        """Return the ending of the objects that hold many images; empty where each image is one."""
        return PACKED.get(self.to, "")
