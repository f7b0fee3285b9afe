"""The report's figures of cells: how they learn, and what they cost for what they reach.

A metric in which nothing was measured, as of models with one objective, has no panel.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from scipy.optimize import isotonic_regression

from ablate.core.ledger import Ledger
from ablate.core.metrics import DECISIVE, LABELS
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
from ablate.stats.tests_and_intervals import t_interval

Curves = Mapping[int, Mapping[int, float]]  # seed -> step -> loss
BOLD = {INK, CANDIDATE}  # the inks of the primary contrast's two cells
MOST_LABELS = 12  # further cells are drawn in grey and not named


@with_style
def curves(plan: Plan, ledger: Ledger) -> Drawing | None:
    """Return validation losses by step, and below them the improvement over the reference.

    Lines are means over seeds, paired by seed below, where differences are that above drown in
    what all cells learn. Bands reach from the lowest to the highest seed: of the primary contrast's
    two cells above, of its candidate below.
    """
    found = {m: own for m in LABELS if (own := _curves(plan, ledger, f"val/{m}"))}
    if not found:
        return None
    inks = _inks(plan)
    figure = new_figure(11, 6.2)
    panels = figure.subplots(2, len(found), sharex=True, squeeze=False)
    for (upper, lower), (metric, own) in zip(panels.T, found.items(), strict=True):
        _lines(upper, own, inks, plan)
        upper.set_title(f"validation {LABELS[metric]}")
        ends = _lines(lower, _gains(own, plan.reference), inks, plan)
        lower.set_title(f"improvement over {plan.reference}, %")
        lower.axhline(0, color=INK, linewidth=1.4, zorder=1)
        lower.set_xlabel("step")
        lower.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    last = max(max(points) for by_seed in own.values() for points in by_seed.values())
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
            found[trial.name][trial.seed] = points
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
def cost_against_quality(plan: Plan, ledger: Ledger) -> Drawing | None:
    """Return each cell's test loss with its 95% interval, by what it costs.

    Costs are floating-point operations, which are counted, and training time, which is measured.
    Cells are numbered by their mean loss, the best one first; where costs are equal, their points
    are moved aside. `comparable` says where cells stand that do not have the same seeds.
    """
    measured, seconds = _losses_and_seconds(plan, ledger)
    losses = comparable(measured, plan.reference)
    if not losses:
        return None
    order = sorted(losses, key=lambda cell: float(losses[cell].mean()))
    figure = new_figure(11, max(4.2, 0.9 + 0.2 * len(order)))
    panels = figure.subplots(1, 2, sharey=True)
    flops = {cell: plan.costs[cell].step_flops / 1e9 for cell in losses}
    inks = _inks(plan)
    for panel, costs in zip(panels, (flops, {c: seconds[c] for c in losses}), strict=True):
        places = _aside(costs)
        for number, cell in enumerate(order, start=1):
            _point(panel, places[cell], losses[cell], inks[cell], number)
        panel.margins(0.09, 0.12)
        despine(panel, "y")
    _name_numbers(panels[1], order, inks)
    panels[0].set_ylabel(f"test {LABELS[DECISIVE]}; lower is better")
    panels[0].set_xlabel("GFLOP per training step")
    panels[1].set_xlabel("training seconds, mean over seeds")
    if words := _how_placed(measured, losses, plan.reference):
        figure.supxlabel(words, fontsize=9, color=MUTED)
    return figure


def _losses_and_seconds(
    plan: Plan, ledger: Ledger
) -> tuple[dict[str, dict[int, float]], dict[str, float]]:
    """Return the finite decisive losses by seed and the mean training time of finished cells."""
    losses, seconds = {}, {}
    for cell in plan.costs:
        done = {t.seed: m for t in plan.of_cell(cell) if (m := ledger.metrics(t)) is not None}
        values = {seed: m[f"test/{DECISIVE}"] for seed, m in done.items()}
        finite = {seed: value for seed, value in values.items() if math.isfinite(value)}
        if finite:
            losses[cell] = finite
            seconds[cell] = statistics.fmean(m["train_seconds"] for m in done.values())
    return losses, seconds


def comparable(losses: Mapping[str, Mapping[int, float]], reference: str) -> dict[str, np.ndarray]:
    """Return losses [seeds] by cell, of means that compare also where seeds are not the same.

    After a race or a failure a cell's mean tells as well how easy the seeds are that it has. Each
    cell's losses are then scaled until their mean is the reference's over all of its seeds times
    the cell's mean ratio to it within a seed. A cell without a seed of the reference is left out.
    """
    plain = {cell: np.array(list(own.values())) for cell, own in losses.items()}
    if _have_same_seeds(losses):
        return plain
    base = losses.get(reference, {})
    placed = {}
    for cell, own in losses.items():
        ratios = [loss / base[seed] for seed, loss in own.items() if base.get(seed, 0.0) > 0]
        if ratios:
            mean = statistics.fmean(base.values()) * statistics.fmean(ratios)
            placed[cell] = plain[cell] * (mean / plain[cell].mean())
    return placed


def _have_same_seeds(losses: Mapping[str, Mapping[int, float]]) -> bool:
    return len({frozenset(own) for own in losses.values()}) <= 1


def _how_placed(
    measured: Mapping[str, Mapping[int, float]], shown: Collection[str], reference: str
) -> str:
    """Return in words how cells were placed that do not have the same seeds, or nothing."""
    if _have_same_seeds(measured):
        return ""
    lost = [cell for cell in measured if cell not in shown]
    words = f"\nWithout a seed of {reference}, and not shown: {', '.join(lost)}." if lost else ""
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
