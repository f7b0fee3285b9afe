"""A race: seeds are added look by look, and cells whose contrasts are all decided run no further.

A contrast is decided by its verdict, or futile: the chance that later looks find it improved is
below `FUTILE`. With the aim of verdicts a race goes on for any verdict, as every race does for the
primary contrast, which goes on from equivalent, too. A cell runs on while an undecided contrast
needs it. Decisions are a function of the losses alone, so a study that was stopped goes on as if it
had not been.

Dropping cells cannot raise the family-wise error: a contrast that runs no further keeps a p over
all looks that more seeds could only have lowered, and the adjustment never rejects more for a
larger p.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ablate.core.grid import Contrast
from ablate.core.metrics import Direction
from ablate.stats.effects import (
    DecisionRule,
    Effect,
    Losses,
    effects,
    improvements,
    verdict_is_decided,
)
from ablate.stats.sequential import EQUIVALENCE_SPENDING, level
from ablate.stats.tests_and_intervals import ALPHA, Values, t_quantile

if TYPE_CHECKING:
    pass

IMPROVEMENTS, VERDICTS = AIMS = ("improvements", "verdicts")
FUTILE = 0.1  # the smallest chance of what a race is for that is worth more seeds
FUTILE_PRIMARY = 0.01  # of any verdict on what the study is about
DRAWS = 4000  # futures imagined for such a chance: it is then known to within half a percent
FUTILE_WORD = "futile"
Family = Sequence[Contrast]


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """Why a contrast asks for no more seeds: its verdict at this look, or ``futile``.

    ``chance`` is that of the looks to come to bring what the contrast ran on for.
    """

    effect: Effect
    why: str
    chance: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What a look at so many ``seeds`` decided, and the cells that ran no further after it."""

    seeds: int
    decisions: tuple[Decision, ...]
    dropped: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Race:
    """The looks taken so far, and ``running``: the cells still needed, none when it is over."""

    looks: tuple[Look, ...]
    running: frozenset[str]
    last: int

    @property
    def seeds(self) -> dict[str, int]:
        """Return how many seeds each dropped cell has."""
        return {cell: look.seeds for look in self.looks for cell in look.dropped}

    def reach(self, cells: Iterable[str]) -> int:
        """Return how many seeds all of some cells are, or as yet may be, trained with."""
        return min(self.seeds.get(cell, self.last) for cell in cells)


def hold_looks(
    families: Sequence[Family],
    metric: str,
    losses: Losses,
    rule: DecisionRule,
    cells: Iterable[str],
    settled: Container[tuple[str, int]],
    direction: Direction = "lower",
) -> Race:
    """Return what the looks decide for which all that they need is ``settled``: trained or failed.

    Each family of contrasts is adjusted for by itself. A pair that is missing decides nothing: its
    contrast stays undecided until enough other seeds have come.
    """
    running, looks = frozenset(cells), []
    open_contrasts = [contrast for family in families for contrast in family]
    for seeds in rule.looks:
        if not all((cell, seed) in settled for cell in running for seed in range(seeds)):
            break
        seen = {key: loss for key, loss in losses.items() if key[1] < seeds}
        decisions = {
            decision.effect.contrast: decision
            for family in families
            for decision in decide(family, metric, seen, rule, seeds, direction)
        }
        new = tuple(decisions[c.name] for c in open_contrasts if c.name in decisions)
        open_contrasts = [c for c in open_contrasts if c.name not in decisions]
        still = frozenset(cell for c in open_contrasts for cell in c.cells) & running
        if seeds == rule.looks[-1]:
            still = frozenset()
        looks.append(Look(seeds=seeds, decisions=new, dropped=tuple(sorted(running - still))))
        running = still
        if not running:
            break
    return Race(looks=tuple(looks), running=running, last=rule.looks[-1])


def decide(
    family: Family,
    metric: str,
    losses: Losses,
    rule: DecisionRule,
    seeds: int,
    direction: Direction = "lower",
) -> list[Decision]:
    """Return the family's contrasts that are decided by so many seeds or are not worth more."""
    family_effects = effects(family, metric, losses, rule=rule, direction=direction)
    decisions = []
    for contrast, effect in zip(family, family_effects, strict=True):
        if len(effect.seeds) < seeds:
            continue
        values = np.array(list(improvements(contrast, losses, direction).values()))
        # What a contrast may spend depends on which others have been rejected already.
        ahead = chances(values, rule, ALPHA / multiplicity(contrast, family, family_effects, rule))
        chance = ahead.any if contrast.primary or rule.aim == VERDICTS else ahead.improved
        if not any(other.primary for other in family):
            chance = ahead.clear  # the A/A contrast is watched for a difference, whichever way
        decided = verdict_is_decided(effect.verdict, contrast)
        if decided or chance < (FUTILE_PRIMARY if contrast.primary else FUTILE):
            why = effect.verdict if decided else FUTILE_WORD
            decisions.append(Decision(effect=effect, why=why, chance=chance))
    return decisions


def multiplicity(
    contrast: Contrast, family: Family, family_effects: Sequence[Effect], rule: DecisionRule
) -> float:
    """Return what a contrast's p is multiplied by if it is the next one to be rejected."""
    remaining = [
        other
        for other, effect in zip(family, family_effects, strict=True)
        if effect.p_adjusted > ALPHA and other != contrast
    ]
    others = [other for other in remaining if not other.primary]
    if contrast.primary:
        return 1 / rule.primary_share if others else 1.0
    primary_is_left = len(remaining) > len(others)
    return (1 + len(others)) / (1 - rule.primary_share if primary_is_left else 1)


@dataclass(frozen=True, slots=True)
class Chances:
    """The chances that the looks to come bring an improvement, a clear effect, or any verdict."""

    improved: float
    clear: float
    any: float


def chances(values: Values, rule: DecisionRule, alpha: float) -> Chances:
    """Return what the looks to come may bring, going by the values so far.

    These are predictive probabilities: a true effect and its spread over seeds are drawn from what
    the values say of them (under a flat prior), and the seeds to come from these. ``alpha`` is what
    the contrast may spend in its family; equivalence is not adjusted.
    """
    now, last = len(values), rule.looks[-1]
    improved, clear, decided = (np.zeros(DRAWS, dtype=bool) for _ in range(3))
    if now < last:
        # The posterior of mean and spread under a flat prior: normal given a scaled inverse chi-
        # squared.
        spread, normal, later = _futures(now, last)
        sigma = float(values.std(ddof=1)) * spread
        true = float(values.mean()) + sigma * normal / math.sqrt(now)
        paths = np.hstack([np.tile(values, (DRAWS, 1)), true + sigma * later])
    for look in (look for look in rule.looks if look > now):
        mean = paths[:, :look].mean(axis=1)
        error = paths[:, :look].std(axis=1, ddof=1) / math.sqrt(look)
        one_sided = level(rule.looks, look, spending=EQUIVALENCE_SPENDING)
        effect = t_quantile(look - 1, 1 - level(rule.looks, look, alpha)) * error
        no_effect = t_quantile(look - 1, 1 - 2 * one_sided) * error
        improved |= (mean >= effect) & ~decided
        clear |= (np.abs(mean) >= effect) & ~decided
        decided |= (np.abs(mean) >= effect) | (rule.smallest_effect - np.abs(mean) >= no_effect)
    return Chances(*(float(outcomes.mean()) for outcomes in (improved, clear, decided)))


@functools.cache
def _futures(now: int, last: int) -> tuple[Values, Values, Values]:
    """Return standard draws [draws 1] of a true spread and mean, and [draws seeds] of later seeds.

    From NumPy's frozen generator: the same ledger leads to the same decisions for ever.
    """
    generator: Any = np.random.RandomState(0)
    spread = np.sqrt((now - 1) / generator.chisquare(now - 1, (DRAWS, 1)))
    normal = generator.standard_normal((DRAWS, 1 + last - now))
    return spread, normal[:, :1], normal[:, 1:]
