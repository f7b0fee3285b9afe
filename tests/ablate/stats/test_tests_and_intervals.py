"""Against textbooks, R's documented output, and statsmodels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.api import OLS
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from ablate.stats.tests_and_intervals import (
    adjust_family,
    clustered_interval,
    detectable_effect,
    deviation_interval,
    equal_variances_p,
    equivalence_p,
    holm,
    power,
    ratio_gains,
    sign_flip_p,
    smallest_p,
    standard_error,
    t_interval,
    t_test_p,
    varies,
)

# Hours of sleep that ten people gained with two drugs (Student 1908): R's data set `sleep`.
DRUG_1 = np.array([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0])
DRUG_2 = np.array([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4])
# Eighths of an inch that cross-fertilised maize grew taller (Darwin 1876, in Fisher 1935).
MAIZE = np.array([49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48], dtype=float)
NOISE = np.random.default_rng(0).normal(0.4, 1.0, (6, 40))


def test_rs_documented_paired_t_test_of_sleep() -> None:
    # t.test(extra ~ group, data = sleep, paired = TRUE): p-value = 0.002833
    gains = DRUG_1 - DRUG_2
    assert t_test_p(gains) == pytest.approx(0.002833, abs=5e-7)
    assert t_interval(gains) == pytest.approx((-2.4598858, -0.7001142), abs=5e-8)
    assert gains.mean() == pytest.approx(-1.58)


def test_fishers_randomisation_test_of_darwins_maize() -> None:
    # Fisher, The Design of Experiments, 1935: 863 of 32768 arrangements on either side.
    assert sign_flip_p(MAIZE) == pytest.approx(2 * 863 / 32768, abs=1e-12)
    assert t_test_p(MAIZE) == pytest.approx(0.0497, abs=5e-5)  # t = 2.148 on 14 degrees


@pytest.mark.parametrize("n", [1, 3, 5, 8])
def test_the_smallest_p_is_reached_when_all_agree(n: int) -> None:
    assert sign_flip_p(np.arange(1.0, n + 1)) == smallest_p(n)
    assert smallest_p(5) == 0.0625


def test_beyond_sixteen_pairs_no_sign_flip_p_is_computed() -> None:
    assert math.isnan(sign_flip_p(NOISE.ravel()[:17]))


@pytest.mark.parametrize("n", [0, 1])
def test_one_value_proves_nothing(n: int) -> None:
    values = np.ones(n)
    assert t_interval(values) == (-math.inf, math.inf)
    assert (t_test_p(values), equivalence_p(values, 5.0)) == (1.0, 1.0)
    assert power(9.0, n, 1.0) == 0
    assert detectable_effect(n, 1.0) == math.inf


def test_values_without_spread() -> None:
    assert t_test_p(np.full(3, 2.0)) == 0
    assert t_test_p(np.zeros(3)) == 1
    assert equivalence_p(np.full(3, 0.5), 1.0) == 0


@pytest.mark.parametrize("margin", [0.2, 0.5, 1.0])
def test_equivalence_agrees_with_statsmodels(margin: float) -> None:
    expected = ttost_paired(DRUG_1, DRUG_2, -margin, margin)[0]
    assert equivalence_p(DRUG_1 - DRUG_2, margin) == pytest.approx(expected, abs=1e-9)
    expected = ttost_paired(NOISE[0], np.zeros(40), -margin, margin)[0]
    assert equivalence_p(NOISE[0], margin) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("n", [2, 3, 5, 20])
@pytest.mark.parametrize("effect", [0.0, 0.5, 1.5, 3.0])
@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_power_agrees_with_statsmodels(n: int, effect: float, alpha: float) -> None:
    expected = TTestPower().power(effect / 2, n, alpha)
    assert power(effect, n, 2.0, alpha) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("n", [2, 3, 6, 30])
def test_the_detectable_effect_has_the_power_asked_for(n: int) -> None:
    found = detectable_effect(n, 0.7, 0.01, 0.9)
    assert power(found, n, 0.7, 0.01) == pytest.approx(0.9, abs=1e-6)


def test_holm_by_hand_and_by_statsmodels() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    p_values = np.random.default_rng(1).uniform(0, 0.1, 12)
    assert holm(list(p_values)) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_a_family_by_hand() -> None:
    def family(*p_values: float) -> list[float]:
        first, rest = adjust_family(p_values[0], p_values[1:], 0.8)
        return [first, *rest]

    # The primary at 4%, two others by Holm at 1%.
    assert family(0.03, 0.5, 0.6) == pytest.approx([0.0375, 1.0, 1.0])
    # The primary is rejected, so the others have all of alpha: Holm's 0.02 and 0.03, not below it.
    assert family(0.03, 0.01, 0.03) == pytest.approx([0.0375, 0.0375, 0.0375])
    # The others are rejected at 1%, so the primary has all of alpha: 0.045, not 0.045 / 0.8.
    assert family(0.045, 0.001, 0.002) == pytest.approx([0.045, 0.01, 0.01])
    # Nobody hands on anything: 0.045 / 0.8, and Holm's 0.02 and 0.2 are not below that.
    assert family(0.045, 0.01, 0.2) == pytest.approx([0.05625, 0.05625, 0.2])
    assert family(0.04) == [0.04]


def rejected_by_hand(primary: float, others: list[float], share: float, alpha: float) -> set[int]:
    """Return what the procedure rejects at alpha, step by step; the primary is number 0."""
    p = dict(enumerate([primary, *others]))
    weight = {0: share, **{i: (1 - share) / len(others) for i in range(1, len(p))}}
    done: set[int] = set()
    while True:
        left = [i for i in p if i not in done and p[i] <= weight[i] * alpha]
        if not left:
            return done
        now = left[0]
        done.add(now)
        siblings = [i for i in p if i not in done and i != 0]
        heirs = siblings if siblings else [i for i in p if i not in done]
        for heir in heirs:
            weight[heir] += weight[now] / len(heirs)


def test_adjusted_p_reject_what_the_graphical_procedure_rejects() -> None:
    generator = np.random.default_rng(2)
    seen = set()
    for _ in range(3000):
        primary, *others = generator.uniform(0, 1, 4) ** 4
        first, rest = adjust_family(primary, others, 0.8)
        found = {i for i, p in enumerate([first, *rest]) if p <= 0.05}
        assert found == rejected_by_hand(primary, others, 0.8, 0.05)
        seen.add(frozenset(found))
    assert len(seen) == 2**4  # every outcome occurs


def test_clustered_errors_agree_with_statsmodels() -> None:
    clusters = np.arange(40) // 3
    found = clustered_interval(NOISE, clusters)
    by_seed, by_cluster, both = found.seed_error, found.example_error, found.error
    seed = np.repeat(np.arange(6), 40)
    member = np.tile(clusters, 6)

    def error(groups: np.ndarray) -> float:
        fit = OLS(NOISE.ravel(), np.ones(240)).fit(cov_type="cluster", cov_kwds={"groups": groups})
        return float(fit.bse[0])

    assert by_seed == pytest.approx(error(seed), rel=1e-9)
    assert by_cluster == pytest.approx(error(member), rel=1e-9)
    within = error(seed * 100 + member)
    assert both == pytest.approx(
        math.sqrt(max(by_seed**2 + by_cluster**2 - within**2, by_seed**2, by_cluster**2))
    )
    weights = [by_seed**2, by_cluster**2]
    quantile = np.average([2.570582, 2.160369], weights=weights)  # t(0.975) of 5 and 13
    assert found.high - found.estimate == pytest.approx(quantile * both, rel=1e-6)


def test_intervals_agree_with_scipy() -> None:
    expected = stats.ttest_1samp(NOISE[1], 0).confidence_interval(0.9)
    assert t_interval(NOISE[1], 0.9) == pytest.approx(tuple(expected))


def test_gains_by_example_have_the_mean_and_the_error_of_a_ratio() -> None:
    # Cochran, Sampling Techniques: a ratio R = y / x of means has the error of (y - R x) / x.
    x, y = 4 + NOISE[0], 3 + 0.5 * NOISE[0] + 0.1 * NOISE[1]
    found = ratio_gains(x, y)
    ratio = y.mean() / x.mean()
    assert found.mean() == pytest.approx(100 * (1 - ratio))
    by_hand = 100 * np.std(y - ratio * x, ddof=1) / x.mean() / math.sqrt(len(x))
    assert standard_error(found) == pytest.approx(by_hand)
    assert ratio_gains(x, 0.9 * x) == pytest.approx(10)  # alike on each example: no error at all


def test_the_interval_of_a_deviation_by_a_chi_square_table() -> None:
    # chi2(0.975, 5) = 12.8325, chi2(0.025, 5) = 0.831212
    low, high = deviation_interval(2.0, 6)
    assert low == pytest.approx(2 * math.sqrt(5 / 12.832502), rel=1e-6)
    assert high == pytest.approx(2 * math.sqrt(5 / 0.8312116), rel=1e-6)


def test_paired_variances_are_compared_as_pitman_and_morgan_do() -> None:
    a, b = NOISE[0][:10], NOISE[0][:10] + 3 * NOISE[1][:10]
    ratio, r, n = np.var(b) / np.var(a), np.corrcoef(a, b)[0, 1], 10
    t = (ratio - 1) * math.sqrt(n - 2) / math.sqrt(4 * ratio * (1 - r**2))  # Pitman's form
    assert equal_variances_p(b, a) == pytest.approx(2 * stats.t.sf(abs(t), n - 2))
    assert equal_variances_p(a[:3], b[:3]) == equal_variances_p(a, a) == 1.0


def test_values_that_differ_by_rounding_do_not_vary() -> None:
    assert varies(np.array([0.1, 0.2]))
    assert not varies(np.array([0.1, 0.1 + 1e-12]))
    assert not varies(np.array([0.1]))
