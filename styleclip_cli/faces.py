"""The commands before and after an edit of real photographs: cut faces out, put them back."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from styleclip import data
from styleclip.tasks.settings import Alignment, DataSet, Execution, FaceSource, Pasting
from styleclip_cli import output
from styleclip_cli.generated import Shown
from styleclip_cli.options import (
    Out,
    OutWorkspace,
    Photos,
    Shards,
    Verbose,
    Which,
    Workers,
    prepare,
    with_progress,
)

Source = Annotated[
    dict[str, Any], Shown(of=FaceSource, defaults={"detector": "the embedded one, without --landmarks"})
]


def align(
    photos: Photos,
    out: Out,
    source: Source,
    alignment: Annotated[Alignment, Shown(names={"output_size": "size"})] = Alignment(),
    dataset: Which = DataSet(),
    workspace: OutWorkspace = "",
    execution: Shards = Execution(),
    workers: Workers = 0,
    verbose: Verbose = False,
) -> None:
    """Cut the faces out of every photograph under a prefix, as FFHQ does."""
    prepare(workers, verbose)
    from styleclip.flows.align_faces import align_faces as flow

    # the embedded detector is for those who say nothing of where faces come from
    embedded = (
        {} if source.get("landmarks") or source.get("detector") else {"detector": str(data.FACE_DETECTOR)}
    )
    chosen = FaceSource.model_validate(source | embedded)
    result = with_progress(lambda: flow(chosen, photos, out, workspace, alignment, execution, dataset))

    output.summarize(result)
    found = result.faces
    output.count(
        faces=found.aligned, photographs=found.photographs, without=found.without, skipped=found.skipped,
        failed=found.failed,
    )  # fmt: skip
    output.tell(
        f"{found.aligned} faces in {found.photographs} photographs, {found.without} photographs without a "
        f"face, {found.skipped} faces too small, {found.failed} failed (see the table)"
    )

    output.results(table=found.table, faces=found.faces)


def paste(
    faces: Annotated[str, typer.Option(help="URI of the table that align wrote")],
    edited: Annotated[
        str,
        typer.Option(
            help="URI of the edited faces: the manifest.parquet of their batch, or one folder of OUT/images"
        ),
    ],
    out: Out,
    photos: Annotated[str, typer.Option(help="URI of the photographs' prefix, if they have moved")] = "",
    pasting: Annotated[Pasting, Shown()] = Pasting(),
    workspace: OutWorkspace = "",
    execution: Shards = Execution(),
    workers: Workers = 0,
    verbose: Verbose = False,
) -> None:
    """Put edited faces back into their photographs."""
    prepare(workers, verbose)
    from styleclip.flows.paste_faces import paste_faces as flow

    result = with_progress(lambda: flow(faces, edited, out, photos, workspace, pasting, execution))

    output.summarize(result)
    pasted = result.pasted
    output.count(photographs=pasted.pasted, skipped=pasted.skipped, failed=pasted.failed)
    output.tell(
        f"{pasted.pasted} photographs, {pasted.skipped} skipped (nobody in them, or a face that was not "
        f"aligned), {pasted.failed} failed (see the table)"
    )

    output.results(table=pasted.table, photographs=pasted.photographs)
