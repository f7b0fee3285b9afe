"""Factorial analysis: what each swap contributes to the gain of all, and whether they add up.

Losses become gains in percent of the reference's loss with the same seed, so seeds are blocks and
every number is on the scale that effects have.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from ablate.core.metrics import Direction
from ablate.stats.effects import DecisionRule, Losses, complete_seeds, interval, p_value, up_to_look
from ablate.stats.tests_and_intervals import Values, holm

Swaps = frozenset[str]
Term = tuple[str, ...]  # the swaps of a main effect (one) or of an interaction


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A share of a gain in percent, with its 95% interval and two-sided p."""

    name: str
    estimate: float
    low: float
    high: float
    p: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """The gain with and without two swaps, averaged over the settings of the others."""

    swaps: tuple[str, str]
    present: tuple[bool, bool]
    gain: Part


@dataclass(frozen=True, kw_only=True, slots=True)
class Attribution:
    """How the gain of a full factorial divides among its swaps, over the seeds that all cells have.

    ``gain`` is that of all swaps together, of which the ``shapley`` values are the exact parts,
    seed by seed; ``terms`` are main effects and interactions, their p by Holm among the main
    effects and among the interactions; ``additive_gap`` is the gain beyond the sum of the single
    swaps' gains; ``settings`` are the four of every pair of swaps.
    """

    seeds: tuple[int, ...]
    gain: Part
    shapley: list[Part]
    terms: list[Part]
    additive_gap: Part
    settings: tuple[Setting, ...] = ()

    @property
    def interactions(self) -> list[Part]:
        """Return the terms that are of several swaps: they come after one for each swap."""
        return self.terms[len(self.shapley) :]


def attribute(
    cells: Mapping[Swaps, str],
    losses: Losses,
    rule: DecisionRule,
    direction: Direction = "lower",
) -> Attribution | None:
    """Return the analysis of a full factorial, or None where no seed has all of its cells.

    ``cells`` names the cell of every set of swaps; the empty set is the reference. In a race the
    seeds are those of the last look that all cells reach, and intervals hold at every look.
    """
    whole = max(cells, key=len)
    assert len(cells) == 2 ** len(whole), "a cell for every set of swaps"
    seeds = up_to_look(complete_seeds(cells.values(), losses), rule)
    if not seeds:
        return None
    gains = _gains(cells, losses, seeds, direction)
    order = sorted(whole)
    singles = sum((gains[frozenset((swap,))] for swap in order), np.zeros(len(seeds)))
    return Attribution(
        seeds=tuple(seeds),
        gain=_part("all swaps", gains[whole], rule),
        shapley=[_part(swap, _shapley(swap, gains), rule) for swap in order],
        terms=_adjusted({t: _part(_name(t), values, rule) for t, values in terms(gains).items()}),
        additive_gap=_part("beyond the sum of the single swaps", gains[whole] - singles, rule),
        settings=tuple(_settings(gains, rule)),
    )


def _gains(
    cells: Mapping[Swaps, str], losses: Losses, seeds: list[int], direction: Direction
) -> dict[Swaps, Values]:
    """Return each cell's gain [seeds] over the reference, in percent."""
    by_swaps = {s: np.array([losses[cell, seed] for seed in seeds]) for s, cell in cells.items()}
    reference = by_swaps[frozenset()]
    sign = 1 if direction == "lower" else -1
    return {swaps: sign * 100 * (1 - loss / reference) for swaps, loss in by_swaps.items()}


def _settings(gains: Mapping[Swaps, Values], rule: DecisionRule) -> Iterator[Setting]:
    """Yield the gain with and without every two swaps."""
    for pair in itertools.combinations(sorted(frozenset().union(*gains)), 2):
        for first, second in itertools.product((False, True), repeat=2):
            present = (first, second)
            chosen = [
                gain
                for swaps, gain in gains.items()
                if (pair[0] in swaps, pair[1] in swaps) == present
            ]
            part = _part(" and ".join(pair), np.mean(chosen, axis=0), rule)
            yield Setting(swaps=pair, present=present, gain=part)


def _shapley(swap: str, gains: Mapping[Swaps, Values]) -> Values:
    """Return a swap's gain [seeds], averaged over all orders of adding the swaps."""
    count = max(map(len, gains))
    total = np.zeros(len(gains[frozenset()]))
    for others in (swaps for swaps in gains if swap not in swaps):
        before = len(others)
        # As many orders of adding the swaps have exactly these ones before this one.
        orders = math.factorial(before) * math.factorial(count - before - 1)
        total += orders * (gains[others | {swap}] - gains[others])
    return total / math.factorial(count)


def terms(gains: Mapping[Swaps, Values]) -> dict[Term, Values]:
    """Return main effects [seeds], then interactions, by their swaps.

    An effect is the mean gain where a swap is in less the mean where it is not, an interaction half
    the change of one effect by the other swap: a cell's sign is the product over the term's swaps.
    """
    order = sorted(frozenset().union(*gains))
    values = {}
    for size in range(1, len(order) + 1):
        for term in itertools.combinations(order, size):
            # With contrasts coded +1 and -1 every term has the same weights, so all have the same
            # scale.
            signed = [_sign(term, swaps) * gain for swaps, gain in gains.items()]
            values[term] = np.sum(signed, axis=0) / (len(gains) / 2)
    return values


def _sign(term: Term, swaps: Swaps) -> int:
    return math.prod(1 if swap in swaps else -1 for swap in term)


def _name(term: Term) -> str:
    return " x ".join(term)


def _adjusted(parts: Mapping[Term, Part]) -> list[Part]:
    """Return terms with p by Holm: main effects among themselves, and interactions."""
    mains = [part for term, part in parts.items() if len(term) == 1]
    interactions = [part for term, part in parts.items() if len(term) > 1]
    return [
        replace(part, p=p)
        for family in (mains, interactions)
        for part, p in zip(family, holm([part.p for part in family]), strict=True)
    ]


def _part(name: str, values: Values, rule: DecisionRule) -> Part:
    """Return the mean of values [seeds] with the interval and the p that effects have."""
    low, high = interval(values, rule)
    mean = float(values.mean())
    return Part(name=name, estimate=mean, low=low, high=high, p=p_value(values, rule))
