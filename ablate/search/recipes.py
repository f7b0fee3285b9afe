"""Tunes the recipe of every cell of a plan with the same budget, before its seeds run.

A candidate that was tuned more than its reference wins by that alone (arXiv 1707.05589). So all
cells get as many trials, of one length, from the same tuning seeds, in one space, with the same
draws of the sampler, and the recipe as it was written is the first trial of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import optuna

from ablate.core.files import digest
from ablate.core.ledger import Ledger
from ablate.core.plan import Plan
from ablate.core.recipe import Recipe
from ablate.core.search_results import Outcome, SearchOutcomes, best
from ablate.core.trial import Trial
from ablate.search.engine import NothingFoundError, Subject, search, search_trials
from ablate.search.request import SearchSize
from ablate.search.retune import retune
from ablate.search.space import Space, spell, start, tuned
from blocks import Registry


def tune(
    plan: Plan,
    space: Space,
    budget: SearchSize,
    settings: Mapping[str, Any],
    ledger: Ledger,
    registry: Registry,
    run: Callable[[list[Trial]], None],
    tell: Callable[[SearchOutcomes], None],
) -> Plan | None:
    """Search and return the plan with a recipe for each cell, or None if interrupted.

    ``settings`` are those that the plan was made with. Raises `NothingFoundError` where all trials
    of a cell failed.
    """
    subjects = make_subjects(plan, space, budget, registry)
    outcomes_of = search(subjects, budget, ledger, run, tell)
    if outcomes_of is None:
        return None
    chosen = {name: _choose(name, outcomes) for name, outcomes in outcomes_of.items()}
    recipe = plan.stages[0].recipe
    recipes = {name: tuned(recipe, outcome.values) for name, outcome in chosen.items()}
    rows = {name: _row(chosen[name], outcomes_of[name], bool(subjects[0].start)) for name in chosen}
    return replace(retune(plan, recipes, settings, registry), tuned=rows)


def make_subjects(
    plan: Plan, space: Space, budget: SearchSize, registry: Registry
) -> list[Subject]:
    """Return a search per cell; an A/A cell has the recipe of the cell that it repeats."""
    stage = plan.stages[0]
    first = start(space, stage.recipe)
    subjects = []
    for name, cell in plan.cells.items():
        if name == plan.again:
            continue

        def trials_of(recipe: Recipe, name: str = name, cell: Any = cell) -> list[Trial]:
            return search_trials(name, cell, recipe, budget, stage.data_fingerprint, registry)

        def propose(trial: optuna.Trial, make: Any = trials_of) -> list[Trial]:
            values = {chosen.name: chosen.suggest(trial) for chosen in space}
            trials: list[Trial] = make(tuned(stage.recipe, values))
            return trials

        asked = [spell(space), first, budget.generation, budget.sampler]
        key = digest([[trial.key for trial in trials_of(stage.recipe)], asked])
        subjects.append(Subject(name=name, key=key, propose=propose, start=first))
    return subjects


def _choose(name: str, outcomes: Sequence[Outcome]) -> Outcome:
    chosen = best(outcomes)
    if chosen is None:
        raise NothingFoundError(
            f"all {len(outcomes)} search trials of cell {name!r} failed; the last one: "
            f"{outcomes[-1].reason}"
        )
    return chosen


def _row(chosen: Outcome, outcomes: Sequence[Outcome], has_start: bool) -> dict[str, Any]:
    """Return what a plan holds of a cell's search; ``first`` is the untuned recipe's loss."""
    return {
        "values": dict(chosen.values),
        "loss": chosen.loss,
        "number": chosen.number,
        "first": outcomes[0].loss if has_start else None,
        "trials": len(outcomes),
        "failed": sum(outcome.loss is None for outcome in outcomes),
    }
