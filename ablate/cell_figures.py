"""The report's figures of cells: how they learn, and what they cost for what they reach."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from scipy.optimize import isotonic_regression

from ablate.findings import DECISIVE, METRICS
from ablate.ink import CANDIDATE, INK, MUTED, SERIES, Drawing, calm, sheet, styled
from ablate.ledger import Ledger
from ablate.plan import Plan
from ablate.statistics import t_interval

Curves = Mapping[int, Mapping[int, float]]  # seed -> step -> loss
BOLD = {INK, CANDIDATE}  # the inks of the primary contrast's two cells
MOST_LABELS = 12  # further cells are drawn in grey and not named


@styled
def curves(plan: Plan, ledger: Ledger) -> Drawing | None:
    """Return validation losses by step, and below them the improvement over the reference.

    Lines are means over seeds, paired by seed below, where differences are that above drown in
    what all cells learn. Bands reach from the lowest to the highest seed: of the primary contrast's
    two cells above, of its candidate below.
    """
    found = {m: _curves(plan, ledger, f"val/{m}") for m in METRICS}
    if not any(found[DECISIVE].values()):
        return None
    inks = _inks(plan)
    figure = sheet(11, 6.2)
    panels = figure.subplots(2, len(METRICS), sharex=True)
    for column, (metric, title) in enumerate(METRICS.items()):
        upper, lower = panels[:, column]
        _lines(upper, found[metric], inks, plan)
        upper.set_title(f"validation {title}")
        gains = _gains(found[metric], plan.reference)
        ends = _lines(lower, gains, inks, plan)
        lower.set_title(f"improvement over {plan.reference}, %")
        lower.axhline(0, color=INK, linewidth=1.4, zorder=1)
        lower.set_xlabel("step")
        lower.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if metric == DECISIVE:
            last = max(max(own) for by_seed in found[metric].values() for own in by_seed.values())
            label_ends(lower, {**ends, plan.reference: (last, 0.0)}, inks)
    return figure


def _curves(plan: Plan, ledger: Ledger, name: str) -> dict[str, Curves]:
    """Return a metric's finite values by cell, seed and step."""
    found: dict[str, dict[int, dict[int, float]]] = {cell: {} for cell in plan.costs}
    for trial in plan.trials:
        points = {
            line["step"]: line[name]
            for line in ledger.curve(trial)
            if math.isfinite(line.get(name, math.nan))
        }
        if points:
            found[trial.name][trial.pair] = points
    return {cell: by_seed for cell, by_seed in found.items() if by_seed}


def _gains(found: Mapping[str, Curves], reference: str) -> Mapping[str, Curves]:
    """Return the improvement in percent over the reference at the same step of the same seed."""
    base = found.get(reference, {})
    gains: dict[str, dict[int, dict[int, float]]] = {}
    for cell in (cell for cell in found if cell != reference):
        for seed in found[cell].keys() & base.keys():
            ours, theirs = found[cell][seed], base[seed]
            both = ours.keys() & theirs.keys()
            if both:
                points = {step: 100 * (1 - ours[step] / theirs[step]) for step in both}
                gains.setdefault(cell, {})[seed] = points
    return gains


def _lines(
    panel: Axes, found: Mapping[str, Curves], inks: Mapping[str, str], plan: Plan
) -> dict[str, tuple[float, float]]:
    """Draw a line per cell, bold with a band for the primary's; returns where they end."""
    ends: dict[str, tuple[float, float]] = {}
    for cell, by_seed in found.items():
        points = defaultdict(list)
        for own in by_seed.values():
            for step, value in own.items():
                points[step].append(value)
        steps = sorted(points)
        means = [statistics.fmean(points[step]) for step in steps]
        bold = cell in _emphasised(plan)
        panel.plot(
            steps, means, color=inks[cell], label=cell,
            linewidth=2.6 if bold else 1.1, zorder=3 if bold else 2,
            marker="o", markersize=4 if bold else 0,
        )  # fmt: skip
        if bold:
            low, high = ([f(points[step]) for step in steps] for f in (min, max))
            panel.fill_between(steps, low, high, color=inks[cell], alpha=0.15, linewidth=0)
        ends[cell] = (steps[-1], means[-1])
    calm(panel, "y")
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


@styled
def cost_against_quality(plan: Plan, ledger: Ledger) -> Drawing | None:
    """Return each cell's test loss with its 95% interval, by what it costs.

    Costs are floating-point operations, which are counted, and training time, which is measured.
    Cells are numbered by their mean loss, the best one first; where costs are equal, their points
    are moved aside.
    """
    losses, seconds = _losses_and_seconds(plan, ledger)
    if not losses:
        return None
    order = sorted(losses, key=lambda cell: float(losses[cell].mean()))
    figure = sheet(11, max(4.2, 0.9 + 0.2 * len(order)))
    panels = figure.subplots(1, 2, sharey=True)
    flops = {cell: plan.costs[cell].step_flops / 1e9 for cell in losses}
    inks = _inks(plan)
    for panel, costs in zip(panels, (flops, seconds), strict=True):
        places = _aside(costs)
        for number, cell in enumerate(order, start=1):
            _point(panel, places[cell], losses[cell], inks[cell], number)
        panel.margins(0.09, 0.12)
        calm(panel, "y")
    for number, cell in enumerate(order, start=1):
        panels[1].annotate(
            f"{number}  {cell}", (1, 1), xytext=(10, -15 * (number - 0.5)),
            xycoords="axes fraction", textcoords="offset points", color=inks[cell], va="center",
            fontweight="bold" if cell in _emphasised(plan) else "normal",
        )  # fmt: skip
    panels[0].set_ylabel(f"test {METRICS[DECISIVE]}; lower is better")
    panels[0].set_xlabel("GFLOP per training step")
    panels[1].set_xlabel("training seconds, mean over seeds")
    return figure


def _losses_and_seconds(
    plan: Plan, ledger: Ledger
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Return the finite decisive losses [seeds] and the mean training time of finished cells."""
    losses, seconds = {}, {}
    for cell in plan.costs:
        done = [m for t in plan.of_cell(cell) if (m := ledger.metrics(t)) is not None]
        values = np.array([m[f"test/{DECISIVE}"] for m in done])
        if np.isfinite(values).any():
            losses[cell] = values[np.isfinite(values)]
            seconds[cell] = statistics.fmean(m["train_seconds"] for m in done)
    return losses, seconds


def _aside(costs: Mapping[str, float]) -> dict[str, float]:
    """Return costs moved as little as can be until a panel shows them apart."""
    order = sorted(costs, key=lambda cell: costs[cell])
    values = [costs[cell] for cell in order]
    width = (values[-1] - values[0]) or values[0] or 1.0
    return dict(zip(order, spread(values, 0.03 * width), strict=True))


def _point(panel: Axes, x: float, losses: np.ndarray, ink: str, number: int) -> None:
    mean, (low, high) = float(losses.mean()), t_interval(losses)
    bold = ink in BOLD
    if math.isfinite(low):
        panel.plot([x, x], [low, high], color=ink, linewidth=2.4 if bold else 1.1)
    panel.plot(x, mean, "o", color=ink, markersize=7 if bold else 5)
    panel.annotate(
        str(number),
        (x, high if math.isfinite(high) else mean),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        color=ink,
        fontsize=8.5,
        fontweight="bold" if bold else "normal",
    )
