"""Unedited images of a shard, drawn and looked at once for all of its edits."""

from __future__ import annotations

import time
from dataclasses import dataclass

from styleclip.tasks.artifacts.outcomes import Row, failure
from styleclip.tasks.editing.scoring import Judge
from styleclip.tasks.photographs.inversion import InversionPlan, latents_of, read_tuning
from styleclip.tasks.photographs.own import Own, with_tunings
from styleclip.tasks.photographs.seen import MEMORY, Seen
from styleclip.tasks.running.overlap import read_ahead
from styleclip.tasks.running.run import Run
from styleclip_core.editing import EditedLatents
from styleclip_core.errors import StyleCLIPError
from styleclip_core.per_image import AnyGenerator

_BATCH = 32  # tunings read ahead


@dataclass(frozen=True)
class Source:
    """A batch before its edits: what draws it, where it is, what it looks like."""

    generator: AnyGenerator
    latents: EditedLatents
    seen: Seen


class Sources:
    """Generators, latents and embeddings of unedited batches, the last of them kept for the next edit of it.

    Attributes:
        broken: Status columns of the images whose own generator cannot be had, by image.
        drawn: Unedited images that were looked at.
        seconds: What that took, little where they had been drawn to be inverted.
    """

    def __init__(self, run: Run, inversion: InversionPlan, latents: dict[str, Row]) -> None:
        self.run, self.generator, self.judge = run, run.generator, Judge(run)
        self._last: tuple[tuple[str, ...], Source] | None = None
        self._tunings: dict[str, Own] = {}
        self.broken: dict[str, Row] = {}
        self.drawn, self.seconds = 0, 0.0
        self._read_tunings(inversion, [row for row in latents.values() if row.get("tuning")])

    def _read_tunings(self, inversion: InversionPlan, rows: list[Row]) -> None:
        def read(row: Row) -> Own | Row | None:
            try:
                return read_tuning(inversion, self.generator, row)
            except StyleCLIPError as error:
                # returned, since one broken generator must not end the reading of others
                return failure(error)

        for row, found in zip(rows, read_ahead(rows, read, ahead=_BATCH), strict=True):
            if isinstance(found, dict):
                self.broken[row["image_key"]] = found
            elif found is not None:
                self._tunings[row["image_key"]] = found

    def get(self, rows: list[Row]) -> Source:
        """Return the source of a batch of latents."""
        keys = tuple(row["image_key"] for row in rows)
        # edits mostly ask for the same batch, one after the other
        if not self._last or self._last[0] != keys:
            started = time.monotonic()
            w_plus = latents_of(self.run, rows)
            tunings = [self._tunings.get(key) for key in keys]
            generator = with_tunings(self.generator, tunings, w_plus)

            # what was drawn a moment ago, to be inverted, is not drawn again
            seen = None if any(tunings) else MEMORY.take(self.run, w_plus)
            if seen is None:
                seen = self.judge.see(generator.synthesize(generator.styles(w_plus)))
            self._last = keys, Source(generator, EditedLatents(w_plus), seen)
            self.drawn += len(rows)
            self.seconds += time.monotonic() - started
        return self._last[1]
