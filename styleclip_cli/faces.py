"""The commands before and after an edit of real photographs: cut faces out, put them back."""

from __future__ import annotations

from typing import Annotated

import typer

import data
from styleclip_cli.shared import Verbose, Workers, console, prepare, summarize, with_progress

Out = Annotated[str, typer.Option(help="URI of the prefix for the results")]
ShardSize = Annotated[int, typer.Option(min=1, help="Photographs per shard, on average")]
Workspace = Annotated[str, typer.Option(help="Folder for artifacts [default: OUT/workspace]")]


def align(
    photos: Annotated[str, typer.Option(help="URI of the photographs' prefix; only read")],
    out: Out,
    landmarks: Annotated[
        str, typer.Option(help="URI of a table of landmarks (.parquet, .csv, .json), instead of a detector")
    ] = "",
    detector: Annotated[str, typer.Option(help="URI of the detector's weights [default: the embedded]")] = "",
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Lowest score of a face, 0 to 1")] = 0.9,
    size: Annotated[int, typer.Option(min=16, help="Side of an aligned face in pixels")] = 256,
    transform_size: Annotated[
        int, typer.Option(min=0, help="Side in pixels at which a face is sampled first; 0 for --size")
    ] = 0,
    min_size: Annotated[
        int, typer.Option(min=0, help="Smallest face in pixels; smaller ones are left as they are")
    ] = 32,
    max_faces: Annotated[
        int, typer.Option(min=0, help="Faces per photograph, the largest first; 0 for all")
    ] = 0,
    workspace: Workspace = "",
    shard_size: ShardSize = 16,
    workers: Workers = 0,
    verbose: Verbose = False,
) -> None:
    """Cut the faces out of every photograph under a prefix, as FFHQ does."""
    prepare(workers, verbose)
    from flows.align_faces import align_faces as flow
    from tasks.settings import Alignment, Execution, FaceSource

    source = FaceSource(
        landmarks=landmarks or None,
        detector=detector or (None if landmarks else str(data.FACE_DETECTOR)),
        min_score=min_score,
    )
    alignment = Alignment(
        output_size=size,
        transform_size=transform_size or None,
        min_size=min_size,
        max_faces=max_faces or None,
    )
    execution = Execution(shard_size=shard_size)
    result = with_progress(lambda: flow(source, photos, out, workspace, alignment, execution))
    summarize(result)
    found = result.faces
    console.print(
        f"{found.aligned} faces in {found.photographs} photographs, {found.without} photographs without a "
        f"face, {found.skipped} faces too small, {found.failed} failed (see the table)"
    )
    typer.echo(f"table  {found.table}")
    typer.echo(f"faces  {found.faces}")


def paste(
    faces: Annotated[str, typer.Option(help="URI of the table that align wrote")],
    edited: Annotated[str, typer.Option(help="URI of the edited faces' prefix: one folder of OUT/images")],
    out: Out,
    photos: Annotated[str, typer.Option(help="URI of the photographs' prefix, if they have moved")] = "",
    feather: Annotated[
        float, typer.Option(min=0.001, max=0.5, help="Fade at the edge of a face, as a fraction of its side")
    ] = 0.08,
    workspace: Workspace = "",
    shard_size: ShardSize = 16,
    workers: Workers = 0,
    verbose: Verbose = False,
) -> None:
    """Put edited faces back into their photographs."""
    prepare(workers, verbose)
    from flows.paste_faces import paste_faces as flow
    from tasks.settings import Execution, Pasting

    settings, execution = Pasting(feather=feather), Execution(shard_size=shard_size)
    result = with_progress(lambda: flow(faces, edited, out, photos, workspace, settings, execution))
    summarize(result)
    pasted = result.pasted
    console.print(
        f"{pasted.pasted} photographs, {pasted.skipped} skipped (nobody in them, or a face that was not "
        f"aligned), {pasted.failed} failed (see the table)"
    )
    typer.echo(f"table        {pasted.table}")
    typer.echo(f"photographs  {pasted.photographs}")
