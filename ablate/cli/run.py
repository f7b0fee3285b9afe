"""`python -m ablate.run`: plan, run or continue a study, and report."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ablate.cli import keywords
from ablate.cli.console import make_console
from ablate.cli.options import (
    parse_stages,
    parser,
    read_scheduling,
    settings_of,
    smaller_command,
    split_names,
)
from ablate.core.files import is_disk_error
from ablate.core.grid import Design
from ablate.core.ledger import Ledger
from ablate.core.plan import STUDY_FILE, Plan
from ablate.core.resources import (
    ProbeConditions,
    Scheduling,
    choose_resources,
)
from ablate.execution.ray_cluster import find_nodes, worker_environment
from ablate.planning.budget import (
    parse_duration,
)
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
    read_request,
)
from ablate.stats.race import IMPROVEMENTS
from ablate.stats.sequential import choose_looks
from ablate.tracking.mlflow_store import check_store
from blocks import Registry, UsageError, default_registry

if TYPE_CHECKING:
    from ablate.report.study import Study

DONE, BAD_USAGE, INTERRUPTED = 0, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 some failed, 2 bad usage."""
    options = parser().parse_args(arguments)
    options.arguments = sys.argv[1:] if arguments is None else list(arguments)
    console = make_console(options.output)
    try:
        return _main(options, console)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_USAGE
    except OSError as error:
        if not is_disk_error(error):
            raise
        print(f"error: {error}; the same command goes on from here", file=sys.stderr)
        return BAD_USAGE
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED


def _main(options: argparse.Namespace, console: Console) -> int:
    request = read_request(options)
    ledger = Ledger(study_directory(options))
    check_store(options.mlflow)
    plugins: tuple[str, ...] = tuple(_absolute(plugin) for plugin in options.plugin)
    registry = default_registry(plugins)
    budget = None if options.budget is None else parse_duration(options.budget)
    conditions = probe_conditions(read_scheduling(options), plugins)
    walks = request is not None and request.over == "blocks"
    with Console(stderr=True, quiet=options.output != "auto").status("planning"):
        plan = _plan(options, registry, base_grid if walks else options.grid)
    plan = plan if request is None else declare(request, plan)
    ahead = as_tuned_before(plan, settings_of(options), ledger, registry)
    forecasts = _forecast(ahead, ledger, registry, conditions, options)
    prediction = predict_study(ahead, ledger, conditions, forecasts, options.deviation)
    refusal = _present(ahead, prediction, budget, options, console)
    if options.plan:
        return DONE
    if refusal:
        raise UsageError(refusal)
    return _run(request, plan, ledger, registry, plugins, options, console, forecasts)


def _run(
    request: Request | None,
    plan: Plan,
    ledger: Ledger,
    registry: Registry,
    plugins: tuple[str, ...],
    options: argparse.Namespace,
    console: Console,
    forecasts: Mapping[str, Forecast],
) -> int:
    """Run or continue the plan, after its search if it has one; return the exit code."""
    from ablate.cli.run_study import Launch, run_study  # with all that draws; a plan does without

    launch = Launch(
        arguments=tuple(options.arguments),
        plugins=plugins,
        mlflow=options.mlflow,
        models=options.models,
        output=options.output,
        scheduling=read_scheduling(options),
        **largest_needs(forecasts),
    )
    if request is None:
        return run_study(plan, ledger, launch, console)
    from ablate.cli.run_search import Searching, run_searched  # with Optuna

    searching = Searching(
        request=request,
        ledger=ledger,
        launch=launch,
        registry=registry,
        console=console,
        settings=settings_of(options),
        replan=functools.partial(_plan, options, registry),
        confirms=options.seeds is not None,
    )
    return run_searched(searching, plan)


def _plan(options: argparse.Namespace, registry: Registry, grid: str | Design) -> Plan:
    """Return the plan that the command means, of a grid by name or design."""
    declared = StudyOptions(
        primary=options.primary,
        noise=options.noise_floor,
        smallest_effect=options.smallest_effect,
        first_seed=options.first_seed,
        aim=options.race or IMPROVEMENTS,
        looks=choose_looks(bool(options.race), options.looks, options.seeds),
        exploratory=options.asha,
        cells=split_names(options.cells),
    )
    settings: Mapping[str, Any] = settings_of(options)
    sources = None if options.stages is None else parse_stages(options.stages)
    return make_plan(grid, options.size, options.seeds, settings, registry, sources, declared)


def _present(
    plan: Plan,
    prediction: StudyPrediction,
    budget: float | None,
    options: argparse.Namespace,
    console: Console,
) -> str:
    """Print the plan, and a smaller one where it exceeds the budget; return why it may not run."""
    over = budget if budget is not None and prediction.seconds > budget else None
    proposal = None if over is None else prediction.propose(plan, over)
    command = "" if proposal is None else smaller_command(options.arguments, proposal)
    if options.plan and options.output == "json":
        found = as_data(plan, prediction) | {"budget": budget, "fits": over is None}
        found["proposal"] = proposal and {**dataclasses.asdict(proposal), "command": command}
        print(json.dumps(found))
    say = functools.partial(console.print, highlight=False, markup=False, soft_wrap=True)
    if plan.search:
        say(announce(plan))
    say(describe(plan, prediction))
    if over is None:
        return ""
    say(f"\n{describe_proposal(plan, prediction, over, proposal)}\n{command}")
    instead = f"this fits: {command}" if command else "no design of it fits"
    return f"the study is predicted to exceed --budget {options.budget}; {instead}"


def _forecast(
    plan: Plan,
    ledger: Ledger,
    registry: Registry,
    conditions: ProbeConditions,
    options: argparse.Namespace,
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


def study_directory(options: argparse.Namespace) -> Path:
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


class _Command(ModuleType):
    """This module, which can be called: importing it binds its name in the package ``ablate``.

    So a function `ablate.run` would be hidden as soon as anything imports the module of that name.
    """

    def __call__(self, grid: str | None = None, **flags: Any) -> Study | None:
        """Run the command from Python and return the study; None where there is none yet.

        Arguments are named like the flags: ``seeds=6``, ``study="DIR"``, ``set={"lr": 0.002}``,
        ``plugin=["a.py"]``. Raises `UsageError` where the command exits with 2.
        """
        from ablate.report.study import Study

        top = parser()
        arguments = keywords.command_line(top, {"grid": grid, **flags})
        options = keywords.parse(top, arguments)
        options.arguments = arguments
        _main(options, make_console(options.output))
        directory = study_directory(options)
        ran = not options.plan and (directory / STUDY_FILE).exists()  # a walk alone is no study
        return Study.open(directory) if ran else None


sys.modules[__name__].__class__ = _Command

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what a batch system sends
    sys.exit(main())


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
