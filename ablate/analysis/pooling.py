"""Effects over the seeds of two studies together, and the difference between their effects."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from ablate.analysis.comparison import Effects, StudySummary
from ablate.analysis.losses import decision_rule, metric_sets
from ablate.analysis.results import direction_of
from ablate.core.grid import Contrast
from ablate.stats.effects import FEWEST_SEEDS, Losses, effects
from ablate.stats.tests_and_intervals import CONFIDENCE, t_interval


@dataclasses.dataclass(frozen=True)
class Difference:
    """How much more a contrast improves in the second study, in percentage points."""

    estimate: float
    """The second study's improvement less the first's."""

    low: float
    high: float
    """Its 95% interval; nan where there is none."""


def pool(a: StudySummary, b: StudySummary, alike: Sequence[Contrast]) -> Effects:
    """Return contrasts' effects over all seeds of both studies; a trial in both is one trial.

    p is adjusted for every contrast of either: to train fewer of them again is a choice as well.
    The first study's primary contrast and smallest effect count.
    """
    cells, chosen = a.plan.cells, {contrast.name for contrast in alike}
    other = {name for name, cell in b.plan.cells.items() if cells.get(name, cell) != cell}
    theirs = {m: {k: v for k, v in s.items() if k[0] not in other} for m, s in b.losses.items()}
    merged: dict[str, Losses] = {
        m: {**theirs.get(m, {}), **losses} for m, losses in a.losses.items()
    }
    family = {c.name: dataclasses.replace(c, primary=False) for c in b.plan.contrasts}
    family |= {c.name: c for c in a.plan.contrasts}
    rule = decision_rule(a.plan)
    return {
        (effect.contrast, metric): effect
        for metric, sets in (metric_sets(a.plan, merged) if alike else {}).items()
        for effect in effects(
            [*family.values()], metric, *sets, rule=rule, direction=direction_of(metric)
        )
        if effect.contrast in chosen
    }


def difference(
    contrast: Contrast, metric: str, a: StudySummary, b: StudySummary
) -> Difference | None:
    """Return how much more a contrast improves in the second study; None where one has no seed.

    The same seed of the same data sees the same batches, so that studies are paired by it. There is
    no interval where the seeds of one came by what was seen.
    """
    first, second = (study.gains(contrast, metric) for study in (a, b))
    same_data = a.plan.stages[0].data_fingerprint == b.plan.stages[0].data_fingerprint
    both = sorted(first.keys() & second.keys()) if same_data else []
    if len(both) < FEWEST_SEEDS:
        gap = welch(first, second)
    else:
        gaps = np.array([second[seed] - first[seed] for seed in both])
        gap = Difference(float(gaps.mean()), *t_interval(gaps))
    if gap is None or (a.is_plain and b.is_plain):
        return gap
    return Difference(gap.estimate, math.nan, math.nan)


def welch(a: Mapping[int, float], b: Mapping[int, float]) -> Difference | None:
    """Return the difference of two means, second minus first, with Welch's interval."""
    first, second = (np.array(list(by_seed.values())) for by_seed in (a, b))
    if not len(first) or not len(second):
        return None
    gap = float(second.mean() - first.mean())
    if min(len(first), len(second)) < 2:
        return Difference(gap, math.nan, math.nan)
    test: Any = stats.ttest_ind(second, first, equal_var=False)
    interval = test.confidence_interval(CONFIDENCE)
    return Difference(gap, float(interval.low), float(interval.high))
