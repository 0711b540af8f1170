"""An edits manifest -> what it says of each variant, for whoever needs the images of some and no scores."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence

import pyarrow as pa

from styleclip.tasks.artifacts import Recipe, is_complete, read_provenance, write_table
from styleclip.tasks.artifacts.outcomes import Row
from styleclip.tasks.evaluation.manifest import iter_rows, place_of
from styleclip.tasks.photographs.edited_faces import EDITED_SCHEMA, EditedFaces
from styleclip.tasks.running.caching import unit_of_work
from styleclip.tasks.running.run import Run
from styleclip.tasks.settings import SettingsError
from styleclip.tasks.storage import join
from styleclip_core.errors import ArtifactConflictError

STEP, VERSION = "choose-variants", "1"


@unit_of_work("choose-variants")
def choose_variants(run: Run, manifest: str, wanted: Sequence[str]) -> list[EditedFaces]:
    """Write down what a manifest says of some variants, a table of each; equal rows make one table.

    Args:
        run: Whose workspace the tables go to.
        manifest: URI of the manifest.
        wanted: Variants, or edits of which all variants are taken; all there are if empty.

    Raises:
        ArtifactConflictError: If it is no manifest of edits.
        DamagedArtifactError: If it lacks a column, or is no readable table.
        SettingsError: If it has no such variant, or does not lie where a batch's manifest does.
    """
    made = read_provenance(manifest, large=True)
    if made.kind != "edits-manifest":
        raise ArtifactConflictError(f"{manifest} is a table of {made.kind}; give a manifest of edits")

    prefix, edits = place_of(manifest), dict[str, str]()
    rows: dict[str, list[Row]] = defaultdict(list)
    for part in iter_rows(manifest, ["edit", *EDITED_SCHEMA.names]):
        for row in part.to_pylist():
            edits[row["variant"]] = row.pop("edit")
            rows[row.pop("variant")].append(row)

    chosen = sorted(variant for variant, edit in edits.items() if not wanted or {variant, edit} & set(wanted))
    unknown = [name for name in wanted if name not in {*edits, *edits.values()}]
    if unknown:
        raise SettingsError(
            f"{manifest} has no variant or edit {unknown[0]!r}; its variants are {', '.join(sorted(edits))}"
        )

    recipe = Recipe(STEP, VERSION, {"out": prefix}, {"manifest": made.fingerprint})
    return [
        EditedFaces(
            prefix=prefix, manifest=manifest, variant=variant, rows=_written(run, recipe, rows[variant])
        )
        for variant in chosen
    ]


def _written(run: Run, recipe: Recipe, rows: list[Row]) -> str:
    # named by its rows: a batch that went on has other ones, a partial one fewer
    name = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:24]
    uri = join(run.workspace, "chosen-variants", f"{name}.parquet")
    if not is_complete(uri):
        write_table(uri, pa.Table.from_pylist(rows, EDITED_SCHEMA), recipe.made("chosen-variants"))
    return uri
