"""`--search`: its flags, and what a command with them does before its seeds run."""

from __future__ import annotations

import argparse
import functools
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.console import Console

from ablate.grids import Design
from ablate.launch import Launch, refuse_other_study
from ablate.ledger import Ledger
from ablate.plan import AGAIN, FILE, Plan, read_plan
from ablate.progress import JsonLines, Progress
from ablate.search import Budget
from ablate.search_blocks import (
    BASE,
    FOUND,
    Walked,
    base_grid,
    describe_walk,
    found_grid,
    reached,
    walk,
)
from ablate.search_outcomes import Found, best, ranking, write_found
from ablate.search_recipes import check_space, describe_search, tune
from ablate.search_report import write_walk
from ablate.search_space import Space, default_space, parse_space
from ablate.trial import Trial
from assemblies import CoCa
from assemblies.construct import count_parameters
from blocks import Registry, UsageError
from blocks.errors import unknown

METHODS, OVER = ("optuna",), ("recipes", "blocks")
KEEP = 3
MOST_NAMED = 6  # cells in a line
FLAGS = {
    "search_trials": "--search-trials",
    "search_space": "--search-space",
    "search_seeds": "--search-seeds",
    "search_generation": "--search-generation",
    "search_keep": "--search-keep",
    "over": "--over",
}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a command asks of a search: over what, how long, in which space, how many to keep."""

    over: str
    budget: Budget
    space: str | None = None
    keep: int = KEEP

    def space_of(self, plan: Plan) -> Space:
        """Return the space that recipes are searched in; raises `UsageError` where it is none."""
        recipe = plan.stages[0].recipe
        found = default_space(recipe) if self.space is None else parse_space(self.space, recipe)
        check_space(found, plan)
        return found


def add_flags(top: argparse.ArgumentParser) -> None:
    """Add the flags of searches to a command line."""
    group = top.add_argument_group("search before the seeds run (docs/search.md)")
    group.add_argument("--search", metavar="optuna", help="tune with equal budget for every cell")
    group.add_argument(
        "--over", metavar="recipes|blocks", help="what is searched (default recipes)"
    )
    group.add_argument(
        "--search-trials", type=int, metavar="N", help="of each cell, of a walk in all (default 16)"
    )
    group.add_argument(
        "--search-space",
        metavar="NAME=RANGE,...",
        help="lr=1e-4..1e-2:log,weight_decay=0..0.3,batch=32|64 (default: around the recipe)",
    )
    group.add_argument(
        "--search-seeds", type=int, metavar="N", help="tuning seeds of each trial (default 1)"
    )
    group.add_argument(
        "--search-generation", type=int, metavar="N", help="trials asked for at a time (default 4)"
    )
    group.add_argument(
        "--search-keep",
        type=int,
        metavar="K",
        help=f"cells of a walk that --seeds confirm (default {KEEP})",
    )


def read_request(options: argparse.Namespace) -> Request | None:
    """Return what the command asks of a search, or None; raises `UsageError` for contradictions."""
    given = {name: getattr(options, name) for name in FLAGS if getattr(options, name) is not None}
    if options.search is None:
        if given:
            raise UsageError(f"{FLAGS[next(iter(given))]} does nothing without --search optuna")
        return None
    if options.search not in METHODS:
        raise unknown("search", options.search, METHODS)
    over = given.get("over", OVER[0])
    if over not in OVER:
        raise unknown("thing to search over", over, OVER)
    other = "search_space" if over == "blocks" else "search_keep"
    if other in given:
        raise UsageError(f"{FLAGS[other]} does nothing with --over {over}")
    if over == "blocks" and options.grid not in (None, FOUND):
        raise UsageError(f"--over blocks finds its own grid: leave --grid {options.grid} out")
    if not (keep := given.get("search_keep", KEEP)) >= 1:
        raise UsageError(f"--search-keep must be at least 1, got {keep}")
    names = ("trials", "seeds", "generation")
    wanted = {name: given[f"search_{name}"] for name in names if f"search_{name}" in given}
    return Request(over=over, budget=Budget(**wanted), space=given.get("search_space"), keep=keep)


def grid_of(request: Request | None, grid: str | None) -> str | Design:
    """Return the grid that a command plans; a walk starts from its base alone."""
    if request is not None and request.over == "blocks":
        return base_grid
    if grid is None:
        raise UsageError("--grid is missing; only --search optuna --over blocks goes without")
    return grid


def declare(request: Request, plan: Plan) -> Plan:
    """Return the plan with the search that it declares."""
    if request.over == "blocks":
        return replace(plan, search=describe_walk(request.budget, request.keep))
    space = request.space_of(plan)
    return replace(plan, search=describe_search(space, request.budget, plan.stages[0].recipe))


def announce(plan: Plan) -> str:
    """Return in a line what a search will train."""
    search, steps = plan.search, plan.stages[0].recipe.steps
    each, seeds = search["trials"], len(search["seeds"])
    if search["over"] == "blocks":
        return f"first a walk of {each * seeds} trainings of {steps} steps through blocks"
    cells = sum(not name.endswith(AGAIN) for name in plan.costs)
    return (
        f"first {cells * each * seeds} trainings of {steps} steps, {each * seeds} for each of "
        f"{cells} cells, tune {search['space']}"
    )


def tuned_plan(
    request: Request,
    plan: Plan,
    settings: Mapping[str, Any],
    ledger: Ledger,
    launch: Launch,
    registry: Registry,
    console: Console,
) -> Plan | None:
    """Tune the recipe of every cell; return the plan with them, or None if interrupted."""
    space = request.space_of(plan)
    with ledger.locked():
        refuse_other_study(plan, ledger)
        with _running(ledger, launch, console, request.budget, plan.searched) as (run, tell):
            found = tune(plan, space, request.budget, settings, ledger, registry, run, tell)
    if found is not None:
        for cell, row in found.tuned.items():
            values = ", ".join(f"{name} {value:.4g}" for name, value in row["values"].items())
            line = f"tuned {cell}: {values} (validation CoCa loss {row['loss']:.4f})"
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    return found


def walked_plan(
    request: Request,
    plan: Plan,
    replan: Callable[[Design], Plan],
    ledger: Ledger,
    launch: Launch,
    registry: Registry,
    console: Console,
) -> Plan | None:
    """Walk through blocks and return the plan that confirms the best cells, or None if interrupted.

    The walk's report is in the study's folder ``search``.
    """
    with ledger.locked():
        if (ledger.directory / FILE).exists():  # its primary contrast is what the walk finds
            before = read_plan(ledger.directory).contrasts
            refuse_other_study(replace(plan, contrasts=before), ledger)
        with _running(ledger, launch, console, request.budget, frozenset()) as (run, tell):
            found = walk(plan, request.budget, ledger, registry, run, tell)
        if found is None:
            return None
        design = functools.partial(found_grid, found.outcomes, request.keep)
        confirming = replace(replan(design), search=plan.search)
        command = confirming_command(launch.arguments, confirming.seeds)
        parameters = _parameters(found, plan, registry)
        written = write_walk(
            plan, found.outcomes, found.importances, parameters, command, ledger.directory
        )
    for rank, outcome in enumerate(ranking(found.outcomes)[: 2 * request.keep], start=1):
        line = f"{rank:3}  validation CoCa loss {outcome.loss:.4f}  {outcome.cell}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"walk, exploratory: {written[0]}", highlight=False, markup=False, soft_wrap=True)
    return confirming


def confirming_command(arguments: Sequence[str], seeds: int) -> str:
    """Return the command that runs a walk's best cells on seeds of their own."""
    given = any(word == "--seeds" or word.startswith("--seeds=") for word in arguments)
    more = () if given else ("--seeds", str(seeds))
    return shlex.join(["python", "-m", "ablate.run", *arguments, *more])


def _parameters(found: Walked, plan: Plan, registry: Registry) -> dict[str, int]:
    base, counted = plan.cells[BASE], {}
    for outcome in ranking(found.outcomes):
        with torch.device("meta"):
            model = CoCa(reached(outcome.values, base, registry), registry=registry)
        counted[outcome.cell] = count_parameters(model)
    return counted | {BASE: plan.costs[BASE].parameters}


@contextmanager
def _running(
    ledger: Ledger, launch: Launch, console: Console, budget: Budget, fields: frozenset[str]
) -> Iterator[tuple[Callable[[list[Trial]], None], Callable[[Found], None]]]:
    """Yield how a search trains trials, by the study's executor, and how it tells what it found."""
    from ablate.execute import choose_resources, execute

    resources = choose_resources(launch.gpus_per_trial)
    shown = _progress(launch.output, fields, console)

    def run(trials: list[Trial]) -> None:
        execute(trials, ledger, plugins=launch.plugins, resources=resources, watcher=shown)

    def tell(found: Found) -> None:
        write_found(found, ledger.directory)
        leading = [(name, best(own)) for name, own in found.items()]
        words = [f"{name} {one.loss:.4f}" for name, one in leading if one is not None]
        more = f" and {len(words) - MOST_NAMED} more" if len(words) > MOST_NAMED else ""
        spent = max(len(own) for own in found.values())
        console.print(
            f"search: {spent} of {budget.trials} trials; lowest validation CoCa loss: "
            f"{', '.join(words[:MOST_NAMED]) or 'none yet'}{more}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    with shown:
        yield run, tell


def _progress(output: str, fields: frozenset[str], console: Console) -> Progress:
    if output == "json":
        return JsonLines([], {})
    return SearchLines(fields, console)


class SearchLines(Progress):
    """A line for each search trial that ends, with the values that it tried."""

    def __init__(self, fields: frozenset[str], console: Console) -> None:
        super().__init__([], {})
        self.fields, self.console = sorted(fields), console

    def finished(self, trial: Trial, metrics: dict[str, float]) -> None:
        """Print a trial's best validation loss."""
        seconds = metrics["train_seconds"]
        self._print(trial, f"validation CoCa loss {metrics['val/coca']:.4f} ({seconds:.0f} s)")

    def failed(self, trial: Trial, reason: str) -> None:
        """Print why a trial failed."""
        self._print(trial, f"FAILED: {reason.strip().splitlines()[-1]}", style="red")

    def _print(self, trial: Trial, text: str, style: str = "") -> None:
        values = [f" {name} {getattr(trial.recipe, name):.4g}" for name in self.fields]
        line = f"search: {trial.name}{','.join(values)}: {text}"
        self.console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)
