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
from scipy import special

from ablate.effects import Losses, complete_seeds
from ablate.statistics import Values, holm, standard_error, t_quantile

Swaps = frozenset[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A share of a gain in percent, with its 95% interval and two-sided p."""

    name: str
    estimate: float
    low: float
    high: float
    p: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Attribution:
    """How the gain of a full factorial divides among its swaps, over the seeds that all cells have.

    ``gain`` is that of all swaps together, of which the ``shapley`` values are the exact parts,
    seed by seed; ``terms`` are main effects and interactions, their p by Holm among the main
    effects and among the interactions; ``additive_gap`` is the gain beyond the sum of the single
    swaps' gains.
    """

    seeds: tuple[int, ...]
    gain: Part
    shapley: list[Part]
    terms: list[Part]
    additive_gap: Part


def attribute(cells: Mapping[Swaps, str], losses: Losses) -> Attribution | None:
    """Return the analysis of a full factorial, or None where no seed has all of its cells.

    ``cells`` names the cell of every set of swaps; the empty set is the reference.
    """
    whole = max(cells, key=len)
    assert len(cells) == 2 ** len(whole), "a cell for every set of swaps"
    seeds = complete_seeds(cells.values(), losses)
    if not seeds:
        return None
    gains = _gains(cells, losses, seeds)
    order = sorted(whole)
    singles = sum((gains[frozenset((swap,))] for swap in order), np.zeros(len(seeds)))
    return Attribution(
        seeds=tuple(seeds),
        gain=_part("all swaps", gains[whole]),
        shapley=[_part(swap, _shapley(swap, gains)) for swap in order],
        terms=analyse_terms(gains, order),
        additive_gap=_part("beyond the sum of the single swaps", gains[whole] - singles),
    )


def _gains(cells: Mapping[Swaps, str], losses: Losses, seeds: list[int]) -> dict[Swaps, Values]:
    """Return each cell's gain [seeds] over the reference, in percent."""
    found = {s: np.array([losses[cell, seed] for seed in seeds]) for s, cell in cells.items()}
    reference = found[frozenset()]
    return {swaps: 100 * (1 - loss / reference) for swaps, loss in found.items()}


def _shapley(swap: str, gains: Mapping[Swaps, Values]) -> Values:
    """Return a swap's gain [seeds], averaged over all orders of adding the swaps."""
    count = max(map(len, gains))
    total = np.zeros(len(gains[frozenset()]))
    for others in (swaps for swaps in gains if swap not in swaps):
        before = len(others)
        orders = math.factorial(before) * math.factorial(count - before - 1)
        total += orders * (gains[others | {swap}] - gains[others])
    return total / math.factorial(count)


def _subsets(order: list[str]) -> Iterator[Swaps]:
    """Yield every set of swaps but the empty one, the small ones first."""
    for size in range(1, len(order) + 1):
        yield from map(frozenset, itertools.combinations(order, size))


def analyse_terms(
    gains: Mapping[Swaps, Values], order: list[str], *, pooled: bool = False
) -> list[Part]:
    """Return main effects, then interactions.

    An effect is the mean gain where a swap is in less the mean where it is not, an interaction half
    the change of one effect by the other swap: a cell's sign is the product over the term's swaps.
    Each has the error of its own variation over seeds. ``pooled`` is the textbooks' analysis, which
    gives all terms one error, that of seed by cell: more degrees of freedom, but where a swap's
    gain varies over seeds its intervals of three seeds hold in 3 of 4 studies only.
    """
    by_term = {
        term: sum(_sign(term, swaps) * gain for swaps, gain in gains.items()) / (len(gains) / 2)
        for term in _subsets(order)
    }
    names = [" x ".join(s for s in order if s in term) for term in by_term]
    table = np.stack(list(by_term.values()))  # [terms seeds]
    freedom = table.shape[1] - 1
    errors = np.array([standard_error(values) for values in table])
    if pooled and freedom:
        errors[:] = math.sqrt(float((errors**2).mean()))
        freedom *= len(table)
    parts = [
        _with_error(name, float(values.mean()), float(error), freedom)
        for name, values, error in zip(names, table, errors, strict=True)
    ]
    return [*_adjusted(parts[: len(order)]), *_adjusted(parts[len(order) :])]


def _sign(term: Swaps, swaps: Swaps) -> int:
    return math.prod(1 if swap in swaps else -1 for swap in term)


def _adjusted(parts: list[Part]) -> list[Part]:
    p_values = holm([part.p for part in parts])
    return [replace(part, p=p) for part, p in zip(parts, p_values, strict=True)]


def _part(name: str, values: Values) -> Part:
    """Return the mean of values [seeds] with its t interval."""
    return _with_error(name, float(values.mean()), standard_error(values), len(values) - 1)


def _with_error(name: str, estimate: float, error: float, freedom: int) -> Part:
    if freedom < 1:
        return Part(name=name, estimate=estimate, low=-math.inf, high=math.inf, p=1.0)
    half = t_quantile(freedom) * error
    p = 2 * special.stdtr(freedom, -abs(estimate) / error) if error else float(estimate == 0)
    return Part(name=name, estimate=estimate, low=estimate - half, high=estimate + half, p=p)
