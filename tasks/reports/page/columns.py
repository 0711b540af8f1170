"""Folders of images that a page shows, and where their thumbnails lie."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from PIL import Image
from pydantic import BaseModel, ConfigDict

from styleclip.tasks.artifacts import Provenance, Recipe
from styleclip.tasks.artifacts.outcomes import OutcomeLog
from styleclip.tasks.photographs.reading import StoredReader, read_image
from styleclip.tasks.reports.page.links import parent
from styleclip.tasks.storage import join
from styleclip_core.images import decode_image

STEP, VERSION = "thumbnails", "2"
SIDE = 160


class Shown(NamedTuple):
    """An image of a batch: its key, the name of what is made of it, its version, and where it lies."""

    key: str
    name: str
    source: str
    place: str = ""


class Column(BaseModel):
    """A folder of images that all have a thumbnail.

    Attributes:
        prefix: URI of the folder.
        recipe: Of the thumbnails.
        folder: Where those lie.
        named_as: Whether images lie under their photographs' own keys, or under the names made of them.
        versioned: Whether the version is known in which each was listed.
        fills: Whether an image is cropped to the shape of the generator's, as its inversion sees it.
        by_image: Whether images are of one edit each, which another column of the data set replaces.
    """

    model_config = ConfigDict(frozen=True)

    prefix: str
    recipe: Recipe
    folder: str
    named_as: str
    versioned: bool = False
    fills: bool = False
    by_image: bool = False

    def reader(self, images: Sequence[Shown]) -> Callable[[Shown], Image.Image]:
        """Return what reads images of a batch, those that lie in one tar or table together.

        What it raises is the image's own fault, but for a ``StoreError``.

        Args:
            images: All that will be read.
        """
        versions = {image.key: image.source if self.versioned else "" for image in images}
        if self.named_as == "photograph":
            named = [(image.place, versions[image.key]) for image in images if image.place]
        else:
            named = [(image.name, "") for image in images]
        stored = StoredReader(self.prefix, named)

        def read(image: Shown) -> Image.Image:
            if self.named_as == "photograph" and not image.place:
                data = read_image(self.prefix, image.key, etag=versions[image.key])
            else:
                data = stored.read(image.place if self.named_as == "photograph" else image.name)
            return decode_image(data, min_side=1)

        return read

    def log(self, digest_: str) -> OutcomeLog:
        """Return the thumbnails of a chunk."""
        return OutcomeLog(self.folder, digest_, ("image_key",))


def folders_of(made: Provenance, images: Collection[str]) -> dict[str, set[str]]:
    """Return the names of the folders that the page of a batch uses in a workspace, by their kind.

    Args:
        made: What made the batch's manifest.
        images: URIs of the folders of its edited images.
    """
    chunks = {
        Recipe("page-chunks", VERSION, {"indexed": indexed}, {"manifest": made.fingerprint}).fingerprint
        for indexed in (False, True)
    }
    photos, latents = made.parameters["photos"], made.parameters.get("latents", "")
    shown = {
        (each, "") for each in (photos, *images, *([join(latents, "reconstructions")] if latents else []))
    }

    # those of an edit by columns are of what all its folders share
    by_image = {each["column"] for each in made.parameters.get("edits", []) if "column" in each}
    shown |= {(prefix, column) for prefix in {parent(each) for each in images} for column in by_image}
    names = {column_of(prefix, "", column=column).recipe.fingerprint for prefix, column in shown}
    return {"pages": chunks, "thumbnails": names}


def column_of(
    prefix: str,
    workspace: str,
    named_as: str = "edit",
    *,
    versioned: bool = False,
    fills: bool = False,
    column: str = "",
) -> Column:
    """Return a folder of images and where its thumbnails lie; ``column`` names an edit by columns."""
    about = {"prefix": prefix, "side": SIDE} | ({"column": column} if column else {})
    recipe = Recipe(STEP, VERSION, about, {})
    folder = recipe.folder(workspace, "thumbnails")
    return Column(
        prefix=prefix, recipe=recipe, folder=folder, named_as=named_as, versioned=versioned, fills=fills,
        by_image=bool(column),
    )  # fmt: skip
