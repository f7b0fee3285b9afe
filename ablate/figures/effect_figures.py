"""The report's figures of effects: forest, slopes by seed, Shapley values, interactions.

A metric in which nothing was measured, as of models with one objective, has no panel. Figures of
cells are in `ablate.figures.cell_figures`, the contact sheet is in `ablate.figures.caption_sheet`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from ablate.analysis.results import StudyResults
from ablate.core.grid import Contrast
from ablate.core.metrics import METRICS, Metric, compared
from ablate.core.plan import Plan
from ablate.figures.style import (
    CANDIDATE,
    IMPROVED,
    INK,
    LINE,
    MUTED,
    WORSE,
    ZONE,
    Drawing,
    despine,
    new_figure,
    verdict_ink,
    verdict_mark,
    with_style,
)
from ablate.stats.effects import Effect
from ablate.stats.factorial import Attribution, Part

MOST_PANELS = 6  # of an interaction plot: four swaps; more pairs are in the table only


@with_style
def forest(plan: Plan, results: StudyResults, prefix: str = "") -> Drawing | None:
    """Return each contrast's improvement with its 95% interval, a panel per measured metric.

    The primary contrast is first, the A/A contrast last and grey; the zone within the smallest
    effect of interest is shaded. ``prefix`` is a stage's, or `FINETUNED`.
    """
    measured = [e for e in (*results.effects, *results.noise) if e.seeds]
    by_metric = {
        metric: effects
        for metric in compared()
        if (effects := {e.contrast: e for e in measured if e.metric == prefix + metric.key})
    }
    if not by_metric:
        return None
    ordered = sorted(plan.contrasts, key=lambda c: not c.primary)
    contrasts = [*ordered, *([plan.noise] if plan.noise else [])]
    rows = {c.name: c for c in contrasts if any(c.name in e for e in by_metric.values())}
    places = {name: i for i, name in enumerate(rows)}
    figure = new_figure(11, 1.3 + 0.32 * len(rows))
    panels = figure.subplots(1, len(by_metric), sharey=True, squeeze=False)[0]
    for panel, (metric, effects) in zip(panels, by_metric.items(), strict=True):
        _forest_panel(panel, effects, places, plan)
        panel.set_title(metric.label + " (decides)" * (metric.key == plan.decides))
    _name_rows(panels[0], rows, plan)
    verdicts = next((e for m, e in by_metric.items() if m.key == plan.decides), {})
    _tell_verdicts(panels[-1], {n: verdicts[n].verdict for n in rows if n in verdicts}, places)
    figure.supxlabel(
        f"improvement in %, mean and 95% interval over seeds; right of 0 is better; shaded: less "
        f"than {plan.smallest_effect:g}%, of no interest",
        fontsize=9,
        color=MUTED,
    )
    return figure


def _forest_panel(
    panel: Axes, effects: dict[str, Effect], places: dict[str, int], plan: Plan
) -> None:
    panel.axvspan(-plan.smallest_effect, plan.smallest_effect, color=ZONE, linewidth=0, zorder=0)
    panel.axvline(0, color=MUTED, linewidth=0.9, zorder=1)
    reach = _reach(list(effects.values()), plan.smallest_effect)
    for effect in effects.values():
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
def slopes(plan: Plan, results: StudyResults) -> Drawing | None:
    """Return the primary contrast seed by seed: a line from reference to candidate for each."""
    measured = [(m, results.pairs[m.key]) for m in compared() if results.pairs.get(m.key)]
    if plan.primary is None or not measured:
        return None
    figure = new_figure(11, 3.6)
    panels = figure.subplots(1, len(measured), squeeze=False)[0]
    for panel, (metric, pairs) in zip(panels, measured, strict=True):
        _slopes_panel(panel, pairs, metric)
        panel.set_xticks([0, 1], _ends(plan.primary))
    figure.supxlabel(
        "test metric, a line per seed, blue where it gets better; the thick line joins the means",
        fontsize=9, color=MUTED,
    )  # fmt: skip
    return figure


def _slopes_panel(panel: Axes, pairs: Mapping[int, tuple[float, float]], metric: Metric) -> None:
    sign = 1 if metric.direction == "lower" else -1
    better = 0
    for seed, (reference, candidate) in pairs.items():
        improves = sign * candidate < sign * reference
        better += improves
        panel.plot([0, 1], [reference, candidate], "o-", color=IMPROVED if improves else WORSE,
                   linewidth=1.2, markersize=4, label=f"seed {seed}")  # fmt: skip
    means = [statistics.fmean(ends) for ends in zip(*pairs.values(), strict=True)]
    panel.plot([0, 1], means, color=INK, linewidth=3, label="mean", zorder=3)
    panel.tick_params(axis="x", labelcolor=INK)
    panel.set_xlim(-0.25, 1.25)
    panel.set_title(metric.label)
    panel.set_xlabel(f"{metric.direction} in {better} of {len(pairs)} seeds")
    despine(panel, "y")


def _ends(contrast: Contrast) -> list[str]:
    (reference, candidate), *others = contrast.pairs
    return ["without", "with"] if others else [reference, candidate]


@with_style
def shapley(results: StudyResults) -> Drawing | None:
    """Return each swap's Shapley value as a step on the way from nothing to the whole gain."""
    parted = [(m, results.attributions[m.key]) for m in compared() if m.key in results.attributions]
    if results.decides not in results.attributions:
        return None
    deciding = results.attributions[results.decides]
    count = len(deciding.shapley) + 1
    figure = new_figure(11, 1.3 + 0.42 * count)
    panels = figure.subplots(1, len(parted), sharey=True, squeeze=False)[0]
    for panel, (metric, attribution) in zip(panels, parted, strict=True):
        _waterfall(panel, attribution)
        panel.set_title(metric.label)
    parts = [*deciding.shapley, deciding.gain]
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


def _waterfall(panel: Axes, attribution: Attribution) -> None:
    start = 0.0
    for row, part in enumerate([*attribution.shapley, attribution.gain]):
        is_whole = part is attribution.gain
        begin = 0.0 if is_whole else start
        ink = INK if is_whole else IMPROVED if part.estimate > 0 else WORSE
        panel.barh(row, part.estimate, left=begin, height=0.56, color=ink, label=part.name)
        end = begin + part.estimate
        if math.isfinite(part.low):
            ends = [begin + part.low, begin + part.high]
            panel.plot(ends, [row + 0.36] * 2, color=MUTED, linewidth=1.4, marker="|", markersize=5)
        if not is_whole:
            panel.plot([end, end], [row, row + 1], color=MUTED, linewidth=0.8, linestyle=":")
        panel.annotate(
            f"{part.estimate:+.2f}",
            (max(begin, end), row),
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
def interactions(plan: Plan, results: StudyResults) -> Drawing | None:
    """Return a panel per pair of swaps: one from without to with, without and with the other.

    Improvements over the cell without any swap, averaged over the settings of further swaps within
    each seed. Parallel lines add up: a dashed one shows where they would lead.
    """
    attribution = results.attributions.get(plan.decides)
    by_pair: dict[tuple[str, str], dict[tuple[bool, bool], Part]] = {}
    for setting in attribution.settings if attribution else ():
        by_pair.setdefault(setting.swaps, {})[setting.present] = setting.gain
    if not by_pair:
        return None
    pairs = list(by_pair.items())[:MOST_PANELS]
    figure = new_figure(max(11.0, 3.6 * len(pairs)), 3.4)
    panels = figure.subplots(1, len(pairs), sharey=True, squeeze=False)[0]
    for panel, (swaps, gains) in zip(panels, pairs, strict=True):
        _interaction(panel, gains, *swaps)
    base = next(cell for cell, swaps in plan.factorial.items() if not swaps)
    panels[0].set_ylabel(f"improvement of {METRICS[plan.decides].label} over {base}, %")
    return figure


def _interaction(
    panel: Axes, gains: Mapping[tuple[bool, bool], Part], one: str, other: str
) -> None:
    lines = {}
    for with_other, ink, shift in ((False, INK, -0.02), (True, CANDIDATE, 0.02)):
        parts = [gains[with_one, with_other] for with_one in (False, True)]
        means = [part.estimate for part in parts]
        xs = [shift, 1 + shift]
        words = f"{'with' if with_other else 'without'} {other}"
        panel.plot(xs, means, "o-", color=ink, linewidth=2, markersize=5, label=words)
        for x, part in zip(xs, parts, strict=True):
            if math.isfinite(part.low) and part.high > part.low:
                panel.plot([x, x], [part.low, part.high], color=ink, linewidth=1.1)
        lines[words] = means
    (start, right), (other_left, other_right) = lines.values()
    expected = [other_left, other_left + right - start]
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
