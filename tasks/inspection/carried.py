"""Whether the channels of a relevance table carry the words of an edit, before anything is edited.

A style direction is found for any word, also for one that no channel serves: channels that happen to be
relevant then change the person and do nothing of what was asked. ``styleclip_core.diagnostics`` says how
that is told (``carried_share``), and what the threshold was measured on (``CARRIED``).
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from styleclip.tasks.directions.relevance import read_relevance
from styleclip.tasks.directions.style_directions import TableRef
from styleclip.tasks.inspection.prompts import distinct
from styleclip.tasks.running.caching import unit_of_work
from styleclip.tasks.running.run import Run
from styleclip.tasks.running.shown import code
from styleclip.tasks.running.texts import prompt_distance, text_vector
from styleclip.tasks.settings.edits import StepVariant
from styleclip_core.diagnostics import CARRIED, carried_share
from styleclip_core.errors import NoRelevantChannelError


class Carried(BaseModel):
    """How far the channels of a step carry its words.

    Attributes:
        neutral: What the target is compared with.
        target: What images should become.
        distance: Of the two prompts in CLIP space.
        share: Cosine between the text direction and where all channels that take part lead, 0..1.
    """

    model_config = ConfigDict(frozen=True)

    neutral: str
    target: str
    distance: float
    share: float

    @property
    def length(self) -> float:
        """Return how much of the distance is carried."""
        return self.distance * self.share

    @property
    def warning(self) -> str:
        """Return what is to be said of it; empty if it is carried."""
        if self.length >= CARRIED:
            return ""
        return (
            f"{self.neutral} -> {self.target}: no channel carries these words. CLIP holds the prompts "
            f"{self.distance:.3f} apart, the channels lead that way with cosine {self.share:.2f}, which "
            f"makes {self.length:.3f}; below {CARRIED:g} images change, but not as the words say. Say it in "
            "other words, or leave the edit out"
        )


@unit_of_work("find-carried")
def find_carried(run: Run, steps: list[StepVariant], table: TableRef) -> list[Carried]:
    """Return how far a table carries the words of every style direction that is taken from it, once each."""
    relevance, found = read_relevance(run, table.relevance), list[Carried]()
    for step in distinct([step for step in steps if (step.method, step.relevance) == ("global", "table")]):
        # who inspects prompts may ask for thresholds that no channel reaches; nothing is carried then
        try:
            share = carried_share(relevance, text_vector(run, step).cpu(), step.selection())
        except NoRelevantChannelError:
            share = 0.0
        distance = prompt_distance(run, step)
        found.append(Carried(neutral=step.neutral, target=step.target, distance=distance, share=share))
    return found


def warnings(found: Sequence[Carried]) -> list[str]:
    """Return a line for every pair of prompts that no channel carries, by the best of its settings."""
    best = dict[tuple[str, str], Carried]()
    for each in sorted(found, key=lambda each: each.length):
        best[each.neutral, each.target] = each
    return [each.warning for each in best.values() if each.warning]


def sections(lines: Sequence[str]) -> list[str]:
    """Return the warnings as a part of a report; none where nothing is to be said."""
    listed = "\n".join(f"- {code(line)}" for line in lines)
    return [f"## Words that no channel carries\n\n{listed}"] if lines else []
