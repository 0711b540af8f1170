"""Edits as a page names them, and those that were done at several strengths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class BatchEdit:
    """An edit of a batch with all choices made.

    Attributes:
        name: Name in the edit file.
        neutral: Neutral prompts of its steps.
        target: Target prompts of its steps.
        method: Methods of its steps.
        summary: Main settings for a person.
        strength: Alpha or the mapper's strength, if it has one step.
        threshold: Beta, or the number of channels where those were counted, if it has one step.
        counted: Whether the threshold is a number of channels.
        record: What the manifest says of it: settings of all steps.
    """

    name: str
    neutral: str
    target: str
    method: str
    summary: str
    strength: float | None
    threshold: float | None
    counted: bool
    record: Mapping[str, Any]

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> BatchEdit:
        """Return the edit that a record of the manifest's provenance describes."""
        steps: list[dict[str, Any]] = record["steps"]
        one = steps[0] if len(steps) == 1 else {}
        strength = one.get("alpha") if one.get("alpha") is not None else one.get("strength")
        counted = one.get("beta") is None and one.get("top_k") is not None

        # figures of several steps cannot stand on one axis, so only their names are joined
        return cls(
            name=record["name"],
            neutral="; ".join(dict.fromkeys(step["neutral"] for step in steps)),
            target="; ".join(step["target"] for step in steps),
            method=record.get("method", "global"),
            summary="; ".join(_summary(step) for step in steps),
            strength=strength,
            threshold=one.get("top_k") if counted else one.get("beta"),
            counted=counted,
            record=record,
        )

    @classmethod
    def of_all(cls, records: Sequence[Mapping[str, Any]]) -> BatchEdit:
        """Return the one edit that columns of the data set made several records of, or that one makes."""
        each = [cls.of(record) for record in records]
        first = each[0]
        if len(each) == 1:
            return first

        def said(name: str) -> Any:  # noqa: ANN401 - of any field
            values = list(dict.fromkeys(getattr(edit, name) for edit in each))
            return values[0] if len(values) == 1 else f"{values[0]} and {len(values) - 1} more, by image"

        # what differs from image to image has no place on an axis
        strengths, thresholds = {edit.strength for edit in each}, {edit.threshold for edit in each}
        texts = {name: said(name) for name in ("name", "neutral", "target", "summary")}
        return replace(
            first, **texts, strength=first.strength if len(strengths) == 1 else None,
            threshold=first.threshold if len(thresholds) == 1 else None,
            record={"by image": len(each), "first": first.record},
        )  # fmt: skip


def _summary(step: Mapping[str, Any]) -> str:
    if step.get("strength") is not None:
        return f"mapper x {step['strength']:g}"
    if step.get("alpha") is None:
        return f"{step['steps']} steps" if step.get("steps") else step.get("method", "")
    choice = f"beta {step['beta']:g}" if step.get("beta") is not None else f"top {step.get('top_k')}"
    return f"alpha {step['alpha']:g}, {choice}" + (", instant" if step.get("relevance") == "instant" else "")


@dataclass(frozen=True)
class Sweep:
    """Variants of one edit over strengths and thresholds, as a table of edit numbers.

    Attributes:
        name: Name of the edit.
        target: What it aims at.
        axis: What a column is: ``alpha`` or ``strength``.
        by: What a row is: ``beta``, ``channels``, or empty if there is one row.
        strengths: Columns.
        thresholds: Rows.
        cells: Numbers of edits, row by row; -1 where there is none.
    """

    name: str
    target: str
    axis: str
    by: str
    strengths: list[float]
    thresholds: list[float | None]
    cells: list[list[int]]


def sweeps(edits: Sequence[BatchEdit]) -> Iterator[Sweep]:
    """Yield the edits that were done at several strengths or thresholds."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for number, edit in enumerate(edits):
        if edit.strength is not None:
            key = (edit.name, edit.neutral, edit.target, edit.method, edit.counted)
            groups.setdefault(key, []).append(number)

    for members in groups.values():
        if len(members) > 1:
            yield _sweep([edits[number] for number in members], members)


def _sweep(edits: Sequence[BatchEdit], numbers: Sequence[int]) -> Sweep:
    first = edits[0]
    strengths = sorted({edit.strength for edit in edits if edit.strength is not None})
    # None does not compare with numbers; it goes first
    thresholds = sorted({edit.threshold for edit in edits}, key=lambda value: (value is not None, value or 0))
    cells = [[-1] * len(strengths) for _ in thresholds]

    for edit, number in zip(edits, numbers, strict=True):
        if edit.strength is not None:
            cells[thresholds.index(edit.threshold)][strengths.index(edit.strength)] = number

    by = "" if thresholds == [None] else "channels" if first.counted else "beta"
    axis = "strength" if first.method == "mapper" else "alpha"
    return Sweep(first.name, first.target, axis, by, strengths, thresholds, cells)
