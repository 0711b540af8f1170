"""Say what the prompts of an edit file will do, before anything is edited.

seeds ----> style codes, statistics -> relevance table --+
edits --------------------------------------------------> channels at every beta, strongest channels with
                                                          pictures, pairs that nearly coincide
"""

from __future__ import annotations

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from pydantic import BaseModel, ConfigDict

from flows import engine, steps
from tasks import diagnostics
from tasks.diagnostics import DiagnosisRef
from tasks.edits import Edit, all_variants
from tasks.settings import Execution, Models, OptionalUri, Relevance, Sampling, Uri


class InspectionResult(BaseModel):
    """What an inspection did, and where its tables lie."""

    model_config = ConfigDict(frozen=True)

    steps: list[steps.StepCounts]
    diagnosis: DiagnosisRef


@flow(name="inspect-prompts", task_runner=steps.task_runner(), persist_result=True)
def inspect_prompts(
    models: Models,
    edits: list[Edit],
    workspace: Uri,
    sampling: Sampling = Sampling(),
    relevance: Relevance = Relevance(),
    execution: Execution = Execution(),
    table: OptionalUri = "",
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
    """
    variants = all_variants(edits)
    hashes, device = steps.begin(models, execution, workspace)
    chosen = steps.distinct_steps(variants)
    steps.check_edits(variants, models, device)
    _, found, done = steps.table_for(models, hashes, sampling, relevance, workspace, device, given=table)
    diagnosis = engine.run(diagnostics.diagnose_prompts, chosen, found, models, hashes, workspace, device)
    create_markdown_artifact(
        diagnostics.markdown(diagnosis), key="prompts", description="what the prompts will do"
    )
    return InspectionResult(steps=done, diagnosis=diagnosis)
