"""The report's figures of cells: how they learn, and what they cost for what they reach.

A metric in which nothing was measured, as of models with one objective, has no panel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from scipy.optimize import isotonic_regression

from ablate.analysis.cells import CellCost, CostTable, Line
from ablate.analysis.results import StudyResults
from ablate.core.metrics import METRICS, compared
from ablate.core.plan import Plan
from ablate.figures.style import (
    CANDIDATE,
    INK,
    MUTED,
    SERIES,
    Drawing,
    despine,
    new_figure,
    with_style,
)

BOLD = {INK, CANDIDATE}  # the inks of the primary contrast's two cells
MOST_LABELS = 12  # further cells are drawn in grey and not named


@with_style
def curves(plan: Plan, results: StudyResults) -> Drawing | None:
    """Return validation metrics by step, and below them the improvement over the reference.

    Lines are means over seeds, paired by seed below, where differences are that above drown in
    what all cells learn. Bands reach from the lowest to the highest seed: of the primary contrast's
    two cells above, of its candidate below.
    """
    measured = [(m, results.curves[m.key]) for m in compared() if m.key in results.curves]
    if not measured:
        return None
    inks = _inks(plan)
    figure = new_figure(11, 6.2)
    panels = figure.subplots(2, len(measured), sharex=True, squeeze=False)
    for (upper, lower), (metric, lines) in zip(panels.T, measured, strict=True):
        _lines(upper, lines.values, inks, plan)
        upper.set_title(f"validation {metric.label}")
        ends = _lines(lower, lines.improvements, inks, plan)
        lower.set_title(f"improvement over {plan.reference}, %")
        lower.axhline(0, color=INK, linewidth=1.4, zorder=1)
        lower.set_xlabel("step")
        lower.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    label_ends(lower, {**ends, plan.reference: (lines.last_step, 0.0)}, inks)
    return figure


def _lines(
    panel: Axes, lines: Sequence[Line], inks: Mapping[str, str], plan: Plan
) -> dict[str, tuple[float, float]]:
    """Draw a line per cell, bold with a band for the primary's; returns where they end."""
    ends: dict[str, tuple[float, float]] = {}
    for line in lines:
        ink, bold = inks[line.cell], line.cell in _emphasised(plan)
        panel.plot(
            line.steps, line.means, color=ink, label=line.cell,
            linewidth=2.6 if bold else 1.1, zorder=3 if bold else 2,
            marker="o", markersize=4 if bold else 0,
        )  # fmt: skip
        if bold:
            panel.fill_between(line.steps, line.low, line.high, color=ink, alpha=0.15, linewidth=0)
        ends[line.cell] = (line.steps[-1], line.means[-1])
    despine(panel, "y")
    return ends


def _emphasised(plan: Plan) -> set[str]:
    return set(plan.primary.cells) if plan.primary and len(plan.primary.pairs) == 1 else set()


def _inks(plan: Plan) -> dict[str, str]:
    """Return a hue for each cell: the reference's and candidate's are kept for them."""
    others = [cell for cell in plan.costs if cell not in _emphasised(plan)]
    many = len(others) > MOST_LABELS
    inks = {c: MUTED if many else SERIES[i % len(SERIES)] for i, c in enumerate(others)}
    if plan.primary and _emphasised(plan):
        reference, candidate = plan.primary.pairs[0]
        inks |= {reference: INK, candidate: CANDIDATE}
    if plan.noise:
        inks[plan.noise.pairs[0][1]] = MUTED
    return inks


def label_ends(
    panel: Axes, ends: Mapping[str, tuple[float, float]], inks: Mapping[str, str]
) -> None:
    """Name lines to the right of a panel, each at its end's height as far as there is room."""
    chosen = [c for c in ends if len(ends) <= MOST_LABELS + 2 or inks[c] in BOLD]
    order = sorted(chosen, key=lambda cell: ends[cell][1])
    low, high = panel.get_ylim()
    heights = spread([ends[cell][1] for cell in order], 0.078 * (high - low))
    right = panel.get_xlim()[1]
    for cell, height in zip(order, heights, strict=True):
        panel.annotate(
            cell,
            ends[cell],
            xytext=(right + 0.08 * (right - panel.get_xlim()[0]), height),
            textcoords="data",
            va="center",
            annotation_clip=False,
            color=inks[cell],
            fontweight="bold" if inks[cell] in BOLD else "normal",
            fontsize=9,
            arrowprops={
                "arrowstyle": "-",
                "color": inks[cell],
                "linewidth": 0.6,
                "shrinkB": 2,
                "relpos": (0, 0.5),
            },
        )


def spread(heights: list[float], room: float) -> list[float]:
    """Return ascending heights moved as little as can be until they are ``room`` apart."""
    steps = room * np.arange(len(heights))
    moved = isotonic_regression(np.array(heights) - steps).x + steps
    return [float(height) for height in moved]


@with_style
def cost_against_quality(plan: Plan, results: StudyResults) -> Drawing | None:
    """Return each cell's deciding test metric with its 95% interval, by what it costs.

    Costs are floating-point operations, which are counted, and training time, which is measured.
    Cells are numbered by their mean, the best one first; where costs are equal, their points are
    moved aside.
    """
    cells = results.costs.cells
    if not cells:
        return None
    figure = new_figure(11, max(4.2, 0.9 + 0.2 * len(cells)))
    panels = figure.subplots(1, 2, sharey=True)
    inks = _inks(plan)
    flops = {cell.cell: cell.gigaflops for cell in cells}
    seconds = {cell.cell: cell.seconds for cell in cells}
    for panel, costs in zip(panels, (flops, seconds), strict=True):
        places = _aside(costs)
        for number, cell in enumerate(cells, start=1):
            _point(panel, places[cell.cell], cell, inks[cell.cell], number)
        panel.margins(0.09, 0.12)
        despine(panel, "y")
    _name_numbers(panels[1], [cell.cell for cell in cells], inks)
    metric = METRICS[plan.decides]
    panels[0].set_ylabel(f"test {metric.label}; {metric.direction} is better")
    panels[0].set_xlabel("GFLOP per training step")
    panels[1].set_xlabel("training seconds, mean over seeds")
    if words := _how_placed(results.costs, plan.reference):
        figure.supxlabel(words, fontsize=9, color=MUTED)
    return figure


def _how_placed(costs: CostTable, reference: str) -> str:
    """Return in words how cells were placed that do not have the same seeds, or nothing."""
    if costs.same_seeds:
        return ""
    lost = ", ".join(costs.without_reference)
    words = f"\nWithout a seed of {reference}, and not shown: {lost}." if lost else ""
    return (
        f"Cells do not have the same seeds. Each stands at {reference}'s mean over all seeds, "
        f"times its mean ratio to {reference} of the same seed.{words}"
    )


def _name_numbers(panel: Axes, order: Sequence[str], inks: Mapping[str, str]) -> None:
    """Write the cells' numbers and names to the right of a panel."""
    for number, cell in enumerate(order, start=1):
        panel.annotate(
            f"{number}  {cell}", (1, 1), xytext=(10, -15 * (number - 0.5)),
            xycoords="axes fraction", textcoords="offset points", color=inks[cell], va="center",
            fontweight="bold" if inks[cell] in BOLD else "normal",
        )  # fmt: skip


def _aside(costs: Mapping[str, float]) -> dict[str, float]:
    """Return costs moved as little as can be until a panel shows them apart."""
    order = sorted(costs, key=lambda cell: costs[cell])
    values = [costs[cell] for cell in order]
    width = (values[-1] - values[0]) or values[0] or 1.0
    return dict(zip(order, spread(values, 0.03 * width), strict=True))


def _point(panel: Axes, x: float, cell: CellCost, ink: str, number: int) -> None:
    bold = ink in BOLD
    if math.isfinite(cell.low):
        panel.plot([x, x], [cell.low, cell.high], color=ink, linewidth=2.4 if bold else 1.1)
    panel.plot(x, cell.mean, "o", color=ink, markersize=7 if bold else 5)
    panel.annotate(
        str(number),
        (x, cell.high if math.isfinite(cell.high) else cell.mean),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        color=ink,
        fontsize=8.5,
        fontweight="bold" if bold else "normal",
    )
