"""Refinement: new samples merge into the last table exactly, once, and leave it as it was."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from styleclip.flows.build_relevance import build_relevance
from styleclip.tasks.artifacts import read_provenance
from styleclip.tasks.directions import relevance as relevance_task
from styleclip.tasks.directions.refining import TableRecord, check_disjoint, find_last_table, refine_relevance
from styleclip.tasks.directions.relevance import read_relevance
from styleclip.tasks.directions.style_directions import find_table
from styleclip.tasks.running.run import run_here
from styleclip.tasks.settings import Models, Relevance, Sampling
from styleclip.tasks.storage import read_bytes
from styleclip_core.errors import ArtifactConflictError

pytestmark = pytest.mark.usefixtures("prefect_server")
SAMPLING = Sampling(statistics=40, codes=10)


@pytest.fixture
def models(network_files) -> Models:
    return Models(**network_files)


def build(models, workspace, samples=10, **changes):
    settings = Relevance(samples=samples, channels_per_shard=8, batch_size=16)
    sampling = changes.pop("sampling", SAMPLING)
    return build_relevance(models, str(workspace), sampling, settings, **changes)


def load(models, table):
    return read_relevance(run_here(models), table.relevance)


def test_ten_samples_and_ten_more_are_twenty(models, tmp_path):
    first = build(models, tmp_path / "w")
    before = read_bytes(first.table.relevance)
    refined = build(models, tmp_path / "w", add_samples=10)
    assert read_bytes(first.table.relevance) == before
    assert refined.table.relevance != first.table.relevance
    assert refined.table.statistics == first.table.statistics
    assert refined.steps[0].computed == 0  # the statistics are those of the last table
    merged, ten = load(models, refined.table), load(models, first.table)
    at_once = load(
        models, build(models, tmp_path / "v", 20, sampling=Sampling(statistics=40, codes=20)).table
    )
    assert torch.equal(merged.n, at_once.n)
    assert_close(merged.direction, at_once.direction, atol=1e-6, rtol=0)
    assert_close(merged.consistency, at_once.consistency, atol=1e-6, rtol=0)
    seen = ten.n == 10
    assert merged.standard_error[seen].mean() < 0.85 * ten.standard_error[seen].mean()
    made = read_provenance(refined.table.relevance)
    assert made.parameters["sample_ranges"] == [[0, 10], [10, 20]]
    assert made.parameters["samples"] == 20
    assert made.inputs["last"] == first.table.fingerprint

    # the next night adds to the refined table
    third = build(models, tmp_path / "w", add_samples=5)
    ranges = read_provenance(third.table.relevance).parameters["sample_ranges"]
    assert ranges == [[0, 10], [10, 20], [20, 25]]
    # and the same addition to the same table is found done
    again = build(models, tmp_path / "w", add_samples=10, last_table=first.table.relevance)
    assert again.table == refined.table
    assert [step.computed for step in again.steps] == [0, 0]
    # an edit takes the refined table from its folder
    folder = refined.table.relevance.rsplit("/", 1)[0]
    assert find_table.fn(run_here(models), folder).statistics == first.table.statistics


def test_samples_are_never_counted_twice(models, tmp_path, monkeypatch):
    plans = []
    real = relevance_task.plan
    monkeypatch.setattr(relevance_task, "plan", lambda *given: plans.append(real(*given)) or plans[-1])
    refined = build(models, tmp_path, 4), build(models, tmp_path, 4, add_samples=3)
    added = plans[-1]
    assert (added.settings.first_sample, added.settings.samples) == (4, 3)
    record = find_last_table.fn(run_here(models, str(tmp_path)), plans[0], "")
    assert record.uri == refined[1].table.relevance
    with pytest.raises(ArtifactConflictError, match="samples 4 to 6 and 4 to 6 overlap"):
        refine_relevance.fn(run_here(models, str(tmp_path)), record, added)


def test_ranges_that_touch_do_not_overlap():
    check_disjoint([(10, 20), (0, 10), (20, 21)])
    with pytest.raises(ArtifactConflictError, match="samples 0 to 9 and 9 to 19 overlap"):
        check_disjoint([(9, 20), (0, 10)])
    assert TableRecord(uri="", fingerprint="", sample_ranges=[(0, 10), (12, 15)]).samples == 13


def test_there_must_be_a_table_to_add_to_and_of_the_same_settings(models, tmp_path):
    with pytest.raises(ArtifactConflictError, match="no table of these networks and settings to add to"):
        build(models, tmp_path, 2, add_samples=2)
    built = build(models, tmp_path, 2)
    other = Relevance(samples=2, strength=3, channels_per_shard=8)
    with pytest.raises(ArtifactConflictError, match=r"strength is 5\.0, not 3\.0; repeat the settings"):
        build_relevance(
            models, str(tmp_path), SAMPLING, other, add_samples=2, last_table=built.table.relevance
        )
    with pytest.raises(ArtifactConflictError, match="no table of these networks and settings"):
        build_relevance(models, str(tmp_path), SAMPLING, other, add_samples=2)


def test_a_tolerance_measures_fewer_codes_and_is_a_table_of_its_own(models, tmp_path):
    exact = build(models, tmp_path)
    settings = Relevance(samples=10, channels_per_shard=8, tolerance=0.5, minimum=3)
    fast = build_relevance(models, str(tmp_path), SAMPLING, settings)
    assert fast.table.relevance != exact.table.relevance
    few, all_ = load(models, fast.table), load(models, exact.table)
    assert few.n.sum() < all_.n.sum()
    assert few.n.min() >= 3
    assert read_provenance(fast.table.relevance).parameters["tolerance"] == 0.5
    # how the channels are dealt out changes no bit, where a channel ends included
    dealt = replace(settings, channels_per_shard=3, batch_size=128)
    other = load(models, build_relevance(models, str(tmp_path / "other"), SAMPLING, dealt).table)
    assert torch.equal(other.n, few.n)
    assert torch.equal(other.direction, few.direction)


def test_fast_mode_moves_less_and_is_nearer_to_the_exact_table(models, tmp_path):
    exact = load(models, build(models, tmp_path).table)
    few = load(models, build(models, tmp_path, 3).table)
    settings = Relevance(samples=10, channels_per_shard=8, derivatives=16, tolerance=5, minimum=3)
    built = build_relevance(models, str(tmp_path), SAMPLING, settings)
    fast = load(models, built.table)
    assert fast.n.tolist() == exact.n.tolist()
    ours, theirs = ((table.direction - exact.direction).norm(dim=1) for table in (fast, few))
    assert ours.mean() < 0.7 * theirs.mean()
    assert read_provenance(built.table.relevance).parameters["derivatives"] == 16
    again = build_relevance(models, str(tmp_path), SAMPLING, settings)
    assert again.steps[1].computed == 0
    with pytest.raises(ValueError, match="only where a tolerance lets moves be left out"):
        Relevance(derivatives=8)


def test_the_published_table_is_built_beside_ours(models, tmp_path):
    settings = Relevance(samples=3, channels_per_shard=8, reference_compat=True)
    built = build_relevance(models, str(tmp_path), SAMPLING, settings)
    table = load(models, built.table)
    assert table.direction.isfinite().all()
    assert read_provenance(built.table.relevance).parameters["reference_compat"] is True
    with pytest.raises(ValueError, match="reference_compat decides tolerance itself"):
        Relevance(reference_compat=True, tolerance=0.1)
