"""Two studies side by side: pooled where they are one experiment, contrasted where they are not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from ablate.document import Document, Section, Table
from ablate.effects import Losses, Rule, effect, improvements
from ablate.findings import METRICS, stage_losses
from ablate.grid import Contrast
from ablate.ledger import Ledger
from ablate.plan import Plan, read_launches, read_plan
from ablate.sections import percent, shown
from ablate.statistics import CONFIDENCE
from blocks import UsageError


@dataclasses.dataclass(frozen=True)
class Side:
    """One of the two studies."""

    name: str
    plan: Plan
    losses: dict[str, Losses]
    torch: str

    @classmethod
    def open(cls, directory: Path) -> Side:
        """Read a study's plan and results."""
        plan, ledger = read_plan(directory), Ledger(directory)
        launches = [launch for launch in read_launches(directory) if launch]
        torch = launches[-1]["packages"]["torch"] if launches else "?"
        return cls(str(directory), plan, stage_losses(plan, ledger), torch)


def compare_studies(first: Path, second: Path) -> Document:
    """Return what two studies say together; raises `UsageError` where they share no contrast.

    Seeds are pooled only of contrasts whose cells, recipe, data and code are the same in both; of
    all others the two effects and their difference are shown, with what differs named.
    """
    if first.resolve() == second.resolve():
        raise UsageError(f"{str(first)!r} is given twice; name two studies")
    a, b = Side.open(first), Side.open(second)
    theirs = {contrast.name: contrast for contrast in b.plan.contrasts}
    shared = [c for c in a.plan.contrasts if c.name in theirs]
    if not shared:
        raise UsageError(f"{a.name!r} and {b.name!r} have no contrast in common")
    differing = differences(a, b)
    other_cells = {c.name: _other_cells(c, a.plan, b.plan) for c in shared}
    pooled = [c for c in shared if not differing and not other_cells[c.name]]
    return Document(
        title=f"{a.name} and {b.name}",
        stamp="",
        opening=_opening(a, b, differing, pooled, shared),
        sections=[
            Section(
                title="What differs",
                items=[
                    *differing,
                    *(f"{name}: {what}" for name, what in other_cells.items() if what),
                ],
            ),
            Section(
                title="Effects",
                paragraphs=[
                    "Improvement in percent with 95% intervals; p is of the one contrast, not "
                    "adjusted. The difference is between the studies' mean improvements, with "
                    "Welch's interval. Pooled: all seeds of both, each trial counted once."
                ],
                tables=[_table(metric, a, b, shared, pooled) for metric in METRICS],
            ),
        ],
    )


def differences(a: Side, b: Side) -> list[str]:
    """Return in words what keeps two studies from being one experiment."""
    found = _recipes_differ(a.plan, b.plan)
    if a.plan.size != b.plan.size:
        found.append(f"size: {a.plan.size} and {b.plan.size}")
    mine, theirs = (side.plan.stages[0].data_fingerprint for side in (a, b))
    if mine != theirs:
        found.append(f"data: {mine[:16]} and {theirs[:16]}")
    if a.plan.code != b.plan.code:
        found.append("the code that assembles and trains")
    if a.torch != b.torch:
        found.append(f"torch: {a.torch} and {b.torch}")
    return [*found, *_other_trials(a.plan, b.plan)]


def _recipes_differ(a: Plan, b: Plan) -> list[str]:
    mine, theirs = (dataclasses.asdict(plan.stages[0].recipe) for plan in (a, b))
    tuned = [{cell: row["values"] for cell, row in plan.tuned.items()} for plan in (a, b)]
    return [
        f"recipe {name}: {value!r} and {theirs[name]!r}"
        for name, value in mine.items()
        if value != theirs[name] and name not in a.searched & b.searched
    ] + (["recipes tuned for each cell"] if tuned[0] != tuned[1] else [])


def _other_trials(a: Plan, b: Plan) -> list[str]:
    """Return whether a (cell, seed) of both is another trial in each, whatever the reason."""
    mine = {(t.name, t.seed): t.stages[0].key for t in a.trials}
    theirs = {(t.name, t.seed): t.stages[0].key for t in b.trials}
    other = [pair for pair in mine.keys() & theirs.keys() if mine[pair] != theirs[pair]]
    return [f"{len(other)} trials of the same cell and seed have other keys"] if other else []


def _other_cells(contrast: Contrast, a: Plan, b: Plan) -> str:
    changed = [n for n in sorted(contrast.cells) if a.cells[n] != b.cells.get(n)]
    return f"other cells by the name of {', '.join(changed)}" if changed else ""


def _opening(
    a: Side, b: Side, differing: list[str], pooled: list[Contrast], shared: list[Contrast]
) -> list[str]:
    if differing:
        return [
            f"The studies share {len(shared)} contrast{'s' * (len(shared) != 1)} but are two "
            f"experiments ({'; '.join(differing[:3])}): their seeds are not pooled."
        ]
    first = pooled[0] if pooled else None
    if first is None:
        return ["The studies share contrasts by name, but none with the same cells."]
    both = effect(first, "coca", _merged(a, b, "coca"), rule=Rule())
    return [
        f"The studies are one experiment: {first.name} changes the CoCa loss by {percent(both)} "
        f"over {len(both.seeds)} seeds together."
    ]


def _merged(a: Side, b: Side, metric: str) -> Losses:
    """Return the losses of both studies; a trial in both is one trial."""
    return {**b.losses[metric], **a.losses[metric]}


def _table(metric: str, a: Side, b: Side, shared: list[Contrast], pooled: list[Contrast]) -> Table:
    rows = []
    for contrast in shared:
        sides = [effect(contrast, metric, side.losses[metric], rule=Rule()) for side in (a, b)]
        together = (
            shown(effect(contrast, metric, _merged(a, b, metric), rule=Rule()))
            if contrast in pooled
            else "-"
        )
        gap = welch(*(improvements(contrast, side.losses[metric]) for side in (a, b)))
        rows.append((contrast.name, *map(shown, sides), gap, together))
    return Table(
        title=METRICS[metric],
        header=("contrast", a.name, b.name, "difference", "pooled"),
        rows=rows,
    )


def welch(a: Mapping[int, float], b: Mapping[int, float]) -> str:
    """Return the difference of two means, second minus first, with its interval, in words."""
    first, second = (np.array(list(side.values())) for side in (a, b))
    if not len(first) or not len(second):
        return "-"
    gap = float(second.mean() - first.mean())
    if min(len(first), len(second)) < 2:
        return f"{gap:+.2f}"
    found: Any = stats.ttest_ind(second, first, equal_var=False)
    interval = found.confidence_interval(CONFIDENCE)
    if not math.isfinite(interval.low):
        return f"{gap:+.2f}"
    return f"{gap:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"
