"""Relevance tables of former nights: which thin out, and that an account says so before pruning does it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pytest

from benchmarks.batches import make_batch
from styleclip.tasks.artifacts import Recipe, write_table
from styleclip.tasks.directions.refining import REFINE_STEP
from styleclip.tasks.directions.relevance import STEP
from styleclip.tasks.keeping.accounts import account
from styleclip.tasks.keeping.pruning import Choice
from styleclip.tasks.keeping.tables import night_tables, thinned
from styleclip.tasks.storage import join, list_folders
from tests.pipeline.test_keeping import DAY, KEYS, LATER, SMILE, run_prune


@dataclass
class Night:
    """A workspace in which a table has grown for some nights."""

    workspace: Path
    now: float
    merged: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    first: str = ""


@pytest.fixture
def nights(tmp_path) -> Night:
    """Sixty nights of ten samples each, the last one today."""
    found = Night(tmp_path / "out/workspace", LATER)

    def table(step: str, ranges: list[list[int]], night: int) -> str:
        recipe = Recipe(step, "2", {"shift": 5, "sample_ranges": ranges}, {"styles": "s"}, "g", "c")
        folder = recipe.folder(str(found.workspace), "relevance")
        write_table(join(folder, "relevance.parquet"), pa.table({"n": [1]}), recipe.made("relevance"))
        write_table(join(folder, "parts/part-0.parquet"), pa.table({"n": [1]}), recipe.made("part"))
        moment = LATER - (59 - night) * DAY - 3600
        os.utime(join(folder, "relevance.parquet"), (moment, moment))
        return recipe.fingerprint

    found.first = table(STEP, [[0, 10]], 0)
    for night in range(1, 60):
        found.added.append(table(STEP, [[10 * night, 10 * night + 10]], night))
        found.merged.append(table(REFINE_STEP, [[0, 10], [10, 10 * night + 10]], night))
    return found


def test_tables_of_former_nights_thin_out_by_the_rule(nights):
    tables = night_tables(str(nights.workspace))
    assert len(tables) == 1 + 2 * 59
    going = {table.name for table in thinned(tables, {nights.merged[3]})}
    stay = {table.name for table in tables} - going
    assert {nights.first, nights.merged[-1], nights.merged[3]} <= stay
    assert {*nights.merged[-14:], *nights.added[-14:]} <= stay
    assert not stay & set(nights.added[:-14])

    weeks = {table.day.isocalendar()[:2] for table in tables if table.name in nights.merged[:-14]}
    kept = [table for table in tables if table.name in stay & set(nights.merged[:-14])]
    assert {table.day.isocalendar()[:2] for table in kept if table.name != nights.merged[3]} <= weeks
    assert len(kept) <= len(weeks) + 1


def test_pruning_thins_tables_and_ends_what_was_interrupted(nights, tmp_path, monkeypatch):
    made = make_batch(str(tmp_path), KEYS[:1], [SMILE])
    said = account(made.out, made.workspace)
    going = {table.name for table in said.tables if table.thinned}
    assert len(going) > 59
    run_prune(made, Choice(keep_last=1))
    assert going.isdisjoint(list_folders(join(made.workspace, "relevance")))
    assert not any(table.thinned for table in account(made.out, made.workspace).tables)
