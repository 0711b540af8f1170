"""How edited images become files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from styleclip_core.bounds import Ge, Le
from styleclip_core.options import NamedIfChanged, Says, check

Format = Literal["png", "jpeg", "webp", "webp-lossless", "avif"]
ENDINGS: dict[Format, str] = {
    "png": ".png", "jpeg": ".jpg", "webp": ".webp", "webp-lossless": ".webp", "avif": ".avif",
}  # fmt: skip
LOSSY: dict[Format, int] = {"jpeg": 95, "webp": 90, "avif": 80}  # with the quality where none is asked for


@dataclass(frozen=True, slots=True)
class SavingSettings:
    """In which format, how well, and how large."""

    format: Annotated[
        Format, NamedIfChanged(),
        Says("png, jpeg, webp, webp-lossless (every pixel, as png, much faster) or avif"),
    ] = "png"  # fmt: skip
    quality: Annotated[
        int | None, Ge(1), Le(100), NamedIfChanged(),
        Says("Quality of jpeg, webp and avif; none for 95, 90 and 80"),
    ] = None  # fmt: skip
    size: Annotated[
        int | None, Ge(16), Le(16384), NamedIfChanged(),
        Says("Long side of the file in pixels; none for the generator's own"),
    ] = None  # fmt: skip

    def __post_init__(self) -> None:
        check(self)
        if self.quality is not None and self.format not in LOSSY:
            raise ValueError(f"{self.format} keeps every pixel and has no quality; leave it out")

    @property
    def ending(self) -> str:
        """Return what the names of files end in, e.g. ``.jpg``."""
        return ENDINGS[self.format]
