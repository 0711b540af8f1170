"""What a run shows of itself: how long it will take, one report, and nothing that only repeats a failure."""

import json
from uuid import UUID

import pytest
from prefect import flow, runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.futures import wait

from styleclip.flows.run import StepCounts, announce, summarize
from styleclip.tasks.reports.summaries import read_steps
from styleclip.tasks.running.caching import unit_of_work
from styleclip.tasks.running.progress import ShardResult, ShardsFailedError, gather_chain, time_left


@pytest.mark.parametrize(
    ("shards", "computed", "seconds", "wanted"),
    [
        (0, 5, 10, ""),
        (5, 0, 10, ""),  # all that ended was found done, which says nothing
        (10, 5, 10, ", about 20 s left"),
        (36, 4, 80, ", about 12 min left"),
        (300, 10, 600, ", about 5 h left"),
    ],
)
def test_time_left_is_the_pace_of_what_was_computed(shards, computed, seconds, wanted):
    assert time_left(shards, computed, seconds) == wanted


@unit_of_work("made-shard", "made-shard-{number}")
def made(number: int) -> ShardResult:
    if number == 1:
        raise ValueError("no such thing as shard 1")
    return ShardResult(uri=f"shard {number}", rows=4, reused=number == 0)


@flow(log_prints=True)
def in_two_steps() -> str:
    first = [made.submit(number) for number in range(4)]
    second = [made.submit(number + 10, wait_for=[each]) for number, each in enumerate(first)]
    wait(second)
    with pytest.raises(ShardsFailedError, match=r"1 of 4 first shards failed, .*first: .*no such thing"):
        gather_chain({"first": first, "second": second}, {})
    return str(runtime.flow_run.id)


def shown(run: str) -> dict[str, object]:
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[UUID(run)]))
    with get_client(sync_client=True) as client:
        return {each.key: each for each in client.read_artifacts(artifact_filter=wanted)}


def test_what_failed_for_want_of_another_shard_is_counted_and_not_listed(prefect_server, caplog):
    artifacts = shown(in_two_steps())
    assert set(artifacts) == {"first", "second", "first-failures"}
    assert len(json.loads(artifacts["first-failures"].data)) == 1
    lines = [record.getMessage() for record in caplog.records]
    assert "second: 1 shards were not begun, as the shards they build on failed" in lines
    assert not any("Upstream" in line for line in lines if line.startswith("second"))
    assert any(line.startswith("first 2/4: ") or line.startswith("first 4/4: ") for line in lines)


@flow
def reporting() -> str:
    announce("reporting", "edits 60 photographs under s3://few with 2 edits")
    (before,) = shown(str(runtime.flow_run.id)).values()
    assert before.data == "This run `edits 60 photographs under s3://few with 2 edits`"
    step = StepCounts(step="edit-images", shards=2, computed=1, rows=8, failed=1, seconds=2.5, rate=3.2)
    summarize("reporting", "8 edits", [step], {"page": "s3://out/index.html"}, sections=["## Prompts"])
    return str(runtime.flow_run.id)


def test_a_run_has_one_report_which_says_what_it_will_do_and_then_what_it_did(prefect_server):
    (report,) = shown(reporting()).values()
    assert report.key == "reporting-report"
    assert report.description == "8 edits"
    assert report.data.startswith("8 edits\n\n| step |")
    assert report.data.endswith("## Prompts")
    assert read_steps(report.data) == {
        "edit-images": {"rows": 8, "failed items": 1, "seconds": 2.5, "rows/s": 3.2}
    }
    assert read_steps("no steps") == {}
