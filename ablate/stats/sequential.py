"""Looking at a study before it is over: tests at looks declared in advance.

At look k the t test on the first n_k seeds gives p_k. A race goes by the smallest p_k / w_k so far,
with weights w declared before it began, and the p reported is the chance that the smallest over
*all* looks would come out so small without an effect. That is exact for normal noise at any
number of seeds, and it holds at whichever look one stops. (Alpha spending: Lan and DeMets 1983;
what a look spends is in `spent`.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from ablate.stats.tests_and_intervals import ALPHA, Values, detectable_effect
from blocks import UsageError

PATHS = 200_000  # simulated studies without an effect; p = 0.001 is then known to within 7%
# The exponent of Kim and DeMets 1987: early looks spend little, for early dropping is what saves
# trials. With 4 a race has up to 2 points less power than a study without looks, with 2 up to 6.
SPENDING = 4.0
EQUIVALENCE_SPENDING = 1.0  # evenly: what is found equivalent soon is what saves trials
USUAL_LOOKS = (3, 5, 8, 12, 20, 32)
USUAL_LAST = 8
MOST_SEEDS = 100  # 200,000 simulated studies of so many take a gigabyte for a moment


def check_looks(looks: Sequence[int]) -> tuple[int, ...]:
    """Return looks that can be raced at; raises `UsageError` for others."""
    if len(looks) < 2 or list(looks) != sorted(set(looks)) or looks[0] < 3:
        raise UsageError(
            f"looks must be two or more rising numbers of seeds, the first at least 3; got "
            f"{', '.join(map(str, looks)) or 'none'}"
        )
    if looks[-1] > MOST_SEEDS:
        raise UsageError(f"a race has at most {MOST_SEEDS} seeds, got {looks[-1]}")
    return tuple(looks)


def usual_looks(last: int) -> tuple[int, ...]:
    """Return the looks of a race that ends with so many seeds; each adds half as much or more."""
    earlier = (look for look in USUAL_LOOKS if look == USUAL_LOOKS[0] or look <= 0.7 * last)
    return check_looks([*(look for look in earlier if look < last), last])


def choose_looks(race: bool, asked: Sequence[int] | None, seeds: int | None) -> tuple[int, ...]:
    """Return the looks of a command, none unless it races; raises `UsageError` if at odds."""
    if not race:
        if asked is not None:
            words = ",".join(map(str, asked))
            raise UsageError(f"--looks {words}: looks are for a race; add --race")
        return ()
    if asked is None:
        return usual_looks(USUAL_LAST if seeds is None else seeds)
    looks = check_looks(asked)
    if seeds not in (None, looks[-1]):
        words = ",".join(map(str, looks))
        raise UsageError(f"--looks {words} ends with {looks[-1]} seeds, but --seeds is {seeds}")
    return looks


def weights(looks: tuple[int, ...], spending: float = SPENDING) -> Values:
    """Return each look's weight; they sum to 1."""
    return np.diff((np.array((0, *looks)) / looks[-1]) ** spending)


def sequential_p(
    values: Values,
    looks: tuple[int, ...],
    test: Callable[[Values], float],
    spending: float = SPENDING,
) -> float:
    """Return the p, over all looks, of values in the order of their seeds.

    ``test`` gives the p of the values up to a look. Looks that the values do not reach count as not
    taken yet; values beyond the last look that they reach are not used. For a one-sided test the p
    is a little larger than it need be: two-sided p of two looks are less alike than one-sided ones.
    """
    # Values come in the order of their seeds: which seeds a look has seen was fixed beforehand.
    reached = [n for n in looks if n <= len(values)]
    if not reached:
        return 1.0
    weighted = zip(reached, weights(looks, spending), strict=False)
    smallest = float(min(test(values[:n]) / w for n, w in weighted))
    null = _null(looks, spending)
    # Counting the study itself among the simulated ones keeps p above 0, and valid.
    rank = 1 + int(np.searchsorted(null, smallest, "right"))
    return min(1.0, smallest, rank / len(null))  # weights sum to 1: the union bound is above


def level(
    looks: tuple[int, ...], seeds: int, alpha: float = ALPHA, spending: float = SPENDING
) -> float:
    """Return the level that the t test of the last look reached is held to, 0 before the first."""
    reached = sum(n <= seeds for n in looks)
    if not reached:
        return 0.0
    return float(_critical(looks, alpha, spending) * weights(looks, spending)[reached - 1])


def detectable_at(
    looks: tuple[int, ...], seeds: int, deviation: float, alpha: float = ALPHA
) -> float:
    """Return the smallest true effect found with 80% power, in a race at the last look reached."""
    return detectable_effect(seeds, deviation, level(looks, seeds, alpha) if looks else alpha)


def spent(looks: tuple[int, ...], alpha: float = ALPHA) -> list[float]:
    """Return what each look spends of alpha: the chance of stopping there without an effect."""
    return _spent(looks, alpha)


@functools.cache
def _critical(looks: tuple[int, ...], alpha: float, spending: float = SPENDING) -> float:
    """Return the smallest weighted p that `sequential_p` turns into alpha."""
    # Far in the tail few of the simulated studies are left; the union bound holds there.
    return max(alpha, float(np.quantile(_null(looks, spending), alpha)))


@functools.cache
def _null(looks: tuple[int, ...], spending: float) -> Values:
    """Return, sorted, the smallest weighted p of studies in which nothing has an effect."""
    return np.sort((_paths(looks) / weights(looks, spending)).min(axis=1))


@functools.cache
def _spent(looks: tuple[int, ...], alpha: float) -> list[float]:
    weighted = _paths(looks) / weights(looks) <= _critical(looks, alpha)
    first = np.where(weighted.any(axis=1), weighted.argmax(axis=1), -1)
    return [float((first == k).mean()) for k in range(len(looks))]


@functools.cache
def _paths(looks: tuple[int, ...]) -> Values:
    """Return p values [paths looks] of t tests on growing samples of noise.

    From NumPy's frozen generator: a bundle is verified with the same numbers for ever.
    """
    # Only RandomState's stream is frozen: a Generator's may change between versions of NumPy.
    generator: Any = np.random.RandomState(0)
    noise = generator.standard_normal((PATHS, looks[-1]))
    sums, squares = noise.cumsum(axis=1), (noise**2).cumsum(axis=1)
    paths = np.empty((PATHS, len(looks)))
    for k, n in enumerate(looks):
        total, square = sums[:, n - 1], squares[:, n - 1]
        # Running sums give every look's variance in one pass; noise of mean 0 loses no digits.
        deviation = np.sqrt((square - total**2 / n) / (n - 1))
        paths[:, k] = 2 * stats.t.sf(np.abs(total) / (deviation * np.sqrt(n)), n - 1)
    return paths
