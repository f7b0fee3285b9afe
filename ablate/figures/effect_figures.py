"""The report's figures of effects: forest, slopes by seed, Shapley values, interactions.

A metric in which nothing was measured, as of models with one objective, has no panel. Figures of
cells are in `ablate.figures.cell_figures`, the contact sheet is in `ablate.figures.caption_sheet`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from ablate.analysis.losses import stage_losses
from ablate.analysis.results import StudyResults
from ablate.core.grid import Contrast
from ablate.core.ledger import Ledger
from ablate.core.metrics import DECISIVE, FINETUNED, LABELS
from ablate.core.plan import Plan
from ablate.core.search_results import read_outcomes
from ablate.figures.cell_figures import cost_against_quality, curves
from ablate.figures.search_figures import history
from ablate.figures.style import (
    CANDIDATE,
    DRAWINGS,
    IMPROVED,
    INK,
    LINE,
    MUTED,
    WORSE,
    ZONE,
    Drawing,
    despine,
    new_figure,
    save_all,
    verdict_ink,
    verdict_mark,
    with_style,
)
from ablate.stats.effects import Effect, Losses
from ablate.stats.factorial import Attribution
from ablate.stats.tests_and_intervals import t_interval

MOST_PANELS = 6  # of an interaction plot: four swaps; more pairs are in the table only


def draw_figures(plan: Plan, ledger: Ledger, found: StudyResults) -> list[Path]:
    """Draw all figures that the study has data for, each as PNG and SVG; returns their paths."""
    made: dict[str, Callable[[], Drawing | None]] = {
        "effects": lambda: forest(plan, found),
        "effects-finetuned": lambda: forest(plan, found, FINETUNED),
        "slopes": lambda: slopes(plan, ledger),
        "shapley": lambda: shapley(found),
        "interactions": lambda: interactions(plan, ledger),
        "curves": lambda: curves(plan, ledger),
        "cost": lambda: cost_against_quality(plan, ledger),
        "search": lambda: history(read_outcomes(ledger.directory)) if plan.tuned else None,
    }
    assert tuple(made) == DRAWINGS
    return save_all(made, ledger.directory)


@with_style
def forest(plan: Plan, found: StudyResults, prefix: str = "") -> Drawing | None:
    """Return each contrast's improvement with its 95% interval, a panel per measured metric.

    The primary contrast is first, the A/A contrast last and grey; the zone within the smallest
    effect of interest is shaded. ``prefix`` is a stage's, or `FINETUNED`.
    """
    every = [e for e in (*found.effects, *found.noise) if e.seeds]
    by_metric = {m: {e.contrast: e for e in every if e.metric == prefix + m} for m in LABELS}
    shown = {metric: own for metric, own in by_metric.items() if own}
    if not shown:
        return None
    ordered = sorted(plan.contrasts, key=lambda c: not c.primary)
    contrasts = [*ordered, *([plan.noise] if plan.noise else [])]
    rows = {c.name: c for c in contrasts if any(c.name in own for own in shown.values())}
    places = {name: i for i, name in enumerate(rows)}
    figure = new_figure(11, 1.3 + 0.32 * len(rows))
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for panel, (metric, own) in zip(panels, shown.items(), strict=True):
        _forest_panel(panel, own, places, plan)
        panel.set_title(LABELS[metric] + (" (decides)" if metric == DECISIVE else ""))
    _name_rows(panels[0], rows, plan)
    _tell_verdicts(panels[-1], {n: own[n].verdict for n in rows if n in own}, places)
    figure.supxlabel(
        f"improvement in %, mean and 95% interval over seeds; right of 0 is better; shaded: less "
        f"than {plan.smallest_effect:g}%, of no interest",
        fontsize=9,
        color=MUTED,
    )
    return figure


def _forest_panel(panel: Axes, own: dict[str, Effect], places: dict[str, int], plan: Plan) -> None:
    panel.axvspan(-plan.smallest_effect, plan.smallest_effect, color=ZONE, linewidth=0, zorder=0)
    panel.axvline(0, color=MUTED, linewidth=0.9, zorder=1)
    reach = _reach(list(own.values()), plan.smallest_effect)
    for effect in own.values():
        row, is_noise = places[effect.contrast], plan.noise and effect.contrast == plan.noise.name
        ink = MUTED if is_noise else verdict_ink(effect.verdict)
        primary = plan.primary and effect.contrast == plan.primary.name
        if math.isfinite(effect.low):
            ends = [max(effect.low, -reach), min(effect.high, reach)]
            panel.plot(ends, [row, row], color=ink, linewidth=3.2 if primary else 1.8, zorder=2)
            for end, sign in ((effect.low, "<"), (effect.high, ">")):
                if abs(end) > reach:  # goes on beyond the panel
                    panel.plot(math.copysign(reach, end), row, sign, color=ink, markersize=5)
        mark = {**verdict_mark(effect.verdict), **({"marker": "D"} if is_noise else {})}
        panel.plot(effect.estimate, row, linestyle="", zorder=3, **mark)
    panel.set_xlim(-1.04 * reach, 1.04 * reach)
    despine(panel, "x")


def _reach(effects: Sequence[Effect], smallest: float) -> float:
    """Return how far a panel reaches: over all intervals, but no more than four estimates wide."""
    ends = [abs(v) for e in effects for v in (e.low, e.high, e.estimate) if math.isfinite(v)]
    most = max(abs(e.estimate) for e in effects)
    return max(min(max(ends), max(4 * most, 4 * smallest)), 1.5 * smallest)


def _name_rows(panel: Axes, rows: dict[str, Contrast], plan: Plan) -> None:
    words = [
        name + (" (primary)" if c.primary else " (A/A)" if c == plan.noise else "")
        for name, c in rows.items()
    ]
    panel.set_yticks(range(len(rows)), words)
    panel.set_ylim(len(rows) - 0.4, -0.6)
    for label, contrast in zip(panel.get_yticklabels(), rows.values(), strict=True):
        label.set_color(INK if contrast != plan.noise else MUTED)
        label.set_fontweight("bold" if contrast.primary else "normal")


def _tell_verdicts(panel: Axes, verdicts: dict[str, str], places: dict[str, int]) -> None:
    """Write the verdicts of a panel's rows at its right edge."""
    for name, verdict in verdicts.items():
        panel.annotate(
            verdict,
            (1, places[name]),
            xytext=(6, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            color=verdict_ink(verdict),
        )


@with_style
def slopes(plan: Plan, ledger: Ledger) -> Drawing | None:
    """Return the primary contrast seed by seed: a line from reference to candidate for each."""
    if plan.primary is None:
        return None
    losses = stage_losses(plan, ledger)
    pairs = {metric: _both_ends(plan.primary, losses[metric]) for metric in LABELS}
    shown = {metric: own for metric, own in pairs.items() if own}
    if not shown:
        return None
    figure = new_figure(11, 3.6)
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for panel, (metric, own) in zip(panels, shown.items(), strict=True):
        better = sum(new < old for old, new in own.values())
        for seed, (old, new) in own.items():
            ink = IMPROVED if new < old else WORSE
            panel.plot([0, 1], [old, new], "o-", color=ink, linewidth=1.2, markersize=4,
                       label=f"seed {seed}")  # fmt: skip
        means = np.mean(list(own.values()), axis=0)
        panel.plot([0, 1], means, color=INK, linewidth=3, label="mean", zorder=3)
        panel.set_xticks([0, 1], _ends(plan.primary))
        panel.tick_params(axis="x", labelcolor=INK)
        panel.set_xlim(-0.25, 1.25)
        panel.set_title(LABELS[metric])
        panel.set_xlabel(f"lower in {better} of {len(own)} seeds")
        despine(panel, "y")
    figure.supxlabel(
        "test loss, a line per seed, blue where it falls; the thick line is the mean",
        fontsize=9, color=MUTED,
    )  # fmt: skip
    return figure


def _ends(contrast: Contrast) -> list[str]:
    (reference, candidate), *others = contrast.pairs
    return ["without", "with"] if others else [reference, candidate]


def _both_ends(contrast: Contrast, losses: Losses) -> dict[int, tuple[float, float]]:
    """Return reference's and candidate's loss by seed, as means over the contrast's pairs."""
    seeds = {seed for _, seed in losses}
    found = {
        seed: tuple(
            float(np.mean([losses.get((pair[end], seed), math.nan) for pair in contrast.pairs]))
            for end in (0, 1)
        )
        for seed in sorted(seeds)
    }
    return {seed: (a, b) for seed, (a, b) in found.items() if math.isfinite(a + b)}


@with_style
def shapley(found: StudyResults) -> Drawing | None:
    """Return each swap's Shapley value as a step on the way from nothing to the whole gain."""
    shown = {m: found.attributions[m] for m in LABELS if m in found.attributions}
    if DECISIVE not in shown:
        return None
    count = len(shown[DECISIVE].shapley) + 1
    figure = new_figure(11, 1.3 + 0.42 * count)
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for panel, (metric, attribution) in zip(panels, shown.items(), strict=True):
        _waterfall(panel, attribution)
        panel.set_title(LABELS[metric])
    parts = [*shown[DECISIVE].shapley, shown[DECISIVE].gain]
    panels[0].set_yticks(range(count), [part.name for part in parts])
    panels[0].set_ylim(count - 0.4, -0.6)
    for panel in panels:
        panel.tick_params(axis="y", labelcolor=INK)
    figure.supxlabel(
        "improvement in %: each bar starts where the one above ends, together they are the whole; "
        "lines are 95% intervals of a bar's length",
        fontsize=9,
        color=MUTED,
    )
    return figure


def _waterfall(panel: Axes, found: Attribution) -> None:
    start = 0.0
    for row, part in enumerate([*found.shapley, found.gain]):
        is_whole = part is found.gain
        left = 0.0 if is_whole else start
        ink = INK if is_whole else IMPROVED if part.estimate > 0 else WORSE
        panel.barh(row, part.estimate, left=left, height=0.56, color=ink, label=part.name)
        end = left + part.estimate
        if math.isfinite(part.low):
            ends = [left + part.low, left + part.high]
            panel.plot(ends, [row + 0.36] * 2, color=MUTED, linewidth=1.4, marker="|", markersize=5)
        if not is_whole:
            panel.plot([end, end], [row, row + 1], color=MUTED, linewidth=0.8, linestyle=":")
        panel.annotate(
            f"{part.estimate:+.2f}",
            (max(left, end), row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
        start = end
    panel.axvline(0, color=MUTED, linewidth=0.9)
    panel.margins(x=0.14)
    despine(panel, "x")


@with_style
def interactions(plan: Plan, ledger: Ledger) -> Drawing | None:
    """Return a panel per pair of swaps: one from without to with, without and with the other.

    Improvements over the cell without any swap, averaged over the settings of further swaps within
    each seed. Parallel lines add up: a dashed one shows where they would lead.
    """
    cells = {frozenset(swaps): name for name, swaps in plan.factorial.items()}
    losses = stage_losses(plan, ledger)[DECISIVE]
    gains = _gains(cells, losses)
    if not gains:
        return None
    swaps = sorted(frozenset().union(*gains))
    pairs = list(itertools.combinations(swaps, 2))[:MOST_PANELS]
    if not pairs:
        return None
    figure = new_figure(max(11.0, 3.6 * len(pairs)), 3.4)
    panels = figure.subplots(1, len(pairs), sharey=True, squeeze=False)[0]
    for panel, (one, other) in zip(panels, pairs, strict=True):
        _interaction(panel, gains, one, other)
    panels[0].set_ylabel(f"improvement of {LABELS[DECISIVE]} over {cells[frozenset()]}, %")
    return figure


def _gains(cells: dict[frozenset[str], str], losses: Losses) -> dict[frozenset[str], np.ndarray]:
    """Return each cell's gain [seeds] over the one without swaps, of seeds that all cells have."""
    seeds = sorted({seed for _, seed in losses})
    table = {
        swaps: np.array([losses.get((name, seed), math.nan) for seed in seeds])
        for swaps, name in cells.items()
    }
    if not seeds or not table:
        return {}
    whole = np.isfinite(np.sum(list(table.values()), axis=0))
    reference = table[frozenset()][whole]
    return {s: 100 * (1 - v[whole] / reference) for s, v in table.items()} if whole.any() else {}


def _interaction(
    panel: Axes, gains: dict[frozenset[str], np.ndarray], one: str, other: str
) -> None:
    def seeds_of(with_one: bool, with_other: bool) -> np.ndarray:
        wanted = (with_one, with_other)
        chosen = [v for s, v in gains.items() if (one in s, other in s) == wanted]
        return np.asarray(np.mean(chosen, axis=0))

    lines = {}
    for with_other, ink, shift in ((False, INK, -0.02), (True, CANDIDATE, 0.02)):
        values = [seeds_of(with_one, with_other) for with_one in (False, True)]
        means = [float(v.mean()) for v in values]
        xs = [shift, 1 + shift]
        words = f"{'with' if with_other else 'without'} {other}"
        panel.plot(xs, means, "o-", color=ink, linewidth=2, markersize=5, label=words)
        for x, own in zip(xs, values, strict=True):
            low, high = t_interval(own)
            if math.isfinite(low) and high > low:
                panel.plot([x, x], [low, high], color=ink, linewidth=1.1)
        lines[words] = means
    (left, right), (other_left, other_right) = lines.values()
    expected = [other_left, other_left + right - left]
    panel.plot([0.02, 1.02], expected, "--", color=CANDIDATE, linewidth=1, label="if they added up")
    lower_first = right <= other_right
    for words, ink, is_lower in zip(
        lines, (INK, CANDIDATE), (lower_first, not lower_first), strict=True
    ):
        panel.annotate(
            words, (1.02, lines[words][1]), xytext=(7, -1 if is_lower else 1),
            textcoords="offset points", va="top" if is_lower else "bottom", color=ink,
        )  # fmt: skip
    panel.axhline(0, color=LINE, linewidth=0.9, zorder=0)
    panel.set_xticks([0, 1], [f"without {one}", f"with {one}"])
    panel.tick_params(axis="x", labelcolor=INK)
    panel.set_xlim(-0.2, 1.75)
    despine(panel, "y")
