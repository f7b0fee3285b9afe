from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from pooled_terms import pooled_terms
from scipy import stats
from statsmodels.formula.api import ols

from ablate.stats.effects import DecisionRule
from ablate.stats.factorial import attribute

SWAPS = ("f", "n", "p")
CELLS = {
    frozenset(chosen): "+".join(chosen) or "none"
    for size in range(4)
    for chosen in itertools.combinations(SWAPS, size)
}


def drawn(seeds: int, spread: float = 0.05) -> dict[tuple[str, int], float]:
    """Return losses of a full factorial: a block for every seed, effects, an interaction, noise."""
    generator = np.random.default_rng(3)
    blocks = generator.normal(10, 0.5, seeds)
    return {
        (name, seed): blocks[seed]
        * (1 - 0.02 * ("f" in swaps) + 0.01 * ("n" in swaps) - 0.015 * ({"f", "p"} <= swaps))
        + generator.normal(0, spread)
        for swaps, name in CELLS.items()
        for seed in range(seeds)
    }


def test_montgomerys_blocked_2x2() -> None:
    # Design and Analysis of Experiments, example 7.1: yields in three blocks. Effects 8.33, -5.00
    # and 1.67; sums of squares 208.33, 75.00 and 8.33; residual 24.84 (exactly 24.8333) on 6
    # degrees of freedom; F 50.32, 18.12 and 2.01.
    yields = {"": [28, 25, 27], "A": [36, 32, 32], "B": [18, 19, 23], "AB": [31, 30, 29]}
    gains = {frozenset(swaps): np.array(values, float) for swaps, values in yields.items()}
    terms = pooled_terms(gains)
    assert [t.name for t in terms] == ["A", "B", "A x B"]
    assert [t.estimate for t in terms] == pytest.approx([25 / 3, -5, 5 / 3])
    half = 2.446912 * math.sqrt(24.8333333 / 6 / 3)  # t(0.975, 6)
    assert [t.high - t.estimate for t in terms] == pytest.approx([half] * 3, abs=1e-6)
    f_values = [(2.446912 * t.estimate / (t.high - t.estimate)) ** 2 for t in terms]
    assert f_values == pytest.approx([50.3356, 18.1208, 2.0134], abs=1e-3)
    p_values = stats.f.sf(f_values, 1, 6)
    assert [t.p for t in terms] == pytest.approx(p_values * [2, 1, 1], rel=1e-5)  # Holm's


def test_terms_agree_with_a_regression_with_seeds_as_blocks() -> None:
    found = drawn(5)
    losses = {s: np.array([found[name, seed] for seed in range(5)]) for s, name in CELLS.items()}
    gains = {s: 100 * (1 - loss / losses[frozenset()]) for s, loss in losses.items()}
    rows = [
        {**{s: 1 if s in swaps else -1 for s in SWAPS}, "seed": seed,
         "gain": 100 * (1 - found[name, seed] / found["none", seed])}
        for swaps, name in CELLS.items() for seed in range(5)
    ]  # fmt: skip
    fit = ols("gain ~ C(seed) + f * n * p", pd.DataFrame(rows)).fit()
    intervals = fit.conf_int()
    for term in pooled_terms(gains):
        name = term.name.replace(" x ", ":")
        assert term.estimate == pytest.approx(2 * fit.params[name], abs=1e-9)
        assert (term.low, term.high) == pytest.approx(tuple(2 * intervals.loc[name]), abs=1e-9)
        assert term.p >= fit.pvalues[name] - 1e-12  # Holm's, over three or four


def test_terms_have_errors_of_their_own() -> None:
    generator = np.random.default_rng(0)
    found = {
        (name, seed): 10 + generator.normal(0, 0.002) + ("f" in swaps) * wild
        for seed, wild in enumerate(generator.normal(0, 0.5, 8))
        for swaps, name in CELLS.items()
    }
    result = attribute(CELLS, found, DecisionRule())
    assert result is not None
    widths = {t.name: t.high - t.low for t in result.terms}
    assert widths["f"] > 20 * widths["n"]


def test_shapley_values_of_the_glove_game() -> None:
    # f and n hold left gloves, p a right one; a pair is worth 1: values 1/6, 1/6 and 2/3.
    worth = {s: float("p" in s and bool(s & {"f", "n"})) for s in CELLS}
    found = {(CELLS[s], seed): 100 - v for s, v in worth.items() for seed in range(2)}
    result = attribute(CELLS, found, DecisionRule())
    assert result is not None
    assert [part.estimate for part in result.shapley] == pytest.approx([1 / 6, 1 / 6, 2 / 3])


@pytest.mark.parametrize("seeds", [1, 2, 6])
def test_shapley_values_sum_to_the_gain(seeds: int) -> None:
    result = attribute(CELLS, drawn(seeds), DecisionRule())
    assert result is not None
    total = sum(part.estimate for part in result.shapley)
    assert total == pytest.approx(result.gain.estimate, abs=1e-12)
    assert result.seeds == tuple(range(seeds))


def test_the_additive_gap_is_the_gain_beyond_the_single_ones() -> None:
    found = {(n, s): v for s in range(3) for n, v in
             {"none": 10, "f": 9.9, "n": 9.8, "p": 9.7, "f+n+p": 9.0}.items()}  # fmt: skip
    found |= {(n, s): 9.5 for n in ("f+n", "f+p", "n+p") for s in range(3)}
    result = attribute(CELLS, found, DecisionRule())
    assert result is not None
    assert result.additive_gap.estimate == pytest.approx(10 - 1 - 2 - 3)


def test_only_seeds_with_all_cells_count() -> None:
    found = drawn(4)
    del found["f+n", 2]
    found["n", 0] = math.nan
    result = attribute(CELLS, found, DecisionRule())
    assert result is not None
    assert result.seeds == (1, 3)
    assert attribute(CELLS, {k: v for k, v in found.items() if k[0] != "f"}, DecisionRule()) is None


def test_one_seed_has_no_intervals() -> None:
    result = attribute(CELLS, drawn(1), DecisionRule())
    assert result is not None
    every = [result.gain, result.additive_gap, *result.shapley, *result.terms]
    assert {part.low for part in every} == {-math.inf}
    assert {part.p for part in every} == {1.0}
