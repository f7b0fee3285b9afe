"""Two studies side by side: pooled where they are one experiment, contrasted where they are not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from pathlib import Path

from ablate.analysis.comparison import (
    Effects,
    StudySummary,
    declared_differ,
    differences,
    in_common,
    later_stages,
    other_cells,
)
from ablate.analysis.pooling import Difference, difference, pool
from ablate.core.grid import Contrast
from ablate.core.metrics import METRICS, compared
from ablate.report.document import Document, Section, Table
from ablate.report.effect_sections import effect_cell, percent, seeds_words, verdict_words
from ablate.report.methods import problems_section
from ablate.report.summary import banner
from ablate.stats.effects import FEWEST_SEEDS, Effect
from blocks import UsageError

LOOKED = (
    "If the second study was run because the first was not clear, pooling them is a look that p "
    "and intervals do not know of: of studies without an effect about 9% then come out clear "
    "instead of 5% (simulated); --race declares looks beforehand."
)


def compare_studies(first: Path, second: Path) -> Document:
    """Return what two studies say together; raises `UsageError` where they share no contrast.

    Seeds are pooled only of contrasts whose cells, recipe, data and code are the same in both; of
    all others the two effects and their difference are shown, with what differs named.
    """
    if first.resolve() == second.resolve():
        raise UsageError(f"{str(first)!r} is given twice; name two studies")
    a, b = StudySummary.open(first), StudySummary.open(second)
    theirs = {contrast.name: contrast for contrast in b.plan.contrasts}
    shared = [c for c in a.plan.contrasts if c.name in theirs]
    if not shared:
        raise UsageError(f"{a.name!r} and {b.name!r} have no contrast in common")
    differing = differences(a, b)
    others = {c.name: words for c in shared if (words := other_cells(c, a.plan, b.plan))}
    alike = [c for c in shared if not differing and c.name not in others]
    pooled = pool(a, b, alike)
    stages, apart = later_stages(a.plan, b.plan)
    items = [*differing, *apart, *declared_differ(a.plan, b.plan)]
    items += [f"{name}: {words}" for name, words in others.items()]
    return Document(
        title=f"{a.name} and {b.name}",
        banner="; ".join(
            f"{s.name}: {words}" for s in (a, b) if (words := banner(s.plan, s.results))
        ),
        opening=_opening(a, b, differing, alike or shared, pooled),
        sections=[
            Section(title="What differs", items=items or ["Nothing: they are one experiment."]),
            _effects(a, b, shared, pooled, stages),
            *_problems(a),
            *_problems(b),
        ],
    )


def _problems(side: StudySummary) -> list[Section]:
    """Return what is missing or doubtful in one of the studies, under its name."""
    return [
        dataclasses.replace(section, title=f"{section.title}: {side.name}")
        for section in problems_section(side.plan, side.ledger, side.results)
    ]


def _effects(
    a: StudySummary,
    b: StudySummary,
    shared: list[Contrast],
    pooled: Effects,
    stages: list[tuple[str, str, bool]],
) -> Section:
    """Return both studies' effects in each metric of the stages that `later_stages` gives."""
    tables = []
    for prefix, words, differs in stages:
        together = {} if differs else pooled
        tables.append(_verdicts(prefix + a.plan.decides, words, a, b, shared, together))
        tables += [
            _table(prefix + metric.key, metric.label + words, a, b, shared, together)
            for metric in compared()
        ]
    return Section(
        title="Effects",
        paragraphs=[
            "Improvement in percent with 95% intervals (in a race, with those that hold at every "
            "look), positive is better; p is adjusted for all contrasts of the study, pooled for "
            "those of both. The difference is the second study's "
            f"improvement less the first's: paired by seed where both have {FEWEST_SEEDS} seeds or "
            "more of the same data, else with Welch's interval, without one where a study is a "
            "race or exploratory, and - where they are one experiment or have trials in common. "
            "Pooled: all seeds of both, each trial counted once.",
            *([LOOKED] if pooled else []),
        ],
        tables=tables,
    )


def _opening(
    a: StudySummary,
    b: StudySummary,
    differing: list[str],
    contrasts: list[Contrast],
    pooled: Effects,
) -> list[str]:
    """Return what the studies are to each other, and the improvement by the first contrast."""
    name = next((c for c in contrasts if c.primary), contrasts[0]).name
    first, second = (study.effects[name, a.plan.decides] for study in (a, b))
    if not pooled:
        words = "The studies share contrasts by name, but none with the same cells."
        if differing:
            words = (
                f"The studies share {len(contrasts)} contrast{'s' * (len(contrasts) != 1)} but are "
                f"two experiments ({'; '.join(differing[:3])}): their seeds are not pooled."
            )
        return [words, f"{name}, {_seen(first, f'of {a.name}')}; {_seen(second, f'of {b.name}')}."]
    both, again = pooled[name, a.plan.decides], len({*first.seeds} & {*second.seeds})
    shares = f"{len(first.seeds)} of {a.name}, {len(second.seeds)} of {b.name}"
    shares += f", {again} of them in both" * (again > 0)
    return [f"The studies are one experiment: {name}, {_seen(both, f'together ({shares})')}."]


def _seen(effect: Effect, whose: str) -> str:
    """Return an effect in words, with its seeds and verdict; positive is better."""
    if not effect.seeds:
        return f"no seed {whose} is complete yet"
    return (
        f"improvement in {METRICS[effect.metric].label} {percent(effect)} over "
        f"{seeds_words(effect.seeds)} {whose}: {effect.verdict}"
    )


def _verdicts(
    metric: str,
    words: str,
    a: StudySummary,
    b: StudySummary,
    shared: list[Contrast],
    pooled: Effects,
) -> Table:
    """Return how many of the declared seeds each side has of a contrast, and its verdict."""
    rows = []
    for contrast in shared:
        key = contrast.name, metric
        verdicts = [_verdict(s.effects[key], set() if s.plan.looks else s.pairs) for s in (a, b)]
        together = _verdict(pooled[key], a.pairs | b.pairs) if key in pooled else "-"
        rows.append((contrast.name, *verdicts, together))
    return Table(
        title=f"Seeds and verdicts ({METRICS[a.plan.decides].label}){words}",
        header=("contrast", a.name, b.name, "pooled"),
        rows=rows,
    )


def _verdict(effect: Effect, declared: Collection[int]) -> str:
    """Return seeds and verdict; a race declares no number of seeds for a contrast."""
    few = f"{len(effect.seeds)} of " * (len(effect.seeds) < len(declared))
    return f"{few}{seeds_words([*declared] or effect.seeds)}: {verdict_words(effect)}"


def _table(
    metric: str,
    title: str,
    a: StudySummary,
    b: StudySummary,
    shared: list[Contrast],
    pooled: Effects,
) -> Table:
    rows = []
    for contrast in shared:
        key = contrast.name, metric
        sides = [side.effects[key] for side in (a, b)]
        together, gap = "-", "-"
        if key in pooled:
            together = effect_cell(pooled[key])
        elif not in_common(contrast, a.plan, b.plan):
            gap = _with_interval(difference(contrast, metric, a, b))
        rows.append((contrast.name, *map(effect_cell, sides), gap, together))
    return Table(
        title=title, header=("contrast", a.name, b.name, "difference", "pooled"), rows=rows
    )


def _with_interval(gap: Difference | None) -> str:
    if gap is None:
        return "-"
    interval = f" [{gap.low:+.2f}, {gap.high:+.2f}]" if math.isfinite(gap.low) else ""
    return f"{gap.estimate:+.2f}{interval}"
