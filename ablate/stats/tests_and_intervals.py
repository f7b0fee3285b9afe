"""Numbers with their uncertainty, over seeds: intervals, tests, families of tests, power.

Pure functions of numbers: what is compared with what is said in `ablate.stats.effects`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize, special, stats

ALPHA = 0.05
CONFIDENCE = 1 - ALPHA
POWER = 0.8
EXACT_PAIRS = 16  # 2^16 sign patterns are enumerated in a moment; beyond, the p is not computed
ROUNDING = 1e-9  # percent: two improvements that differ by less are the same
Values = np.ndarray[Any, np.dtype[np.float64]]


def t_quantile(freedom: float, confidence: float = CONFIDENCE) -> float:
    """Return how many standard errors a two-sided t interval reaches to either side."""
    return float(special.stdtrit(freedom, (1 + confidence) / 2))


def standard_error(values: Values) -> float:
    """Return the standard error of a mean; infinite below two values."""
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf


def t_interval(values: Values, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the t interval of a mean; infinite below two values."""
    if len(values) < 2:
        return -math.inf, math.inf
    # Student's t, not a bootstrap: percentile and BCa intervals of three to ten seeds cover far
    # too little (docs/statistics.md).
    half = t_quantile(len(values) - 1, confidence) * standard_error(values)
    return float(values.mean()) - half, float(values.mean()) + half


def one_sided_p(values: Values, above: float) -> float:
    """Return the p of a t test that a mean is not above a bound; 1 below two values."""
    if len(values) < 2:
        return 1.0
    gap, error = float(values.mean()) - above, standard_error(values)
    if error == 0:
        return 0.0 if gap > 0 else 1.0
    return float(special.stdtr(len(values) - 1, -gap / error))


def t_test_p(values: Values) -> float:
    """Return the two-sided p of a paired t test on differences; 1 below two values."""
    return min(1.0, 2 * min(one_sided_p(values, 0.0), one_sided_p(-values, 0.0)))


def equivalence_p(values: Values, margin: float) -> float:
    """Return the p of two one-sided tests (TOST) that a mean is not within ±margin."""
    # Both tests must reject, so the larger p decides; no adjustment for there being two of them
    # is needed (intersection-union).
    return max(one_sided_p(values, -margin), one_sided_p(-values, -margin))


def sign_flip_p(values: Values) -> float:
    """Return the two-sided p of the mean under random signs; at least 2 / 2^n with n values.

    It is nan for more than `EXACT_PAIRS` values, which have too many signs to go through.

    Exact where either sign of a value is as likely without an effect, whatever its distribution.
    """
    if len(values) > EXACT_PAIRS:
        return math.nan
    sums = np.zeros(1)
    for value in values:  # both signs of each value: 2^n sums in the end
        sums = np.concatenate((sums + value, sums - value))
    # Sums that are equal on paper differ in their last digits by the order of adding.
    rounding = 1e-12 * float(np.abs(values).sum())
    return int((np.abs(sums) >= abs(sums[0]) - rounding).sum()) / len(sums)


def varies(values: Values) -> bool:
    """Return whether values in percent differ by more than rounding: else no test has a meaning."""
    return bool(np.ptp(values) > ROUNDING) if len(values) > 1 else False


def equal_variances_p(a: Values, b: Values) -> float:
    """Return the two-sided p that two paired samples vary alike (Pitman 1939, Morgan 1939).

    Their sums and differences are correlated if one varies more; 1 below four pairs.
    """
    if len(a) < 4 or not np.ptp(a) or not np.ptp(b) or not np.ptp(a - b) or not np.ptp(a + b):
        return 1.0
    # If both vary alike, sum and difference are uncorrelated, whatever ties the pairs together.
    return float(stats.pearsonr(a + b, a - b).pvalue)


def deviation_interval(deviation: float, seeds: int) -> tuple[float, float]:
    """Return the 95% interval of a standard deviation that so many normal values show."""
    freedom = seeds - 1
    # (n - 1) s^2 / sigma^2 is chi-squared with n - 1 degrees of freedom for normal values.
    quantiles = stats.chi2.isf([ALPHA / 2, 1 - ALPHA / 2], freedom)
    low, high = deviation * np.sqrt(freedom / quantiles)
    return float(low), float(high)


def ratio_gains(reference: Values, candidate: Values) -> Values:
    """Return improvements in percent by example that vary as the improvement of the means does.

    Their mean is 100 (1 - mean(candidate) / mean(reference)); other examples change both means, so
    each example counts by how it moves the ratio (the delta method of a ratio of means).
    """
    ratio = float(candidate.mean() / reference.mean())
    gains: Values = 1 - ratio + (ratio * reference - candidate) / reference.mean()
    return 100 * gains


def smallest_p(seeds: int) -> float:
    """Return the smallest two-sided p that a sign-flip test of so many pairs can reach."""
    return min(1.0, 2.0 ** (1 - seeds))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down adjusted p values, in the order given."""
    # The smallest p bears the number of all hypotheses, the next one of those that are left, and no
    # adjusted p may fall below an earlier one.
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


def adjust_family(
    primary: float, others: Sequence[float], share: float
) -> tuple[float, list[float]]:
    """Return adjusted p of a primary hypothesis and of the others, which make one family.

    The primary is tested at ``share`` of alpha, the others by Holm's method at the rest; either
    side, once rejected whole, hands its part to the other (a graphical procedure: Bretz, Maurer,
    Brannath and Posch 2009). At most alpha of all studies without true effects reject anything.
    """
    within = holm(others)
    if not others:
        return primary, []
    first, rest = min(1.0, primary / share), [min(1.0, p / (1 - share)) for p in within]
    return (
        min(first, max(primary, *rest)),
        [min(alone, max(first, p)) for alone, p in zip(rest, within, strict=True)],
    )


def power(effect: float, seeds: int, deviation: float, alpha: float = ALPHA) -> float:
    """Return the chance that a two-sided paired t test at ``alpha`` finds a true effect."""
    if seeds < 2:
        return 0.0
    # Under a true effect the t statistic is noncentral t, shifted by sqrt(n) effects.
    shift, freedom = effect / deviation * math.sqrt(seeds), seeds - 1
    critical = t_quantile(freedom, 1 - alpha)
    above, below = stats.nct.sf(critical, freedom, shift), stats.nct.sf(critical, freedom, -shift)
    return float(np.nan_to_num(above) + np.nan_to_num(below))


def detectable_effect(
    seeds: int, deviation: float, alpha: float = ALPHA, target: float = POWER
) -> float:
    """Return the smallest true effect that is found with the target power; infinite below two."""
    if seeds < 2 or not math.isfinite(deviation):
        return math.inf
    # Above this bound the t statistic clears its critical value with near certainty.
    most = 4 * t_quantile(seeds - 1, 1 - alpha) / math.sqrt(seeds)

    def shortfall(effect: float) -> float:
        return power(effect, seeds, 1.0, alpha) - target

    return deviation * float(optimize.brentq(shortfall, 0.0, most, xtol=1e-9))


@dataclass(frozen=True, kw_only=True, slots=True)
class Clustered:
    """A mean with standard errors over seeds, over clusters of examples, and over both.

    The interval is for other seeds and other examples.
    """

    estimate: float
    seed_error: float
    example_error: float
    error: float
    low: float
    high: float


def clustered_interval(
    values: Values, clusters: Values, confidence: float = CONFIDENCE
) -> Clustered:
    """Return the mean of values [seeds n] for other seeds and other examples.

    ``clusters`` [n] numbers the examples that belong together. The variance is that of seeds and
    that of clusters less what both contain (two-way clustering: Cameron, Gelbach and Miller 2011;
    for evaluations: arXiv 2411.00640). The quantile is the mean of those of seeds and of clusters,
    weighted by their variances (Cochran and Cox): that of the fewer of the two would make
    intervals of three seeds hold always where examples vary most.
    """
    gaps = values - values.mean()
    members = np.unique(clusters, return_inverse=True)[1]
    by_both = np.zeros((len(values), members.max() + 1))
    np.add.at(by_both.T, members, gaps.T)  # [seeds clusters]

    # The factor count / (count - 1) makes up for few clusters.
    def variance(sums: Values) -> float:
        count = sums.size
        return float((sums**2).sum()) / values.size**2 * count / max(1, count - 1)

    parts = [variance(sums) for sums in (by_both.sum(axis=1), by_both.sum(axis=0))]
    # The difference may come out too small.
    two_way = max(sum(parts) - variance(by_both.ravel()), *parts)
    quantiles = [t_quantile(max(1, count - 1), confidence) for count in by_both.shape]
    quantile = np.average(quantiles, weights=parts) if any(parts) else max(quantiles)
    mean, half = float(values.mean()), float(quantile) * math.sqrt(two_way)
    return Clustered(
        estimate=mean,
        seed_error=math.sqrt(parts[0]),
        example_error=math.sqrt(parts[1]),
        error=math.sqrt(two_way),
        low=mean - half,
        high=mean + half,
    )
