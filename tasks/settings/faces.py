"""How faces are found in photographs, cut out, and put back."""

from __future__ import annotations

from pydantic import Field, model_validator

from styleclip.tasks.settings.settings import Settings
from styleclip.tasks.settings.uris import UriOrNone


class FaceSource(Settings):
    """Where faces come from: a detector, or landmarks that somebody has already."""

    detector: UriOrNone = Field(None, description="URI of the face detector's weights (.safetensors)")
    landmarks: UriOrNone = Field(
        None, description="URI of a table of landmarks by image key (.parquet, .csv or .json)"
    )
    min_score: float = Field(0.9, ge=0, le=1, description="Lowest score of a face that a detector finds")

    @model_validator(mode="after")
    def _check(self) -> FaceSource:
        if (self.detector is None) == (self.landmarks is None):
            raise ValueError("give the weights of a detector or a table of landmarks, one of them")
        return self


class Alignment(Settings):
    """How faces are cut out of photographs."""

    output_size: int = Field(
        256, ge=16, le=4096, description="Side of an aligned face in pixels: 256 for e4e, 1024 as FFHQ"
    )
    transform_size: int | None = Field(
        None, ge=16, le=8192, description="Side at which it is sampled, 4096 in FFHQ; none for the output's"
    )
    min_size: int = Field(
        32, ge=0, description="Smallest face, in pixels of the photograph; smaller ones are left as they are"
    )
    max_faces: int | None = Field(
        None, ge=1, description="Faces per photograph, the largest first; none for all"
    )


class Pasting(Settings):
    """How edited faces are put back into photographs."""

    feather: float = Field(
        0.08, gt=0, le=0.5, description="Width of the fade at the edge of a face, as a fraction of its side"
    )
    variant: tuple[str, ...] = Field(
        (),
        description="Of a batch's manifest, a variant or an edit to put back; all of them if none is given",
    )
