"""What is asked of a search, and how a plan declares it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ablate.core.grid import Grid
from ablate.core.ledger import Ledger
from ablate.core.plan import STUDY_FILE, Plan, read_plan
from ablate.core.recipe import Recipe, loss_weights
from ablate.core.search_results import BASE_CELL
from ablate.core.trial import MAX_SEEDS, TUNING
from ablate.data.batches import TrainBatches
from ablate.data.dataset import open_dataset
from ablate.search.retune import retune
from ablate.search.space import Space, default_space, parse_space, searched_fields, spell, tuned
from assemblies import CoCaConfig
from blocks import Registry, UsageError

FIRST_SEED = TUNING * MAX_SEEDS  # behind the streams of every study and of its A/A cells
FOUND = "found"  # the grid of the cells that a walk has found
METHODS, OVER = ("optuna",), ("recipes", "blocks")
KEEP = 3


@dataclass(frozen=True, kw_only=True)
class SearchSize:
    """What every search of a study gets alike.

    ``trials`` are trained from each of ``seeds`` seeds, and a trial's value is the mean of its best
    validation losses. ``generation`` trials are asked for at a time. ``sampler`` is the seed of
    Optuna's draws.
    """

    trials: int = 16
    seeds: int = 1
    generation: int = 4
    sampler: int = 0

    def __post_init__(self) -> None:
        """Refuse budgets that are none."""
        for name in ("trials", "seeds", "generation"):
            if not 1 <= (count := getattr(self, name)) <= MAX_SEEDS:
                raise UsageError(f"--search-{name} must be from 1 to {MAX_SEEDS}, got {count}")

    @property
    def described(self) -> dict[str, Any]:
        """Return the budget as a plan holds it."""
        return {**asdict(self), "seeds": self.tuning_seeds}

    @property
    def tuning_seeds(self) -> list[int]:
        """Return the seeds that search trials are trained from, which no study has."""
        return [FIRST_SEED + i for i in range(self.seeds)]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a command asks of a search: over what, how long, in which space, how many to keep."""

    over: str
    budget: SearchSize
    space: str | None = None
    keep: int = KEEP

    def space_of(self, plan: Plan) -> Space:
        """Return the space that recipes are searched in; raises `UsageError` where it is none."""
        recipe = plan.stages[0].recipe
        return default_space(recipe) if self.space is None else parse_space(self.space, recipe)


def base_grid(cells: Mapping[str, CoCaConfig], registry: Registry) -> Grid:
    """Return the grid that a walk starts from: its base alone."""
    return Grid(name=FOUND, summary="where a walk starts", cells={BASE_CELL: cells[BASE_CELL]})


def declare(request: Request, plan: Plan) -> Plan:
    """Return the plan with the search that it declares."""
    if request.over == "blocks":
        return replace(plan, search=describe_block_search(request.budget, request.keep))
    space = request.space_of(plan)
    check_space(space, plan)
    return replace(plan, search=describe_search(space, request.budget, plan.stages[0].recipe))


def describe_search(space: Space, budget: SearchSize, recipe: Recipe) -> dict[str, Any]:
    """Return what is declared of a search, as a plan holds it."""
    return {
        "over": "recipes",
        "space": spell(space),
        "fields": sorted(searched_fields(space)),
        "recipe": {name: getattr(recipe, name) for name in sorted(searched_fields(space))},
        **budget.described,
    }


def describe_block_search(budget: SearchSize, keep: int) -> dict[str, Any]:
    """Return what is declared of a walk, as the plan that confirms it holds it."""
    return {"over": "blocks", "keep": keep, **budget.described}


def check_space(space: Space, plan: Plan) -> None:
    """Raise `UsageError` where a cell could not be trained with some values of the space."""
    recipe = plan.stages[0].recipe
    corners = [tuned(recipe, {chosen.name: end}) for chosen in space for end in chosen.ends]
    for cell, corner in itertools.product(plan.cells.values(), corners):
        loss_weights(cell, corner)
    largest = max(corners, key=lambda corner: corner.batch)
    if largest.batch > recipe.batch:
        data = open_dataset(recipe, next(iter(plan.cells.values())))
        TrainBatches(data.splits["train"], largest, seed=0)


def as_tuned_before(
    plan: Plan, settings: Mapping[str, Any], ledger: Ledger, registry: Registry
) -> Plan:
    """Return the plan with the recipes that an earlier launch of it has tuned, to look ahead by."""
    if not plan.searched or not (ledger.directory / STUDY_FILE).exists():
        return plan
    before = read_plan(ledger.directory)
    cells = {name for name in plan.costs if name != plan.again}
    if before.search != plan.search or not cells <= before.tuned.keys():
        return plan
    recipe = plan.stages[0].recipe
    recipes = {name: tuned(recipe, before.tuned[name]["values"]) for name in cells}
    return retune(plan, recipes, settings, registry)


def announce(plan: Plan) -> str:
    """Return in a line what a search will train."""
    search, steps = plan.search, plan.stages[0].recipe.steps
    each, seeds = search["trials"], len(search["seeds"])
    if search["over"] == "blocks":
        return f"first a walk of {each * seeds} trainings of {steps} steps through blocks"
    cells = sum(name != plan.again for name in plan.costs)
    return (
        f"first {cells * each * seeds} trainings of {steps} steps, {each * seeds} for each of "
        f"{cells} cells, tune {search['space']}"
    )
