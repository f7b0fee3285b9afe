"""Small versions of benchmarks/calibration.py: they fail when a method is broken.

Bounds are those of the full version, and three Monte Carlo standard errors more.
"""

from __future__ import annotations

import itertools
import math

import calibration
import numpy as np
import pytest

from ablate.core.grid import Contrast
from ablate.stats.effects import DecisionRule, effect, effects, verdict_is_clear
from ablate.stats.race import IMPROVEMENTS
from ablate.stats.sequential import usual_looks

PAIRS = [
    Contrast(name="first", pairs=(("a", "b"),), primary=True),
    Contrast(name="second", pairs=(("c", "d"),)),
    Contrast(name="third", pairs=(("e", "f"),)),
]


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(12)


def at_most(found: dict[str, float], bound: float) -> bool:
    return found["rate"] <= bound + 3 * math.sqrt(bound * (1 - bound) / found["runs"])


def near(found: dict[str, float], wanted: float, beside: float = 0.0) -> bool:
    error = math.sqrt(wanted * (1 - wanted) / found["runs"])
    return abs(found["rate"] - wanted) <= beside + 3 * error


def clear(
    contrasts: list[Contrast], rule: DecisionRule, seeds: int, runs: int, random: object
) -> object:
    """Return how often some of independent contrasts is clear, though nothing has an effect."""
    hits = []
    for _ in range(runs):
        losses = calibration.simulate("abcdef", {}, seeds, random)  # type: ignore[arg-type]
        found = effects(contrasts, "coca", losses, rule=rule)
        hits.append(any(verdict_is_clear(e.verdict) for e in found))
    return calibration.rate(hits)


def test_a_family_errs_in_5_percent_of_studies(random: np.random.Generator) -> None:
    found = clear(PAIRS, DecisionRule(), 5, 1500, random)
    assert near(found, 0.05)  # independent contrasts use all that there is
    full = calibration.family_error(calibration.grid_of("full"), 8, "skewed", "even", 150, random)
    assert at_most(full, 0.05)


def test_looks_do_not_raise_the_error(random: np.random.Generator) -> None:
    found = clear(PAIRS[:1], DecisionRule(looks=(3, 5, 8)), 8, 1500, random)
    assert near(found, 0.05)


def test_a_races_intervals_hold_at_every_look(random: np.random.Generator) -> None:
    hits = []
    for _ in range(800):
        losses = calibration.simulate("ab", {}, 8, random)
        seen = [{k: v for k, v in losses.items() if k[1] < look} for look in (3, 5, 8)]
        found = [effect(PAIRS[0], "coca", at, rule=DecisionRule(looks=(3, 5, 8))) for at in seen]
        hits.append(all(e.low <= 0 <= e.high for e in found))
    assert near(calibration.rate(hits), 0.95)


def test_intervals_hold_the_truth(random: np.random.Generator) -> None:
    full = calibration.grid_of("full")
    for condition in ("even", "a swap whose gain varies over seeds"):
        found = calibration.coverage(full, 3, "normal", condition, 200, random)
        for kind in ("contrasts", "main effects", "shapley", "terms", "additive gap"):
            # The contrasts of a study are not independent: their mean varies as a few of them do.
            assert near(found[kind], 0.95, beside=0.01), kind
            assert found[kind]["worst"] > 0.86, kind
        assert found["gap"] < 1e-9  # Shapley values sum to the gain


def test_intervals_for_other_examples_hold_the_truth(random: np.random.Generator) -> None:
    for source, gain in itertools.product(
        ("seeds vary most", "examples vary most"), ("no gain", "a gain of 7%")
    ):
        found = calibration.example_coverage(source, "60 clusters", gain, 3, "normal", 1000, random)
        assert near(found, 0.95, beside=0.01), (source, gain)


def test_equivalence_errs_in_5_percent_at_the_margin(random: np.random.Generator) -> None:
    found = calibration.equivalence(1.0, 0.3, 5, "normal", 1500, random)
    assert near(found, 0.05)
    assert calibration.equivalence(0.0, 0.3, 5, "normal", 100, random)["verdict"] > 0.9


def test_power_is_what_a_plan_predicts(random: np.random.Generator) -> None:
    paper = calibration.grid_of("paper")
    found = calibration.power_gap(paper, paper.contrasts[0], 1.0, 8, 0.05, 800, random)
    assert near(found, found["predicted"])
    full = calibration.grid_of("full")
    single = next(c for c in full.contrasts if "original" in c.cells)
    alpha = calibration.first_holm_step(full)
    found = calibration.power_gap(full, single, 2.0, 8, alpha, 120, random)
    assert near(found, found["predicted"])


def test_a_race_saves_trials_at_equal_error(random: np.random.Generator) -> None:
    found = calibration.race(
        calibration.grid_of("swaps"), 8, "none", IMPROVEMENTS, "normal", 150, random
    )
    assert at_most(found["any wrong verdict"], 0.05)
    assert found["saved"]["rate"] > 0.35
    assert near(found["coverage"], 0.97, beside=0.02)
    assert usual_looks(8) == (3, 5, 8)
