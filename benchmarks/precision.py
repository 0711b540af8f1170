"""What number formats make of an exact table: style directions and edits, by the same casts as on a GPU.

Whole tables of the embedded world over the first ``CODES`` style codes, in float32 and in 16 bits, on the
CPU, which rounds where a GPU rounds: convolutions behind the moved layer take and give 16 bits and sum in
float32. A CPU is slow in float16, so there layers compute in float32 and round what they take and give. CLIP
is in float32 or rounds to 16 bits too, as its published form does on a GPU. Agreement is the cosine of style
directions over the prompt pairs of ``agreement``; edits are those fast mode is judged by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.agreement import (
    BETA,
    EDIT_HEADER,
    direction_cosines,
    edit_rows,
    edit_scores,
    relevances,
    texts,
)
from benchmarks.networks import Case, cases
from benchmarks.report import Options, Section
from styleclip_core import relevance
from styleclip_core.compiling import Compiled
from styleclip_core.folded import colour, colour_over
from styleclip_core.relevance import RelevanceSettings, RelevanceTable, measure_channels
from styleclip_core.settings.relevance import Precision

CODES = 16
_WAYS: tuple[tuple[str, Precision, torch.dtype], ...] = (
    ("float32", "float32", torch.float32),
    ("bfloat16", "bfloat16", torch.float32),
    ("float16", "float16", torch.float32),
    ("float32, CLIP float16", "float32", torch.float16),
    ("bfloat16, CLIP bfloat16", "bfloat16", torch.bfloat16),
)


def measure(options: Options) -> Iterator[Section]:
    """Yield how directions agree with those of float32, then what edits do."""
    if options.networks != "world":
        return
    (case,) = cases(options)
    tables = {name: _table(case, precision, clip) for name, precision, clip in _WAYS}
    exact, directions = tables["float32"], texts(case)
    wanted = relevances(exact, directions)

    rows, figures = list[tuple[str, ...]](), dict[str, float]()
    for name, table in tables.items():
        rowwise = torch.cosine_similarity(table.direction, exact.direction, dim=1)[exact.n > 0]
        cosines = direction_cosines(case, relevances(table, directions), wanted, BETA)
        rows.append((
            name, f"{rowwise.mean():.5f}", f"{rowwise.min():.4f}", f"{cosines.mean():.5f}",
            f"{cosines.min():.4f}",
        ))  # fmt: skip
        figures[f"{name}: mean cosine of style directions"] = float(cosines.mean())
        figures[f"{name}: lowest cosine of style directions"] = float(cosines.min())
    header = ("precision", "rows: mean cosine", "lowest", "style directions: mean cosine", "lowest")
    count = min(CODES, case.sampled.batch_size)
    yield Section(f"{case.name}: tables over {count} codes, to float32's", header, rows, figures)

    scores = {name: edit_scores(case, _by(table)) for name, table in tables.items()}
    yield Section("edits by tables of these formats", EDIT_HEADER, edit_rows(scores, "float32"))


def _by(table: RelevanceTable) -> Callable[[Tensor], Tensor]:
    return lambda directions: relevances(table, directions)


class _Rounding(Compiled):
    """Runs layers in float32, on what float16 has left of their tensors, and rounds features to it."""

    def __call__(
        self,
        function: Callable[..., Tensor],
        plain: Callable[..., Tensor],
        name: str,
        batches: Sequence[Tensor],
        *others: Tensor | float | None,
    ) -> Tensor:
        """Run a layer as it is written."""
        whole = [each.float() if isinstance(each, Tensor) else each for each in (*batches, *others)]
        found = plain(*whole)
        return found if plain in (colour, colour_over) else found.half()  # colours stay in float32


def _table(case: Case, precision: Precision, clip: torch.dtype) -> RelevanceTable:
    """Return the table of some codes, the convolutions in one format and CLIP in another."""

    def embed(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, clip, enabled=clip != torch.float32):
            return case.clip.embed_whole(images)

    codes = case.sampled.select(slice(0, min(CODES, case.sampled.batch_size)))
    layout, settings = case.generator.layout, RelevanceSettings(precision=precision)
    parts = []
    with patch.object(relevance, "compiler", lambda *_: _Rounding() if precision == "float16" else None):
        for layer in layout.editable:
            parts.append(measure_channels(
                case.generator, embed, codes, layer=layer.name, channels=range(layer.channels),
                mean=case.mean[layer.name][0], std=case.std[layer.name][0], settings=settings,
            ))  # fmt: skip
    return RelevanceTable.from_parts(layout, parts)
