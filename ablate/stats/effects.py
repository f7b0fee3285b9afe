"""Effects: what a contrast does to a loss, paired by seed, relative, in percent, with a verdict.

Improvement of a candidate B over a reference A in a loss is (A - B) / A, as the paper reports it. A
contrast of several pairs of cells (a main effect) averages the pairs within each seed, a mean over
data sets averages the sets within each seed: seeds are the units.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from ablate.core.grid import Contrast
from ablate.core.metrics import Direction
from ablate.stats.sequential import EQUIVALENCE_SPENDING, level, sequential_p
from ablate.stats.tests_and_intervals import (
    ALPHA,
    CONFIDENCE,
    Values,
    adjust_family,
    equivalence_p,
    holm,
    sign_flip_p,
    t_interval,
    t_test_p,
    varies,
)

FEWEST_SEEDS = 3  # a verdict needs so many
EXPLORATORY = "exploratory"
Losses = Mapping[tuple[str, int], float]  # (cell, seed) -> loss


@dataclass(frozen=True, kw_only=True, slots=True)
class DecisionRule:
    """How verdicts are reached; declared before a study runs.

    ``smallest_effect`` is the improvement in percent below which a difference is of no interest,
    ``primary_share`` the part of alpha that the primary contrast has, ``looks`` the numbers of
    seeds at which a race is looked at, ``aim`` what it goes on for: see `ablate.stats.race`. In an
    ``exploratory`` study, whose trials were stopped early, there are no verdicts.
    """

    smallest_effect: float = 1.0
    primary_share: float = 0.8
    looks: tuple[int, ...] = ()
    aim: str = "improvements"
    exploratory: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Effect:
    """A contrast's estimate in one metric; numbers in percent, positive when the loss falls.

    ``standard_deviation`` is that of the improvement over seeds. ``p`` is the paired t
    test's (over all looks, in a race), ``p_adjusted`` that of the family of all contrasts, by which
    the verdict goes; ``p_tost`` says how well an effect of interest is ruled out; ``p_sign_flip``
    is the sign-flip test's, which assumes only that without an effect both signs are as likely.
    ``correlation`` is that of reference and candidate over seeds (what pairing by seed gains from).
    In a race the numbers are those of the last look that the seeds reach, the verdict that of the
    look at which it was decided.
    """

    contrast: str
    metric: str
    seeds: tuple[int, ...]
    estimate: float
    low: float
    high: float
    standard_deviation: float
    p: float
    p_adjusted: float
    p_tost: float
    p_sign_flip: float
    correlation: float
    verdict: str


def improvement(reference: float, candidate: float, direction: Direction = "lower") -> float:
    """Return by how many percent of the reference a candidate is better."""
    percent = 100 * (1 - candidate / reference)
    return percent if direction == "lower" else -percent


def improvements(
    contrast: Contrast, losses: Losses, direction: Direction = "lower"
) -> dict[int, float]:
    """Return the improvement in percent for each seed of which all cells have a usable value."""
    return {
        seed: float(
            np.mean(
                [
                    improvement(losses[a, seed], losses[b, seed], direction)
                    for a, b in contrast.pairs
                ]
            )
        )
        for seed in complete_seeds(contrast.cells, losses)
    }


def complete_seeds(cells: Collection[str], losses: Losses) -> list[int]:
    """Return the seeds of which all of some cells have a usable loss: finite and above 0."""
    # A seed counts only whole: to use the cells that did finish would choose pairs by what came
    # of them.
    seen = {seed for cell, seed in losses if cell in cells}
    return sorted(s for s in seen if all(is_usable(losses.get((c, s), math.nan)) for c in cells))


def is_usable(loss: float) -> bool:
    """Return whether a loss can be compared with another one: it is finite and above 0."""
    return math.isfinite(loss) and loss > 0


def missing(contrast: Contrast, losses: Losses) -> dict[int, str]:
    """Return why a seed that some of the contrast's cells have cannot be used, by seed."""
    seen = {seed for cell, seed in losses if cell in contrast.cells}
    reasons = {}
    for seed in sorted(seen - set(complete_seeds(contrast.cells, losses))):
        cells = sorted(contrast.cells)
        lost = [cell for cell in cells if not is_usable(losses.get((cell, seed), math.nan))]
        reasons[seed] = f"no usable loss of {', '.join(lost)}"
    return reasons


def mean_improvements(
    contrast: Contrast, sets: Sequence[Losses], direction: Direction = "lower"
) -> dict[int, float]:
    """Return the improvement in percent, averaged over data sets, for each seed that all have."""
    by_set = [improvements(contrast, losses, direction) for losses in sets]
    seeds = set.intersection(*(set(by_seed) for by_seed in by_set))
    return {seed: float(np.mean([by_seed[seed] for by_seed in by_set])) for seed in sorted(seeds)}


def effect(
    contrast: Contrast,
    metric: str,
    *sets: Losses,
    rule: DecisionRule,
    direction: Direction = "lower",
) -> Effect:
    """Return a contrast's mean improvement over seeds, and over data sets if there are several.

    Its p is that of this one contrast; `effects` adjusts for the others. In a race, seeds beyond
    the last look that they reach wait for the next one.
    """
    by_seed = mean_improvements(contrast, sets, direction)
    # What lies beyond the last look has not been looked at yet, and must not move the estimate.
    by_seed = {seed: by_seed[seed] for seed in up_to_look(list(by_seed), rule)}
    correlations = [pair_correlation(contrast, losses, list(by_seed)) for losses in sets]
    values = np.array(list(by_seed.values()))
    n = len(values)
    low, high = interval(values, rule)
    p = p_value(values, rule)
    alone = Effect(
        contrast=contrast.name,
        metric=metric,
        seeds=tuple(by_seed),
        estimate=float(values.mean()) if n else math.nan,
        low=low,
        high=high,
        standard_deviation=float(values.std(ddof=1)) if n > 1 else math.nan,
        p=p,
        p_adjusted=p,
        p_tost=_equivalence(values, rule),
        p_sign_flip=sign_flip_p(values),
        correlation=float(np.mean(correlations)),
        verdict="",
    )
    return _judged(alone, rule)


def up_to_look(seeds: list[int], rule: DecisionRule) -> list[int]:
    """Return the first seeds, as many as the last look of a race that they reach; else all."""
    seen = [look for look in rule.looks if look <= len(seeds)]
    return seeds[: seen[-1]] if seen else seeds


def p_value(values: Values, rule: DecisionRule) -> float:
    """Return the paired t test's p of improvements by seed; in a race, that over all looks.

    It is 1 where improvements do not vary: seeds without an effect, or copies, prove nothing.
    """
    if not varies(values):
        return 1.0
    return sequential_p(values, rule.looks, t_test_p) if rule.looks else t_test_p(values)


def interval(values: Values, rule: DecisionRule) -> tuple[float, float]:
    """Return the 95% interval of improvements by seed; in a race, one that holds at every look."""
    return t_interval(values, confidence(rule, len(values)))


def confidence(rule: DecisionRule, seeds: int) -> float:
    """Return the level of an interval of so many seeds that leads to 95%, or more, over looks."""
    return 1 - level(rule.looks, seeds) if rule.looks else CONFIDENCE


def _equivalence(values: Values, rule: DecisionRule) -> float:
    if not varies(values):
        return 1.0
    test = partial(equivalence_p, margin=rule.smallest_effect)
    if not rule.looks:
        return test(values)
    return sequential_p(values, rule.looks, test, EQUIVALENCE_SPENDING)


def effects(
    contrasts: Sequence[Contrast],
    metric: str,
    *sets: Losses,
    rule: DecisionRule,
    direction: Direction = "lower",
) -> list[Effect]:
    """Return all contrasts' effects in one metric, with p adjusted over their whole family.

    In a race (seeds counting from 0) a contrast keeps the verdict of the look that decided it.
    """
    decided: dict[str, str] = {}
    most = max((seed + 1 for losses in sets for _, seed in losses), default=0)
    for look in (look for look in rule.looks if look < most):
        seen = [{k: loss for k, loss in losses.items() if k[1] < look} for losses in sets]
        family = _family(contrasts, metric, seen, rule, direction)
        for contrast, e in zip(contrasts, family, strict=True):
            if verdict_is_decided(e.verdict, contrast):
                decided.setdefault(e.contrast, e.verdict)
    family = _family(contrasts, metric, sets, rule, direction)
    return [replace(e, verdict=decided.get(e.contrast, e.verdict)) for e in family]


def _family(
    contrasts: Sequence[Contrast],
    metric: str,
    sets: Sequence[Losses],
    rule: DecisionRule,
    direction: Direction,
) -> list[Effect]:
    """Return effects with p adjusted so that the family's error rate is at most alpha."""
    alone = [effect(c, metric, *sets, rule=rule, direction=direction) for c in contrasts]
    first = [e for e, contrast in zip(alone, contrasts, strict=True) if contrast.primary]
    others = [e for e, contrast in zip(alone, contrasts, strict=True) if not contrast.primary]
    if first:
        # The study is about one contrast, which keeps most of alpha; the others share the rest.
        primary, rest = adjust_family(first[0].p, [e.p for e in others], rule.primary_share)
        adjusted = {first[0].contrast: primary}
    else:
        adjusted, rest = {}, holm([e.p for e in others])
    adjusted |= {e.contrast: p for e, p in zip(others, rest, strict=True)}
    return [_judged(replace(e, p_adjusted=adjusted[e.contrast]), rule) for e in alone]


def _judged(effect: Effect, rule: DecisionRule) -> Effect:
    return replace(effect, verdict=EXPLORATORY if rule.exploratory else verdict(effect))


def pair_correlation(contrast: Contrast, losses: Losses, seeds: list[int]) -> float:
    """Return the mean correlation over seeds between reference and candidate; nan if undefined."""
    correlations = []
    for a, b in contrast.pairs:
        old, new = ([losses[cell, seed] for seed in seeds] for cell in (a, b))
        # A correlation of two points is always 1 or -1, and of a constant undefined.
        if len(seeds) > 2 and np.std(old) > 0 and np.std(new) > 0:
            correlations.append(float(np.corrcoef(old, new)[0, 1]))
    return float(np.mean(correlations)) if correlations else math.nan


def verdict(effect: Effect) -> str:
    """Return the word for an effect.

    ``improved`` or ``worse`` where the adjusted p is at most 5%; else ``equivalent`` where an
    effect of interest is ruled out at 5%; else ``inconclusive``; below three, ``too few seeds``.
    """
    if len(effect.seeds) < FEWEST_SEEDS:
        return "too few seeds"
    if effect.p_adjusted <= ALPHA:
        return "improved" if effect.estimate > 0 else "worse"
    return "equivalent" if effect.p_tost <= ALPHA else "inconclusive"


def verdict_is_clear(word: str) -> bool:
    """Return whether a verdict says that there is an effect."""
    return word in ("improved", "worse")


def verdict_is_decided(word: str, contrast: Contrast) -> bool:
    """Return whether a verdict is one to stop at: clear, or equivalent if not the primary one's.

    A primary effect smaller than the smallest one of interest may yet be found to be there.
    """
    return verdict_is_clear(word) or (word == "equivalent" and not contrast.primary)
