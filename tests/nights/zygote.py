"""Runs the tasks of a bulk edit in processes that are forked, not started, and without Prefect.

Reads its arguments as JSON, a line for each run; says the number of the process that runs it, then, when
that has ended, its exit status (negative for a signal). What is imported once, no fork has to import again,
so a soak can kill many processes in little time.
"""

import json
import os
import sys
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import s3fs  # noqa: F401 - so that no fork has to

from styleclip.tasks.artifacts import Provenance, vector_column, write_table
from styleclip.tasks.directions.style_directions import PreparedStep
from styleclip.tasks.editing import plans as planning
from styleclip.tasks.editing import shards as editing
from styleclip.tasks.editing.methods import PreparedEdit
from styleclip.tasks.photographs import images, inversion
from styleclip.tasks.photographs.datasets.front import locate
from styleclip.tasks.reports import batch as reports
from styleclip.tasks.running.run import Run, run_here
from styleclip.tasks.settings import DataSet, Inversion, Models
from styleclip.tasks.settings.edits import Edit
from tests.nights import night  # noqa: F401 - it slows the writes down


def bulk_edit(networks: dict, photos: str, out: str, edit: dict, shard_size: int) -> None:
    """Do what the flow does, task by task, two shards at a time."""
    run = run_here(Models(**networks), out, out)
    index = images.index_images.fn(run, locate(photos, DataSet()), shard_size)
    inverted = inversion.plan(run, photos, Inversion(steps=0))
    prepared = [_prepared(run, variant) for variant in Edit(**edit).variants()]
    plans = [planning.plan(run, each, inverted) for each in prepared]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda shard: inversion.invert_shard.fn(run, inverted, shard), index.shards))
        list(pool.map(lambda shard: editing.edit_shard.fn(run, plans, shard), index.shards))
    written = reports.write_report.fn(run, plans, index)
    if written.failed:
        raise RuntimeError(f"{written.failed} edits failed")


def _prepared(run: Run, variant) -> PreparedEdit:
    """Return the edit by a direction that moves every channel alike."""
    count = run.generator.layout.num_editable
    ones = vector_column(np.full((1, count), 0.5))
    uri = f"{run.out}/direction.parquet"
    about = {"channels": count, "layers": []}
    made = Provenance("style-direction", "even", "soak", "1", about, {}, "", "", "")
    write_table(uri, pa.table({"delta": ones, "relevance": ones}), made)
    step = PreparedStep(variant=variant.steps[0], uri=uri, fingerprint="even", channels=count, text_norm=1.0)
    return PreparedEdit(variant=variant, steps=[step])


def main() -> None:
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                bulk_edit(**json.loads(line))
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
        say(child)
        _, status = os.waitpid(child, 0)
        say(os.waitstatus_to_exitcode(status))


def say(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
