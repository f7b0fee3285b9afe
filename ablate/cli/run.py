"""`ablate run`: plan, run or continue a study, and report."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from ablate.cli.flags import from_command_line, to_command_line
from ablate.cli.run_options import RunOptions
from ablate.cli.search_options import read_request
from ablate.cli.stages import parse_stages
from ablate.core.grid import Design
from ablate.core.ledger import Ledger
from ablate.core.plan import Plan
from ablate.core.resources import ProbeConditions, Scheduling, choose_resources
from ablate.driver.console import make_console
from ablate.execution.ray_cluster import find_nodes, worker_environment
from ablate.planning.budget import Proposal, parse_duration
from ablate.planning.forecast import Forecast, forecast, known
from ablate.planning.plan_text import as_data, describe, describe_proposal
from ablate.planning.planner import StudyOptions, make_plan
from ablate.planning.prediction import StudyPrediction, largest_needs, predict_study
from ablate.search.request import (
    FOUND,
    Request,
    announce,
    as_tuned_before,
    base_grid,
    declare,
)
from ablate.stats.effects import FEWEST_SEEDS
from ablate.stats.race import IMPROVEMENTS
from ablate.stats.sequential import choose_looks
from ablate.tracking.mlflow_store import check_store
from blocks import Registry, UsageError, default_registry

DONE = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a command that asks for a study."""

    code: int
    """The exit code: 0 done, 1 some trials failed, 130 interrupted."""

    plan: Plan
    """What runs; a search that comes before may change it."""

    directory: Path
    """The study's."""


def main(options: argparse.Namespace) -> int:
    """Do what the command line says; return the exit code."""
    return carry_out(from_command_line(RunOptions, options)).code


def carry_out(options: RunOptions) -> Outcome:
    """Plan, run or continue what is asked for; raises `UsageError` where that cannot be."""
    console = make_console(options.output)
    request = read_request(options)
    ledger = Ledger(study_directory(options))
    check_store(options.mlflow)
    plugins: tuple[str, ...] = tuple(_absolute(plugin) for plugin in options.plugin)
    registry = default_registry(plugins)
    budget = None if options.budget is None else parse_duration(options.budget)
    conditions = probe_conditions(scheduling(options), plugins)
    over_blocks = request is not None and request.over == "blocks"
    with Console(stderr=True, quiet=options.output != "auto").status("planning"):
        plan = _plan(options, registry, base_grid if over_blocks else options.grid)
    # What is searched is declared before anything is trained, like the contrasts.
    plan = plan if request is None else declare(request, plan)
    ahead = as_tuned_before(plan, options.settings, ledger, registry)
    forecasts = _forecast(ahead, ledger, registry, conditions, options)
    prediction = predict_study(ahead, ledger, conditions, forecasts, options.deviation)
    refusal = _present(ahead, prediction, budget, options, console)
    code = DONE
    if not options.plan:
        if refusal:
            raise UsageError(refusal)
        code = _run(request, plan, ledger, registry, plugins, options, console, forecasts)
    return Outcome(code=code, plan=plan, directory=ledger.directory)


def _run(
    request: Request | None,
    plan: Plan,
    ledger: Ledger,
    registry: Registry,
    plugins: tuple[str, ...],
    options: RunOptions,
    console: Console,
    forecasts: Mapping[str, Forecast],
) -> int:
    """Run or continue the plan, after its search if it has one; return the exit code."""
    from ablate.driver.run_study import (  # with all that draws; a plan does without
        Launch,
        run_study,
    )

    launch = Launch(
        arguments=tuple(to_command_line(options)),
        plugins=plugins,
        mlflow=options.mlflow,
        models=options.models,
        output=options.output,
        scheduling=scheduling(options),
        **largest_needs(forecasts),
    )
    if request is None:
        return run_study(plan, ledger, launch, console)
    from ablate.driver.run_search import Searching, run_searched  # with Optuna

    searching = Searching(
        request=request,
        ledger=ledger,
        launch=launch,
        registry=registry,
        console=console,
        settings=options.settings,
        replan=functools.partial(_plan, options, registry),
        confirms=options.seeds is not None,
        confirming=lambda seeds: dataclasses.replace(options, seeds=options.seeds or seeds).command,
    )
    return run_searched(searching, plan)


def _plan(options: RunOptions, registry: Registry, grid: str | Design | None) -> Plan:
    """Return the plan that the options mean, of a grid by name or design."""
    assert grid is not None, "read_request refuses options without a grid"
    declared = StudyOptions(
        primary=options.primary,
        noise=options.noise_floor,
        smallest_effect=options.smallest_effect,
        first_seed=options.first_seed,
        aim=str(options.race or IMPROVEMENTS),
        looks=choose_looks(bool(options.race), options.looks, options.seeds),
        exploratory=options.asha,
        cells=tuple(options.cells),
    )
    sources = None if options.stages is None else parse_stages(options.stages)
    return make_plan(
        grid, options.size, options.seeds, options.settings, registry, sources, declared
    )


def _present(
    plan: Plan,
    prediction: StudyPrediction,
    budget: float | None,
    options: RunOptions,
    console: Console,
) -> str:
    """Print the plan, and a smaller one where it exceeds the budget; return why it may not run."""
    over = budget if budget is not None and prediction.seconds > budget else None
    proposal = None if over is None else prediction.propose(plan, over)
    command = "" if proposal is None else smaller(options, proposal).command
    if options.plan and options.output == "json":
        facts = as_data(plan, prediction) | {"budget": budget, "fits": over is None}
        facts["proposal"] = proposal and {**dataclasses.asdict(proposal), "command": command}
        print(json.dumps(facts))
    say = functools.partial(console.print, highlight=False, markup=False, soft_wrap=True)
    if plan.search:
        say(announce(plan))
    say(describe(plan, prediction))
    if over is None:
        return ""
    say(f"\n{describe_proposal(plan, prediction, over, proposal)}\n{command}")
    instead = f"this fits: {command}" if command else "no design of it fits"
    return f"the study is predicted to exceed --budget {options.budget}; {instead}"


def smaller(options: RunOptions, proposal: Proposal) -> RunOptions:
    """Return the options of a proposal: to be run, with its seeds and cells."""
    # Looks end with the seeds: those given no longer fit, and a race has usual ones of its own.
    changed = dataclasses.replace(options, plan=False, seeds=proposal.seeds, looks=None)
    if proposal.dropped:
        changed = dataclasses.replace(changed, cells=proposal.cells, noise_floor=False)
    if proposal.seeds <= FEWEST_SEEDS:  # there is no look before the last one
        changed = dataclasses.replace(changed, race=None)
    return changed


def _forecast(
    plan: Plan,
    ledger: Ledger,
    registry: Registry,
    conditions: ProbeConditions,
    options: RunOptions,
) -> dict[str, Forecast]:
    """Return forecasts: a run without a budget does not wait for any."""
    if not options.plan and options.budget is None:
        return known(plan, ledger, registry, conditions)
    console = Console(stderr=True, quiet=options.output != "auto")
    with console.status("") as status:

        def say(text: str) -> None:
            status.update(text) if console.is_terminal else console.print(text, highlight=False)

        measuring = not options.no_measure
        return forecast(plan, ledger, registry, conditions, measuring=measuring, say=say)


def scheduling(options: RunOptions) -> Scheduling:
    """Return what a trial asks of the machine; raises `UsageError` for what none could give."""
    names = [field.name for field in dataclasses.fields(Scheduling)]
    return Scheduling(**{name: getattr(options, name) for name in names})


def probe_conditions(asked: Scheduling, plugins: tuple[str, ...]) -> ProbeConditions:
    """Return how trials will run; raises `UsageError` for what the machine, or cluster, has not."""
    nodes = find_nodes(asked.address)
    resources = choose_resources(asked, nodes)
    return ProbeConditions(
        slots=resources.slots,
        threads=resources.threads,
        per_gpu=resources.per_gpu,
        plugins=plugins,
        environment=worker_environment(),
        asked=asked,
        nodes=nodes,
    )


def study_directory(options: RunOptions) -> Path:
    """Return the study's directory; raises `UsageError` where there can be none."""
    if options.study == "":
        raise UsageError("--study is empty; name a directory")
    directory = Path(options.study or f"studies/{options.grid or FOUND}-{options.size}")
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"--study {str(directory)!r} is a file; name a directory")
    return directory


def _absolute(plugin: str) -> str:
    """Return a plugin's file as an absolute path: workers run in other directories."""
    is_file = plugin.endswith(".py") or "/" in plugin
    return str(Path(plugin).expanduser().resolve()) if is_file else plugin
