from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from ablate.core.grid import Contrast
from ablate.stats.effects import (
    DecisionRule,
    Effect,
    effect,
    effects,
    improvements,
    missing,
    verdict,
    verdict_is_clear,
)
from ablate.stats.tests_and_intervals import adjust_family, holm, t_interval

SWAP = Contrast(name="a -> b", pairs=(("a", "b"),))
RULE = DecisionRule()


def losses(**cells: list[float]) -> dict[tuple[str, int], float]:
    return {(cell, seed): v for cell, values in cells.items() for seed, v in enumerate(values)}


def test_improvement_is_the_papers_ratio() -> None:
    assert improvements(SWAP, losses(a=[4.0, 2.0], b=[3.0, 2.2])) == pytest.approx(
        {0: 25.0, 1: -10.0}
    )


def test_a_hand_computed_paired_effect() -> None:
    # Improvements 10, 20, 30 percent: mean 20, deviation 10, t(0.975, 2) = 4.302653.
    found = effect(SWAP, "loss", losses(a=[10, 10, 10], b=[9, 8, 7]), rule=RULE)
    assert found.estimate == pytest.approx(20)
    assert found.standard_deviation == pytest.approx(10)
    half = 4.302653 * 10 / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((20 - half, 20 + half), abs=1e-4)
    assert found.p_sign_flip == pytest.approx(0.25)
    assert found.p == pytest.approx(0.0741799, abs=1e-6)  # t = 3.4641 on 2 degrees of freedom
    assert found.verdict == "inconclusive"
    assert found.seeds == (0, 1, 2)


def test_only_complete_pairs_count_and_the_others_are_named() -> None:
    found = losses(a=[4.0, 4.0, 4.0, 4.0, 0.0], b=[3.0, 3.0, 3.0, math.nan, 3.0])
    del found["b", 1]
    assert effect(SWAP, "loss", found, rule=RULE).seeds == (0, 2)
    assert missing(SWAP, found) == {
        1: "no usable loss of b", 3: "no usable loss of b", 4: "no usable loss of a",
    }  # fmt: skip
    nothing = effect(SWAP, "loss", losses(a=[4.0]) | {("b", 5): 3.0}, rule=RULE)
    assert nothing.seeds == ()
    assert nothing.verdict == "too few seeds"
    assert math.isnan(nothing.estimate)


def test_a_main_effect_averages_its_pairs_within_each_seed() -> None:
    main = Contrast(name="main", pairs=(("a", "b"), ("c", "d")))
    found = losses(a=[10.0, 10.0], b=[9.0, 8.0], c=[5.0, 5.0], d=[5.0, 4.0])
    assert improvements(main, found) == pytest.approx({0: 5.0, 1: 20.0})


def test_a_mean_over_data_sets_is_taken_within_each_seed() -> None:
    # The sets disagree by as much in every seed: seeds are the units, sets add no spread.
    one, two = losses(a=[10, 10, 10], b=[9, 8, 7]), losses(a=[10, 10, 10], b=[11, 10, 9])
    found = effect(SWAP, "loss", one, two, rule=RULE)
    assert (found.estimate, found.standard_deviation) == pytest.approx((10, 10))
    del two["a", 1]
    assert effect(SWAP, "loss", one, two, rule=RULE).seeds == (0, 2)


CONTRASTS = [
    Contrast(name="p", pairs=(("a", "b"),), primary=True),
    Contrast(name="s", pairs=(("a", "c"),)),
    Contrast(name="t", pairs=(("b", "c"),)),
]
CELLS = losses(a=[10.0, 10.1, 9.9], b=[9.0, 9.1, 8.8], c=[9.5, 9.6, 9.3])


def test_the_contrasts_of_a_study_are_one_family() -> None:
    found = {e.contrast: e for e in effects(CONTRASTS, "loss", CELLS, rule=RULE)}
    first, rest = adjust_family(found["p"].p, [found["s"].p, found["t"].p], 0.8)
    assert [e.p_adjusted for e in found.values()] == pytest.approx([first, *rest])
    assert found["p"].verdict == "improved"


def test_without_a_primary_contrast_holm_serves() -> None:
    found = effects(CONTRASTS[1:], "loss", CELLS, rule=RULE)
    assert [e.p_adjusted for e in found] == pytest.approx(holm([e.p for e in found]))


def test_a_verdict_goes_by_the_adjusted_p() -> None:
    cells = losses(a=[10.0, 10.1, 9.9], b=[9.7, 9.6, 9.6])
    many = [Contrast(name=str(i), pairs=(("a", "b"),)) for i in range(20)]
    assert effect(many[0], "loss", cells, rule=RULE).verdict == "improved"
    assert {e.verdict for e in effects(many, "loss", cells, rule=RULE)} == {"inconclusive"}


PLAIN = effect(SWAP, "loss", losses(a=[10, 10, 10], b=[9, 8, 7]), rule=RULE)


@pytest.mark.parametrize(("changes", "word"), [
    ({"p_adjusted": 0.04}, "improved"),
    ({"p_adjusted": 0.04, "estimate": -2.0}, "worse"),
    ({"p_adjusted": 0.06}, "inconclusive"),
    ({"p_adjusted": 0.06, "p_tost": 0.05}, "equivalent"),
    ({"p_adjusted": 0.04, "p_tost": 0.01}, "improved"),
    ({"p_adjusted": 0.04, "seeds": (0, 1)}, "too few seeds"),
])  # fmt: skip
def test_verdicts(changes: dict[str, object], word: str) -> None:
    assert verdict(replace(PLAIN, **changes)) == word  # type: ignore[arg-type]
    assert verdict_is_clear(word) == (word in ("improved", "worse"))


def test_small_differences_are_equivalent_by_the_declared_smallest_effect() -> None:
    near = losses(a=[10.0, 10.0, 10.0, 10.0], b=[10.01, 9.99, 10.02, 9.98])
    assert (
        effect(SWAP, "loss", near, rule=DecisionRule(smallest_effect=1.0)).verdict == "equivalent"
    )
    assert (
        effect(SWAP, "loss", near, rule=DecisionRule(smallest_effect=0.1)).verdict == "inconclusive"
    )


def test_correlation_over_seeds_is_reported() -> None:
    found = effect(SWAP, "loss", losses(a=[1.0, 2.0, 3.0], b=[1.1, 2.1, 3.1]), rule=RULE)
    assert found.correlation == pytest.approx(1.0)
    found = effect(SWAP, "loss", losses(a=[1.0, 2.0, 3.0], b=[3.0, 2.0, 1.0]), rule=RULE)
    assert found.correlation == pytest.approx(-1.0)
    assert math.isnan(effect(SWAP, "loss", losses(a=[1.0], b=[2.0]), rule=RULE).correlation)


def test_a_race_reports_wider_intervals_and_larger_p() -> None:
    cells = losses(a=[10.0] * 5, b=list(np.random.default_rng(0).normal(9.8, 0.1, 5)))
    plain = effect(SWAP, "loss", cells, rule=RULE)
    raced = effect(SWAP, "loss", cells, rule=DecisionRule(looks=(3, 5, 8)))
    assert raced.estimate == plain.estimate
    assert raced.p > plain.p
    assert raced.p_tost > plain.p_tost
    assert raced.low < plain.low < plain.high < raced.high
    assert (plain.low, plain.high) == t_interval(np.array([*improvements(SWAP, cells).values()]))


def test_effects_are_plain_data() -> None:
    assert set(Effect.__dataclass_fields__) >= {"contrast", "metric", "seeds", "p_adjusted"}
    assert replace(PLAIN) == PLAIN


def test_an_exploratory_study_has_no_verdicts() -> None:
    clear = losses(a=[10.0, 10.1, 9.9], b=[9.0, 9.1, 8.8], c=[9.5, 9.6, 9.3])
    rule = DecisionRule(exploratory=True)
    assert {e.verdict for e in effects(CONTRASTS, "loss", clear, rule=rule)} == {"exploratory"}
    assert effect(SWAP, "loss", clear, rule=rule).verdict == "exploratory"
