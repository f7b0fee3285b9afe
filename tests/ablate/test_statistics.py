from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from ablate.grid import Contrast
from ablate.statistics import (
    effect,
    effects,
    holm,
    improvements,
    sign_flip_p,
    smallest_p,
    t_interval,
    t_test_p,
    verdict,
)

SWAP = Contrast(name="a -> b", pairs=(("a", "b"),))


def losses(**cells: list[float]) -> dict[tuple[str, int], float]:
    return {(cell, seed): v for cell, values in cells.items() for seed, v in enumerate(values)}


def test_improvement_is_the_papers_ratio() -> None:
    assert improvements(SWAP, losses(a=[4.0, 2.0], b=[3.0, 2.2])) == pytest.approx(
        {0: 25.0, 1: -10.0}
    )


def test_a_hand_computed_paired_effect() -> None:
    # Improvements 10, 20, 30 percent: mean 20, deviation 10, t(0.975, 2) = 4.302653.
    found = effect(SWAP, "loss", losses(a=[10, 10, 10], b=[9, 8, 7]))
    assert found.estimate == pytest.approx(20)
    half = 4.302653 * 10 / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((20 - half, 20 + half), abs=1e-4)
    assert found.p_exact == pytest.approx(0.25)
    assert found.p == pytest.approx(0.0741799, abs=1e-6)  # t = 3.4641 on 2 degrees of freedom
    assert found.verdict == "inconclusive"
    assert found.seeds == (0, 1, 2)


def test_intervals_and_p_agree_with_scipy() -> None:
    values = np.random.default_rng(0).normal(1, 2, 8)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert t_interval(values) == pytest.approx(tuple(expected))
    assert t_test_p(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    permuted = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip_p(values) == pytest.approx(permuted.pvalue)


@pytest.mark.parametrize("n", [1, 3, 5, 8])
def test_the_smallest_p_is_reached_when_all_agree(n: int) -> None:
    assert sign_flip_p(np.arange(1.0, n + 1)) == smallest_p(n)
    assert smallest_p(5) == 0.0625


def test_only_complete_pairs_count() -> None:
    found = losses(a=[4.0, 4.0, 4.0], b=[3.0, 3.0, 3.0])
    del found["b", 1]
    assert effect(SWAP, "loss", found).seeds == (0, 2)
    nothing = effect(SWAP, "loss", losses(a=[4.0]) | {("b", 5): 3.0})
    assert nothing.seeds == ()
    assert nothing.verdict == "too few seeds"


def test_a_main_effect_averages_its_pairs_within_each_seed() -> None:
    main = Contrast(name="main", pairs=(("a", "b"), ("c", "d")))
    found = losses(a=[10.0, 10.0], b=[9.0, 8.0], c=[5.0, 5.0], d=[5.0, 4.0])
    assert improvements(main, found) == pytest.approx({0: 5.0, 1: 20.0})
    assert effect(main, "loss", found).seeds == (0, 1)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_primary_contrast_is_not_adjusted() -> None:
    cells = losses(a=[10.0, 10.1, 9.9], b=[9.0, 9.1, 8.8], c=[9.5, 9.6, 9.3])
    contrasts = [
        Contrast(name="p", pairs=(("a", "b"),), primary=True),
        Contrast(name="s", pairs=(("a", "c"),)),
        Contrast(name="t", pairs=(("b", "c"),)),
    ]
    primary, *secondary = effects(contrasts, "loss", cells)
    assert primary.p_adjusted == primary.p < 0.05
    assert primary.verdict == "improved"
    assert [e.p_adjusted for e in secondary] == pytest.approx(holm([e.p for e in secondary]))
    assert min(e.p_adjusted for e in secondary) > min(e.p for e in secondary)


def test_a_secondary_verdict_goes_by_the_adjusted_p() -> None:
    cells = losses(a=[10.0, 10.1, 9.9], b=[9.7, 9.6, 9.6])
    many = [Contrast(name=str(i), pairs=(("a", "b"),)) for i in range(20)]
    assert effect(many[0], "loss", cells).verdict == "improved"
    assert {e.verdict for e in effects(many, "loss", cells)} == {"inconclusive"}


@pytest.mark.parametrize(("estimate", "p", "seeds", "word"), [
    (0.1, 0.04, 3, "improved"), (-2, 0.04, 3, "worse"), (1, 0.06, 3, "inconclusive"),
    (0.1, 0.04, 2, "too few seeds"),
])  # fmt: skip
def test_verdicts(estimate: float, p: float, seeds: int, word: str) -> None:
    assert verdict(estimate, p, seeds) == word


def test_intervals_cover_and_verdicts_err_at_the_nominal_rate() -> None:
    generator, runs = np.random.default_rng(1), 4000
    covered = wrong = 0
    for _ in range(runs):
        values = generator.normal(0.0, 1.0, 3)
        low, high = t_interval(values)
        covered += low <= 0 <= high
        wrong += verdict(values.mean(), t_test_p(values), 3) != "inconclusive"
        assert (low <= 0 <= high) == (t_test_p(values) >= 0.05)
    assert covered / runs == pytest.approx(0.95, abs=0.012)
    assert wrong / runs == pytest.approx(0.05, abs=0.012)


def test_correlation_over_seeds_is_reported() -> None:
    found = effect(SWAP, "loss", losses(a=[1.0, 2.0, 3.0], b=[1.1, 2.1, 3.1]))
    assert found.correlation == pytest.approx(1.0)
