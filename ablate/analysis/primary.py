"""How sure a study's primary contrast is: what it could have found, and its pairs of losses."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ablate.core.grid import Contrast
from ablate.core.plan import Plan
from ablate.stats.effects import FEWEST_SEEDS, DecisionRule, Effect, Losses
from ablate.stats.sequential import detectable_at
from ablate.stats.tests_and_intervals import ALPHA, ROUNDING, deviation_interval


@dataclass(frozen=True, kw_only=True, slots=True)
class Certainty:
    """The effects that the seeds of a study detect with 80% power, in percent."""

    smallest: float
    """In the primary contrast."""

    low: float
    high: float
    """The 95% interval of ``smallest``: the standard deviation is itself estimated."""

    other: float | None
    """In the first other contrast to be rejected, of a usual standard deviation."""


def certainty(plan: Plan, effects: Sequence[Effect]) -> Certainty | None:
    """Return what the study detects, or None where its seeds do not tell."""
    deciding = [e for e in effects if e.metric == plan.decides]
    main = next((e for e in deciding if plan.primary and e.contrast == plan.primary.name), None)
    if main is None or len(main.seeds) < FEWEST_SEEDS or not main.standard_deviation > ROUNDING:
        return None
    count, deviation = len(main.seeds), main.standard_deviation
    share = DecisionRule().primary_share if len(plan.contrasts) > 1 else 1.0
    smallest = detectable_at(plan.looks, count, deviation, ALPHA * share)
    low, high = (smallest * end / deviation for end in deviation_interval(deviation, count))
    # The median, for one contrast of a swap that fails to train would make all look hopeless.
    spreads = [e.standard_deviation for e in deciding if e is not main and len(e.seeds) > 1]
    other = None
    if spreads:
        # Holm's first step: the smallest of the other contrasts' p bears all of their number.
        alpha = ALPHA * (1 - share) / len(spreads)
        other = detectable_at(plan.looks, count, statistics.median(spreads), alpha)
    return Certainty(smallest=smallest, low=low, high=high, other=other)


def both_ends(
    contrast: Contrast, losses: Losses, seeds: Sequence[int]
) -> dict[int, tuple[float, float]]:
    """Return reference's and candidate's value by seed, as means over the contrast's pairs."""
    return {
        seed: (
            float(np.mean([losses[reference, seed] for reference, _ in contrast.pairs])),
            float(np.mean([losses[candidate, seed] for _, candidate in contrast.pairs])),
        )
        for seed in seeds
    }
