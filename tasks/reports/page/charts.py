"""Charts of a batch as SVG that goes into the page: drawn here, coloured by the page's own style.

A chart is static: it needs no script, prints, and weighs some kilobytes. Its colours are placeholders that
become the page's variables, so that one drawing serves a dark page and a light one. Texts are never read as
formulas.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from markupsafe import escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from styleclip.tasks.reports.page.batch import Batch, Score
from styleclip.tasks.reports.page.choices import Choice
from styleclip.tasks.reports.page.edits import Sweep

MAX_ROWS = 40
_WIDTH, _ROW, _BINS = 3.6, 0.24, 36
_VARIABLES = {
    "#0a0a01": "--ink", "#0a0a02": "--muted", "#0a0a03": "--line", "#0a0a04": "--accent",
    "#0a0a06": "--c1", "#0a0a07": "--c2", "#0a0a08": "--c3", "#0a0a09": "--c4", "#0a0a0a": "--c5",
}  # fmt: skip
_INK, _MUTED, _LINE, _ACCENT, *_SERIES = _VARIABLES
_STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "styleclip", "font.size": 8, "text.parse_math": False,
    "axes.edgecolor": _LINE, "axes.labelcolor": _MUTED, "axes.facecolor": "none", "figure.facecolor": "none",
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8, "text.color": _INK,
    "xtick.color": _LINE, "ytick.color": _LINE, "xtick.labelcolor": _MUTED, "ytick.labelcolor": _INK,
    "xtick.major.size": 3, "ytick.major.size": 0, "axes.unicode_minus": True, "legend.frameon": False,
    "legend.labelcolor": _INK, "grid.color": _LINE, "grid.linewidth": 0.6,
}  # fmt: skip


_alone = threading.Lock()


@contextmanager
def _styled() -> Iterator[None]:
    """Draw in the style of the page; one at a time, as a style is the whole process's."""
    with _alone, rc_context(_STYLE):
        yield


def distributions(batch: Batch, score: Score, edits: Sequence[int]) -> str:
    """Return histograms of one score, an edit a row on a common axis, as SVG; nothing if there is no value.

    Args:
        batch: The batch.
        score: One of its scores.
        edits: Numbers of the edits, from top to bottom; the first ``MAX_ROWS`` are drawn.
    """
    values = [(number, _finite(batch.values[score.name][number])) for number in edits]
    values = [(number, each) for number, each in values if len(each)][:MAX_ROWS]
    if not values:
        return ""

    low, high = _range([each for _, each in values])
    bins = np.linspace(low, high, _BINS + 1)

    with _styled():
        figure = Figure(figsize=(_WIDTH, _ROW * len(values) + 0.5))
        axes = figure.add_axes(
            (0.34, 0.4 / (_ROW * len(values) + 0.5), 0.63, 1 - 0.45 / (_ROW * len(values) + 0.5))
        )

        # every row has a height of its own: what counts is its shape, not how many images it has
        for row, (_, each) in enumerate(values):
            counts, _ = np.histogram(each, bins)
            heights = counts / counts.max() * 0.86
            axes.stairs(heights - row, bins, baseline=-row, fill=True, color=_ACCENT, alpha=0.55, linewidth=0)
            axes.axhline(-row, color=_LINE, linewidth=0.6, zorder=0)
            axes.plot([each.mean()] * 2, [-row, -row + 0.86], color=_INK, linewidth=1)

        axes.set_yticks([-row + 0.3 for row in range(len(values))], [_label(batch, n) for n, _ in values])
        axes.set_ylim(-len(values) + 1 - 0.05, 1)
        axes.set_xlim(low, high)
        axes.spines["left"].set_visible(False)
        axes.locator_params(axis="x", nbins=5)
        if low < 0 < high:
            axes.axvline(0, color=_MUTED, linewidth=0.8, linestyle=(0, (2, 2)))

        return _svg(figure, f"Histograms of {score.title} for {len(values)} edits")


def trade_off(batch: Batch, effect: Score, cost: Score, sweep: Sweep | None = None) -> str:
    """Return the mean effect of edits against what they cost, with standard errors, as SVG.

    Args:
        batch: The batch.
        effect: Score on the vertical axis.
        cost: Score on the horizontal axis; one of which more is better is drawn as what it lacks of 1.
        sweep: Draw one edit's variants, a line for each threshold; without it every edit is a point.
    """
    series = _sweep_series(sweep) if sweep else {"": list(range(len(batch.edits)))}

    with _styled():
        figure, axes = _square()
        for place, (name, numbers) in enumerate(series.items()):
            points = np.array([[*_cost(batch, n, cost), *batch.mean(n, effect.name)] for n in numbers])
            # an edit of which no image is done has no place
            keep = np.isfinite(points[:, 0]) & np.isfinite(points[:, 2])
            x, dx, y, dy = points[keep].T
            colour = _SERIES[place % len(_SERIES)] if sweep else _ACCENT
            bars = [np.nan_to_num(each) for each in (dx, dy)]

            axes.errorbar(
                x, y, bars[1], bars[0], color=colour, marker="o", markersize=4, linewidth=1.3 if sweep else 0,
                elinewidth=0.8, label=name or None,
            )  # fmt: skip
            _annotate(batch, axes, [n for n, ok in zip(numbers, keep, strict=True) if ok], x, y, sweep)

        axes.margins(0.14)  # names of points stand beside them
        axes.set_xlabel(f"1 − {cost.title}" if cost.high_is_better else cost.title)
        axes.set_ylabel(effect.title)
        if sweep and len(series) > 1:
            axes.legend(fontsize=7, loc="best", handlelength=1.2, borderpad=0.2)

        return _svg(figure, f"{effect.title} against {cost.title}")


def tried(choice: Choice) -> str:
    """Return the pairs of alpha and beta that were tried for an edit, effect against movement, as SVG.

    The pair that was chosen has a ring, the effect that was wanted a dashed line.
    """
    betas = sorted(set(choice.betas), key=lambda value: (value is not None, value or 0))

    with _styled():
        figure, axes = _square()
        axes.axhline(choice.wanted, color=_MUTED, linewidth=0.8, linestyle=(0, (3, 2)))

        # pairs were tried in the order of a search; a line through them goes by strength
        for place, beta in enumerate(betas):
            mine = [n for n, value in enumerate(choice.betas) if value == beta]
            mine.sort(key=lambda n: choice.alphas[n])
            across, up = [choice.movements[n] for n in mine], [choice.effects[n] for n in mine]
            colour = _SERIES[place % len(_SERIES)]
            axes.plot(across, up, color=colour, marker="o", markersize=2.5, linewidth=0.9, alpha=0.8)

        axes.plot(
            choice.movements[-1], choice.effects[-1], color=_INK, marker="o", markersize=9, fillstyle="none"
        )
        axes.set_xlabel("Movement elsewhere")
        axes.set_ylabel("Probability of the target")
        return _svg(figure, f"Pairs tried for {choice.target}")


def _square() -> tuple[Figure, Axes]:
    """Return a figure for points, with a grid behind them."""
    figure = Figure(figsize=(_WIDTH, 2.9))
    axes = figure.add_axes((0.16, 0.16, 0.8, 0.8))
    axes.grid(True)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", labelcolor=_MUTED)
    axes.locator_params(nbins=5)
    return figure, axes


def _sweep_series(sweep: Sweep) -> dict[str, list[int]]:
    names = [f"{sweep.by} {value:g}" if value is not None else sweep.axis for value in sweep.thresholds]
    rows = [[number for number in row if number >= 0] for row in sweep.cells]
    return {name: numbers for name, numbers in zip(names, rows, strict=True) if numbers}


def _annotate(
    batch: Batch, axes: Axes, numbers: Sequence[int], x: np.ndarray, y: np.ndarray, sweep: Sweep | None
) -> None:
    """Name the points: by their strength within a sweep, else each edit's most costly variant by its name."""
    named = {
        batch.edits[number].name: place for place, number in sorted(enumerate(numbers), key=lambda i: x[i[0]])
    }

    for place, number in enumerate(numbers):
        edit = batch.edits[number]
        if not sweep and named[edit.name] != place:
            continue
        text = f"{edit.strength:g}" if sweep and edit.strength is not None else edit.name

        axes.annotate(
            text, (x[place], y[place]), (3, 3), textcoords="offset points", fontsize=6.5, color=_MUTED,
            parse_math=False,
        )  # fmt: skip


def _cost(batch: Batch, edit: int, cost: Score) -> tuple[float, float]:
    mean, error = batch.mean(edit, cost.name)
    return (1 - mean if cost.high_is_better else mean), error


def _finite(values: np.ndarray) -> np.ndarray:
    finite: np.ndarray = values[np.isfinite(values)]
    return finite


def _range(values: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return a range that holds all but stray values, never empty."""
    together = np.concatenate(values)
    # a few stray values would squeeze all others into one bin
    low, high = np.quantile(together, [0.002, 0.998])
    spare = max(float(high - low) * 0.04, 1e-3)
    return float(low) - spare, float(high) + spare


def _label(batch: Batch, number: int) -> str:
    edit = batch.edits[number]
    alone = sum(other.name == edit.name for other in batch.edits) == 1
    text = edit.name if alone else f"{edit.name} {edit.summary}"
    return text if len(text) <= 26 else f"{text[:25]}…"


def _svg(figure: Figure, label: str) -> str:
    """Return a figure as an SVG element: no declarations, no names, the page's colours and font."""
    # a dollar sign in a name must not begin a formula
    for text in figure.findobj(Text):
        text.set_parse_math(False)

    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", metadata=nothing)
    svg = buffer.getvalue()

    # names must not meet those of other drawings on the page, and sizes are the page's
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.S)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = (
        re.sub(r' (xmlns(:\w+)?|version|width|height)="[^"]*"', "", svg.split(">", 1)[0])
        + ">"
        + svg.split(">", 1)[1]
    )

    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r"font: ([^;\"]*?)(\d[\d.]*)px[^;\"]*", r"font-size: \2px", svg)
    for placeholder, variable in _VARIABLES.items():
        svg = svg.replace(placeholder, f"var({variable})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
