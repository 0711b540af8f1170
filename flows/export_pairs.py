"""A batch of edits -> a set of pairs that editing networks are trained on.

manifest, condition -> rows of each file -> pictures before and after -> Parquet or tar shards, data card
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from styleclip.flows import engine
from styleclip.flows.run import StepCounts, announce, begin, counts, gather_items, pipeline, summarize
from styleclip.tasks.reports.data_card import write_data_card
from styleclip.tasks.reports.page.links import parent
from styleclip.tasks.reports.pairs import PairsPlan, plan_pairs, write_pairs
from styleclip.tasks.running.run import Networks
from styleclip.tasks.settings import Execution, OptionalUri, OrUsual, Uri
from styleclip.tasks.settings.pairs import Pairing


class PairsResult(BaseModel):
    """What an export did, and where the set lies."""

    model_config = ConfigDict(frozen=True)

    steps: list[StepCounts]
    folder: str
    card: str
    pairs: int
    considered: int


@pipeline("export-pairs")
def export_pairs(
    manifest: Uri,
    out: Uri,
    pairing: OrUsual[Pairing] = Pairing(),
    workspace: OptionalUri = "",
) -> PairsResult:
    """Write the edits of a batch as pairs; files that an earlier run wrote are found and kept.

    Args:
        manifest: URI of the manifest.parquet of a batch, below OUT/batches of the edit.
        out: URI of the prefix for the set.
        pairing: Which edits become pairs, and in which form.
        workspace: URI of the folder for artifacts; that of the edits if empty.
    """
    edits = parent(manifest, 3)
    run = begin(
        Networks(), Execution(device="cpu"), workspace or f"{edits}/workspace", out,
        files=[manifest, pairing.evaluation],
    )  # fmt: skip
    planned: PairsPlan = engine.run(plan_pairs, run, manifest, edits, pairing)
    about = f"{planned.pairs} of {planned.considered} edits in {len(planned.files)} files"
    announce("export-pairs", f"writes {about} into {planned.folder}")

    summary = gather_items("write-pairs", write_pairs, [(run, planned, file) for file in planned.files])
    card = engine.run(write_data_card, run, planned)

    done = [counts(summary)]
    summarize("export-pairs", about, done, {"set of pairs": planned.folder, "data card": card})
    return PairsResult(
        steps=done, folder=planned.folder, card=card, pairs=planned.pairs, considered=planned.considered
    )
