"""Say what the prompts of an edit file will do, before anything is edited.

seeds ----> style codes, statistics -> relevance table --+
edits --------------------------------------------------> channels at every beta, strongest channels with
                                                          pictures, pairs that nearly coincide
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from styleclip.flows import engine
from styleclip.flows.run import StepCounts, begin, pipeline, summarize
from styleclip.flows.steps.editing import check_edits, distinct_steps, refuse_uncarried
from styleclip.flows.steps.table import table_for
from styleclip.tasks.inspection import carried
from styleclip.tasks.inspection import prompts as diagnostics
from styleclip.tasks.inspection.prompts import DiagnosisRef
from styleclip.tasks.settings import Execution, Models, OptionalUri, OrUsual, Relevance, Sampling, Uri
from styleclip.tasks.settings.edits import MOST_VARIANTS, Edit, all_variants


class InspectionResult(BaseModel):
    """What an inspection did, and where its tables lie."""

    model_config = ConfigDict(frozen=True)

    steps: list[StepCounts]
    diagnosis: DiagnosisRef
    uncarried: list[str] = []


@pipeline("inspect-prompts")
def inspect_prompts(
    models: Models,
    edits: list[Edit],
    workspace: Uri,
    sampling: OrUsual[Sampling] = Sampling(),
    relevance: OrUsual[Relevance] = Relevance(),
    execution: OrUsual[Execution] = Execution(),
    table: OptionalUri = "",
    most_variants: Annotated[int, Field(ge=1)] = MOST_VARIANTS,
) -> InspectionResult:
    """Look every prompt up in the relevance table, which is built first, or found built.

    Prompts of mappers and optimizations are looked up, too: the table says what style directions would do.

    Args:
        models: Networks to use; files may lie on any storage that the worker can read.
        edits: Edits whose prompts are looked up.
        workspace: URI of the folder for artifacts, which later runs find and keep.
        sampling: Style codes to sample, and the statistics of style space.
        relevance: How the relevance table is measured.
        execution: How the work is run; none of it changes a result.
        table: URI of a folder with relevance.parquet and statistics.parquet, as an import of the published
            files leaves them; without one the table is built first, or found built.
        most_variants: Variants of every image that the edits may stand for, every strength and threshold
            counted; more are refused, so that a slip in a list of values is no month of work.
    """
    variants = all_variants(edits, most_variants)
    run = begin(models, execution, workspace)
    check_edits(run, variants)  # a prompt that CLIP cannot read ends the run before hours of measuring

    _, found, done = table_for(run, sampling, relevance, given=table)
    diagnosis = engine.run(diagnostics.diagnose_prompts, run, distinct_steps(variants), found)
    uncarried = refuse_uncarried(run, distinct_steps(variants), found, execution)
    headline = f"what {len(distinct_steps(variants))} prompts will do"
    summarize(
        "inspect-prompts",
        headline,
        done,
        {},
        sections=[*carried.sections(uncarried), diagnostics.markdown(diagnosis)],
    )
    return InspectionResult(steps=done, diagnosis=diagnosis, uncarried=uncarried)
