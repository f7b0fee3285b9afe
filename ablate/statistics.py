"""Effects with their uncertainty: paired by seed, relative, in percent, as the paper reports.

Improvement of a candidate B over a reference A in a loss is (A - B) / A. A contrast of several
pairs of cells (a main effect) averages the pairs within each seed; seeds are the units.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from ablate.grid import Contrast

CONFIDENCE = 0.95
EXACT_PAIRS = 16  # 2^16 sign patterns are enumerated in a moment; beyond, the t test serves
Values = np.ndarray[Any, np.dtype[np.float64]]
Losses = Mapping[tuple[str, int], float]  # (cell, seed) -> loss


@dataclass(frozen=True, kw_only=True, slots=True)
class Effect:
    """A contrast's estimate in one metric; numbers in percent, positive when the loss falls.

    ``p`` is the paired t test's, ``p_adjusted`` Holm's over the secondary contrasts, by which the
    verdict goes; ``p_exact`` is the sign-flip test's, which assumes nothing of the distribution;
    ``correlation`` that of reference and candidate over seeds (what pairing by seed gains from).
    """

    contrast: str
    metric: str
    seeds: tuple[int, ...]
    estimate: float
    low: float
    high: float
    p: float
    p_exact: float
    p_adjusted: float
    correlation: float
    verdict: str


def improvements(contrast: Contrast, losses: Losses) -> dict[int, float]:
    """Return the improvement in percent for each seed that all cells of the contrast have."""
    cells = set(itertools.chain.from_iterable(contrast.pairs))
    seeds = set.intersection(*({s for c, s in losses if c == cell} for cell in cells))
    return {
        seed: float(
            np.mean([100 * (1 - losses[b, seed] / losses[a, seed]) for a, b in contrast.pairs])
        )
        for seed in sorted(seeds)
    }


def mean_improvements(contrast: Contrast, sets: Sequence[Losses]) -> dict[int, float]:
    """Return the improvement in percent, averaged over data sets, for each seed that all have."""
    found = [improvements(contrast, losses) for losses in sets]
    seeds = set.intersection(*(set(by_seed) for by_seed in found))
    return {seed: float(np.mean([by_seed[seed] for by_seed in found])) for seed in sorted(seeds)}


def effect(contrast: Contrast, metric: str, *sets: Losses) -> Effect:
    """Return a contrast's mean improvement with a t interval over seeds; not yet adjusted.

    Over several data sets, improvements are averaged within each seed, as the paper's mean over
    fine-tunings: seeds stay the units.
    """
    by_seed = mean_improvements(contrast, sets)
    correlations = [pair_correlation(contrast, losses, list(by_seed)) for losses in sets]
    values = np.array(list(by_seed.values()))
    estimate = float(values.mean()) if len(values) else math.nan
    low, high = t_interval(values)
    p = t_test_p(values)
    return Effect(
        contrast=contrast.name,
        metric=metric,
        seeds=tuple(by_seed),
        estimate=estimate,
        low=low,
        high=high,
        p=p,
        p_exact=sign_flip_p(values),
        p_adjusted=p,
        correlation=float(np.mean(correlations)),
        verdict=verdict(estimate, p, len(values)),
    )


def effects(contrasts: Sequence[Contrast], metric: str, *sets: Losses) -> list[Effect]:
    """Return all contrasts' effects in one metric, Holm-adjusted over the secondary ones."""
    found = [effect(contrast, metric, *sets) for contrast in contrasts]
    secondary = [i for i, contrast in enumerate(contrasts) if not contrast.primary]
    adjusted = dict(zip(secondary, holm([found[i].p for i in secondary]), strict=True))
    return [_adjust(e, adjusted[i]) if i in adjusted else e for i, e in enumerate(found)]


def _adjust(found: Effect, p: float) -> Effect:
    fields = {name: getattr(found, name) for name in Effect.__dataclass_fields__}
    word = verdict(found.estimate, p, len(found.seeds))
    return Effect(**{**fields, "p_adjusted": p, "verdict": word})


def t_interval(values: Values) -> tuple[float, float]:
    """Return the 95% t interval of a mean; infinite below two values."""
    n = len(values)
    if n < 2:
        return -math.inf, math.inf
    mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(n)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
    return mean - half, mean + half


def t_test_p(values: Values) -> float:
    """Return the two-sided p of a paired t test on differences; 1 below two values."""
    if len(values) < 2:
        return 1.0
    spread = float(values.std(ddof=1))
    if spread == 0:
        return float(values.mean() == 0)
    t = abs(float(values.mean())) / (spread / math.sqrt(len(values)))
    return float(2 * stats.t.sf(t, len(values) - 1))


def sign_flip_p(values: Values) -> float:
    """Return the two-sided p of the mean under random signs; at least 2 / 2^n with n values."""
    n = len(values)
    if n == 0:
        return 1.0
    if n > EXACT_PAIRS:
        return float(stats.ttest_1samp(values, 0.0).pvalue)
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=n)))
    sums = np.abs(signs @ values)
    as_extreme = np.count_nonzero(sums >= abs(float(values.sum())) * (1 - 1e-12))
    return as_extreme / len(sums)


def smallest_p(seeds: int) -> float:
    """Return the smallest two-sided p that a number of seed pairs can reach."""
    return min(1.0, 2.0 ** (1 - seeds))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down adjusted p values, in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


def pair_correlation(contrast: Contrast, losses: Losses, seeds: list[int]) -> float:
    """Return the mean correlation over seeds between reference and candidate; nan if undefined."""
    found = []
    for a, b in contrast.pairs:
        old, new = ([losses[cell, seed] for seed in seeds] for cell in (a, b))
        if len(seeds) > 2 and np.std(old) > 0 and np.std(new) > 0:
            found.append(float(np.corrcoef(old, new)[0, 1]))
    return float(np.mean(found)) if found else math.nan


def verdict(estimate: float, p: float, seeds: int) -> str:
    """Return the word for an effect: improved, worse, inconclusive, or too few seeds."""
    if seeds < 3:
        return "too few seeds"
    if p > 1 - CONFIDENCE:
        return "inconclusive"
    return "improved" if estimate > 0 else "worse"
