"""Durations, how long a study's trials take side by side, and which design fits into a budget."""

from __future__ import annotations

import heapq
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ablate.core.ledger import Ledger
from ablate.core.plan import Plan
from ablate.core.trial import Trial
from ablate.planning.forecast import Forecast
from ablate.stats.effects import FEWEST_SEEDS
from blocks import UsageError

UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
DURATION = re.compile("".join(rf"(?:(?P<{unit}>\d+(?:\.\d+)?){unit})?" for unit in UNITS))
STARTUP = 20.0  # seconds that a study takes beside its trials: Ray, imports, the report


def parse_duration(text: str) -> float:
    """Return the seconds that ``2h``, ``90m``, ``1h30m`` or ``45s`` mean; raises `UsageError`."""
    match = DURATION.fullmatch(text.strip().lower().replace(" ", ""))
    parts = match.groupdict() if match else {}
    seconds = sum(float(number) * UNITS[unit] for unit, number in parts.items() if number)
    if seconds <= 0:
        raise UsageError(f"{text!r} is no time; write 2h, 90m, 1h30m, 45s or 1d")
    return seconds


def spell_duration(seconds: float) -> str:
    """Return a time in words, the two largest units of it: 1 h 30 min."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds < 59.5 else "1 min"
    steps = (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1))
    for large, size, small, unit in steps:
        rounded = round(seconds / unit) * unit
        if rounded >= size:
            whole, rest = divmod(rounded, size)
            return f"{whole} {large}" + (f" {rest // unit} {small}" if rest else "")
    raise AssertionError(seconds)


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """A trial that is not finished, and the stages that are left of it."""

    trial: Trial
    stages: tuple[str, ...]


def work_left(plan: Plan, ledger: Ledger) -> list[Work]:
    """Return what is left of a plan; what is in the ledger costs nothing."""
    work = []
    for trial in plan.trials:
        stages = tuple(s.name for s in trial.stages if ledger.record(trial, s) is None)
        if stages:
            work.append(Work(trial=trial, stages=stages))
    return work


def total_seconds(work: Sequence[Work], forecasts: Mapping[str, Forecast], slots: int) -> float:
    """Return how long whole trials take when each starts on the slot that is free first."""
    if not work:
        return 0.0
    free = [0.0] * slots
    for item in work:
        stages = forecasts[item.trial.name].stages
        taken = sum(stages[name] for name in item.stages)
        heapq.heapreplace(free, free[0] + taken)
    return STARTUP + max(free)


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A smaller design: its seeds and predicted seconds, and what it leaves out.

    ``cells`` are those of the grid that stay, in case some are ``dropped``; the A/A cell, which is
    not the grid's, is dropped before any of them. ``lost`` are contrasts and the like, in words.
    """

    cells: tuple[str, ...]
    seeds: int
    seconds: float
    dropped: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


def propose(
    plan: Plan, work: Sequence[Work], forecasts: Mapping[str, Forecast], slots: int, budget: float
) -> Proposal | None:
    """Return the largest design of a plan that fits into a budget in seconds, or None.

    Seeds go before cells, down to the fewest that allow a verdict; then cells go one by one, and
    seeds come back where there is room. The primary contrast's cells stay.
    """
    order = drop_order(plan)
    fewest = min(plan.seeds, FEWEST_SEEDS)
    for count in range(len(order) + 1):
        kept = plan.cells.keys() - set(order[:count])
        for seeds in range(plan.seeds, fewest - 1, -1):
            chosen = [w for w in work if w.trial.name in kept and plan.place(w.trial) < seeds]
            seconds = total_seconds(chosen, forecasts, slots)
            if seconds <= budget:
                return _proposal(plan, kept, tuple(order[:count]), seeds, seconds)
    return None


def smallest_seconds(
    plan: Plan, work: Sequence[Work], forecasts: Mapping[str, Forecast], slots: int
) -> float:
    """Return what the smallest design takes: the primary contrast with the fewest seeds."""
    kept = plan.cells.keys() - set(drop_order(plan))
    fewest = min(plan.seeds, FEWEST_SEEDS)
    chosen = [w for w in work if w.trial.name in kept and plan.place(w.trial) < fewest]
    return total_seconds(chosen, forecasts, slots)


def drop_order(plan: Plan) -> list[str]:
    """Return the cells that a budget may cost, the first to go first.

    The A/A cell, ``original``, other cells outside the factorial, the last named first; then, as
    the factorial is broken with the first of them, its cells of several swaps, and single swaps.
    """
    again = [plan.noise.pairs[0][1]] if plan.noise else []
    essential = plan.primary.cells if plan.primary else {plan.reference}
    others = [name for name in reversed(plan.cells) if name not in {*again, *essential}]

    def rank(name: str) -> int:
        if name not in plan.factorial:
            return 0 if name == "original" else 1
        return 2 if len(plan.factorial[name]) > 1 else 3

    return again + sorted(others, key=rank)


def _proposal(
    plan: Plan, kept: set[str], dropped: tuple[str, ...], seeds: int, seconds: float
) -> Proposal:
    lost = [c.name for c in plan.contrasts if not c.cells <= kept]
    if plan.factorial and not plan.factorial.keys() <= kept:
        lost.append("the attribution to single swaps")
    if plan.noise and not plan.noise.cells <= kept:
        lost.append(f"{plan.noise.name} (the noise floor)")
    return Proposal(
        cells=tuple(name for name in plan.cells if name in kept and name != plan.again),
        seeds=seeds,
        seconds=seconds,
        dropped=dropped,
        lost=tuple(lost),
    )
