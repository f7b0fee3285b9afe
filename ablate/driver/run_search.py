"""What a command with `--search` does before its seeds run."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ablate.core.grid import Design
from ablate.core.ledger import Ledger
from ablate.core.metrics import METRICS, SELECTION
from ablate.core.plan import STUDY_FILE, Plan, read_plan
from ablate.core.provenance import launch_note
from ablate.core.search_results import (
    BASE_CELL,
    SEARCH_FILE,
    SearchOutcomes,
    best,
    ranking,
    write_outcomes,
)
from ablate.core.study_identity import refuse_other_study
from ablate.core.trial import Trial
from ablate.driver.console import warn
from ablate.driver.progress import JsonLines, Progress
from ablate.driver.run_study import DONE, INTERRUPTED, SOME_FAILED, Launch, run_study, tell_where
from ablate.execution.ray_cluster import session
from ablate.planning.plan_text import describe
from ablate.report.block_search import write_block_search
from ablate.search.blocks import (
    BlockSearch,
    found_grid,
    reached,
    search_blocks,
)
from ablate.search.engine import NothingFoundError
from ablate.search.recipes import tune
from ablate.search.request import Request
from ablate.tracking.tracker import Tracker
from assemblies import CoCa
from assemblies.construct import count_parameters
from blocks import Registry

LABEL = METRICS[SELECTION].label
MOST_NAMED = 6  # cells in a line


@dataclass(frozen=True, kw_only=True)
class Searching:
    """What a command's search is done with, beside its plan.

    ``settings`` are those that the plan was made with, ``replan`` makes a plan of another grid, and
    ``confirms`` is whether the best cells of a walk are to be trained from seeds of their own, and
    ``confirming`` gives the command that does so, with so many seeds.
    """

    request: Request
    ledger: Ledger
    launch: Launch
    registry: Registry
    console: Console
    settings: Mapping[str, Any]
    replan: Callable[[Design], Plan]
    confirms: bool
    confirming: Callable[[int], str]

    def say(self, text: str, style: str = "") -> None:
        """Print a line to a person."""
        self.console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def run_searched(searching: Searching, plan: Plan) -> int:
    """Search, then run the study, and return the exit code."""
    with session():
        return _run_searched(searching, plan)


def _run_searched(searching: Searching, plan: Plan) -> int:
    over_blocks = searching.request.over == "blocks"
    try:
        searched = (block_search_plan if over_blocks else tuned_plan)(searching, plan)
    except NothingFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return SOME_FAILED
    if searched is None:
        searching.say("stopped in a search; the same command goes on from here", style="yellow")
        return INTERRUPTED
    if over_blocks and not searching.confirms:
        propose(searched, searching)
        return DONE
    if over_blocks:
        searching.say(f"\n{describe(searched)}\n")
    return run_study(searched, searching.ledger, searching.launch, searching.console)


def tuned_plan(searching: Searching, plan: Plan) -> Plan | None:
    """Tune the recipe of every cell; return the plan with them, or None if interrupted."""
    request, ledger = searching.request, searching.ledger
    space = request.space_of(plan)
    with ledger.locked():
        refuse_other_study(plan, ledger)
        with running(searching, plan.searched) as (run, tell):
            tuned = tune(
                plan,
                space,
                request.budget,
                searching.settings,
                ledger,
                searching.registry,
                run,
                tell,
            )
    for cell, row in tuned.tuned.items() if tuned is not None else ():
        values = ", ".join(f"{name} {value:.4g}" for name, value in row["values"].items())
        searching.say(f"tuned {cell}: {values} (validation CoCa loss {row['loss']:.4f})")
    return tuned


def block_search_plan(searching: Searching, plan: Plan) -> Plan | None:
    """Walk through blocks and return the plan that confirms the best cells, or None if interrupted.

    The walk's report is in the study's folder ``search``; if no study follows, MLflow has the walk.
    """
    request, ledger, registry = searching.request, searching.ledger, searching.registry
    with ledger.locked():
        if (ledger.directory / STUDY_FILE).exists():  # its primary contrast is what the walk finds
            before = read_plan(ledger.directory).contrasts
            refuse_other_study(replace(plan, contrasts=before), ledger)
        with running(searching, frozenset()) as (run, tell):
            block_search = search_blocks(plan, request.budget, ledger, registry, run, tell)
        if block_search is None:
            return None
        design = functools.partial(found_grid, block_search.outcomes, request.keep)
        confirming = replace(searching.replan(design), search=plan.search)
        command = searching.confirming(confirming.seeds)
        parameters = _parameters(block_search, plan, registry)
        written = write_block_search(
            plan,
            block_search.outcomes,
            block_search.importances,
            parameters,
            command,
            ledger.directory,
        )
        if not searching.confirms:  # otherwise the study logs it
            log_block_search(plan, ledger, searching.launch, written)
    for outcome in ranking(block_search.outcomes)[: 2 * request.keep]:
        searching.say(f"{outcome.short}: validation CoCa loss {outcome.loss:.4f}: {outcome.cell}")
    searching.say("That is exploratory: one seed, and the luckiest of many.")
    if not searching.confirms:
        tell_where(written[0], searching.launch, searching.console)
    return confirming


def propose(plan: Plan, searching: Searching) -> None:
    """Print the command that confirms a walk, in the output asked for."""
    command = searching.confirming(plan.seeds)
    if searching.launch.output == "json":
        print(json.dumps({"event": "proposal", "cells": [*plan.cells], "command": command}))
    searching.say(f"to confirm the best cells on seeds that the walk has not seen:\n{command}")


def log_block_search(plan: Plan, ledger: Ledger, launch: Launch, paths: Sequence[Path]) -> None:
    """Write a walk that no study follows to MLflow: its trials and its report."""
    with Tracker(
        plan,
        ledger,
        launch.mlflow,
        warn,
        remedy="the same command again",  # `ablate.tracking.sync` takes studies
        note=launch_note(launch.arguments),
    ) as tracker:
        tracker.close([], paths, [])


def _parameters(block_search: BlockSearch, plan: Plan, registry: Registry) -> dict[str, int]:
    base, counted = plan.cells[BASE_CELL], {}
    for outcome in ranking(block_search.outcomes):
        with torch.device("meta"):
            model = CoCa(reached(outcome.values, base, registry), registry=registry)
        counted[outcome.cell] = count_parameters(model)
    return counted | {BASE_CELL: plan.costs[BASE_CELL].parameters}


@contextmanager
def running(
    searching: Searching, fields: frozenset[str]
) -> Iterator[tuple[Callable[[list[Trial]], None], Callable[[SearchOutcomes], None]]]:
    """Yield how a search trains trials, by the study's executor, and how it tells what it found.

    There is a record of it from the start, by which `ablate.cli.status` knows that it runs.
    """
    from ablate.execution.tune_runner import execute

    ledger, launch, budget = searching.ledger, searching.launch, searching.request.budget
    resources = launch.resources()
    progress = _progress(launch.output, fields, searching.console)
    if resources.note:
        warn(resources.note)
    if not (ledger.directory / SEARCH_FILE).exists():
        write_outcomes({}, ledger.directory)

    def run(trials: list[Trial]) -> None:
        execute(trials, ledger, plugins=launch.plugins, resources=resources, watchers=(progress,))

    def tell(outcomes: SearchOutcomes) -> None:
        write_outcomes(outcomes, ledger.directory)
        leading = [(name, best(trials)) for name, trials in outcomes.items()]
        words = [f"{name} {one.loss:.4f}" for name, one in leading if one is not None]
        more = f" and {len(words) - MOST_NAMED} more" if len(words) > MOST_NAMED else ""
        spent = max(len(trials) for trials in outcomes.values())
        searching.say(
            f"search: {spent} of {budget.trials} trials; lowest validation CoCa loss: "
            f"{', '.join(words[:MOST_NAMED]) or 'none yet'}{more}"
        )

    with progress:
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
        self._print(
            trial, f"validation {LABEL} {metrics[f'val/{SELECTION}']:.4f} ({seconds:.0f} s)"
        )

    def failed(self, trial: Trial, reason: str) -> None:
        """Print why a trial failed."""
        self._print(trial, f"FAILED: {reason.strip().splitlines()[-1]}", style="red")

    def _print(self, trial: Trial, text: str, style: str = "") -> None:
        values = [f" {name} {getattr(trial.recipe, name):.4g}" for name in self.fields]
        line = f"search: {trial.name}{','.join(values)}: {text}"
        self.console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)
