"""`python -m ablate.run`: plan, run or continue a study, and report."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from ablate import progress
from ablate.files import read_json, write_json
from ablate.grids import GRIDS
from ablate.ledger import Ledger
from ablate.plan import Plan, describe, make_plan
from ablate.report import Report, make_report, write_report
from ablate.tracking import DEFAULT_STORE, Tracker, check_store
from ablate.trial import Trial, to_dict
from ablate.workflow import parse_stages
from assemblies import SIZES
from assemblies.config import to_dict as cell_to_dict
from blocks import UsageError, default_registry
from blocks.errors import Parser

DONE, SOME_FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = Parser(
        prog="python -m ablate.run",
        description="Plan, run or continue a study, and report. "
        "The same command again goes on where it stopped.",
        epilog="example: python -m ablate.run --grid full --seeds 5 --set lr=0.002 "
        "--plugin my_norm.py",
    )
    top.add_argument("--grid", required=True, help=", ".join(GRIDS))
    top.add_argument("--size", default="nano", help=f"{', '.join(SIZES)} (default nano)")
    top.add_argument("--seeds", type=int, help="how many (default: the grid's own, mostly 3)")
    top.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change a field of the recipe (lr=0.002) or of every cell (image.depth=4); repeatable",
    )
    top.add_argument(
        "--stages",
        metavar="pretrain,finetune:SET,...",
        help="what to train on in turn: embedded sets or sources (default: the grid's own)",
    )
    top.add_argument("--plugin", action="append", default=[], metavar="FILE_OR_MODULE")
    top.add_argument("--plan", action="store_true", help="print what would run, and stop")
    top.add_argument("--study", metavar="DIR", help="default: studies/GRID-SIZE")
    top.add_argument("--mlflow", default=DEFAULT_STORE, metavar="URI")
    top.add_argument("--gpus-per-trial", type=float, metavar="SHARE", help="default 1, if any")
    return top


def parse_settings(given: Sequence[str]) -> dict[str, Any]:
    """Return ``field=value`` texts as a mapping; values are Python literals, else text."""
    settings: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"--set {text!r}: write FIELD=VALUE, as in --set lr=0.002")
        if name in settings:
            raise UsageError(f"--set {name!r} is given twice")
        settings[name] = parse_value(value)
    return settings


def parse_value(text: str) -> Any:
    """Return a Python literal, a number such as inf, or else the text itself."""
    for read in (ast.literal_eval, float):
        try:
            return read(text)
        except (ValueError, SyntaxError):
            continue
    return text


class Watchers:
    """Passes what happens on to the terminal and to MLflow."""

    def __init__(self, bar: progress.ProgressWatcher, tracker: Tracker) -> None:
        self.bar, self.tracker = bar, tracker

    def started(self, trial: Trial) -> None:
        """A trial begins or goes on."""
        self.bar.started(trial)
        self.tracker.started(trial)

    def measured(self, trial: Trial, metrics: dict[str, float]) -> None:
        """A trial has new metrics."""
        self.bar.measured(trial, metrics)
        self.tracker.measured(trial, metrics)

    def finished(self, trial: Trial, metrics: dict[str, float]) -> None:
        """A trial has its result."""
        self.bar.finished(trial, metrics)
        self.tracker.finished(trial, metrics)

    def failed(self, trial: Trial, reason: str) -> None:
        """A trial has failed for good."""
        self.bar.failed(trial, reason)
        self.tracker.failed(trial, reason)


def run_study(
    plan: Plan,
    ledger: Ledger,
    *,
    plugins: tuple[str, ...],
    mlflow: str,
    gpus_per_trial: float | None,
    console: Console,
) -> int:
    """Run what is left of a plan, write the report, and return the exit code."""
    from ablate.execute import choose_resources, execute

    resources = choose_resources(gpus_per_trial)
    with ledger.locked():
        refuse_other_study(plan, ledger)
        if left_out := _left_out(plan, ledger):
            console.print(
                f"left out of the report, though this study has it: {', '.join(left_out)} "
                "(--stages names all sets of a study)",
                style="yellow",
                markup=False,
            )
        _write_study(plan, ledger)
        tracker = Tracker(
            plan, ledger, mlflow, lambda text: console.print(text, style="yellow", markup=False)
        )
        tracker.open()
        left = [trial for trial in plan.trials if ledger.result(trial) is None]
        done = len(plan.trials) - len(left)
        if done:
            console.print(f"{done} of {len(plan.trials)} trials are already in the ledger")
        with progress.ProgressWatcher(left, done=done, console=console) as bar:
            watchers = Watchers(bar, tracker)
            execute(left, ledger, plugins=plugins, resources=resources, watcher=watchers)
        report = make_report(plan, ledger)
        paths = write_report(report, plan, ledger)
        unfinished = [trial for trial in plan.trials if ledger.result(trial) is None]
        tracker.close(report.effects, paths, complete=not unfinished)
    if len(unfinished) < len(plan.trials):
        show(report, console)
    store = "" if mlflow == DEFAULT_STORE else f" --mlflow {mlflow}"
    where = f"\nreport: {paths[0]}\nMLflow: {mlflow} (python -m ablate.ui{store})"
    console.print(where, highlight=False, markup=False, soft_wrap=True)
    return _conclude(unfinished, ledger, console)


def _conclude(unfinished: Sequence[Trial], ledger: Ledger, console: Console) -> int:
    failed = [trial for trial in unfinished if ledger.failure(trial) is not None]
    if len(failed) < len(unfinished):
        console.print(
            f"stopped with {len(unfinished) - len(failed)} trials left; "
            "the same command goes on from here",
            style="yellow",
        )
        return INTERRUPTED
    if failed:
        console.print(
            f"{len(failed)} trial{'s' if len(failed) > 1 else ''} failed "
            f"(see {ledger.directory}/trials/*/error.txt); the same command tries them again",
            style="red",
        )
        return SOME_FAILED
    return DONE


def refuse_other_study(plan: Plan, ledger: Ledger) -> None:
    """Refuse a directory that holds another study, whose report would be overwritten."""
    known = read_json(ledger.directory / "study.json")
    if known is None:
        return
    now = {"grid": plan.grid.name, "size": plan.size, **dataclasses.asdict(plan.recipe)}
    before = {"grid": known["grid"], "size": known["size"], **known["recipe"]}
    later = {s.name: dataclasses.asdict(s.recipe) for s in plan.trials[0].stages[1:]}
    for stage, recipe in known.get("finetunings", {}).items():
        if stage in later:  # another set may be added, or left out, any time
            now |= {f"{stage} {k}": v for k, v in later[stage].items()}
            before |= {f"{stage} {k}": v for k, v in recipe.items()}
    changed = [f"{k}={before.get(k)!r}, now {v!r}" for k, v in now.items() if before.get(k) != v]
    if changed:
        raise UsageError(
            f"study {str(ledger.directory)!r} was run with {'; '.join(changed)}; "
            "give this one a directory of its own with --study"
        )


def _left_out(plan: Plan, ledger: Ledger) -> list[str]:
    """Return the fine-tunings that the study had when it last ran and the plan has not."""
    known = read_json(ledger.directory / "study.json") or {}
    now = {stage.name for stage in plan.trials[0].stages}
    return [name for name in known.get("finetunings", {}) if name not in now]


def _write_study(plan: Plan, ledger: Ledger) -> None:
    """Write what the study consists of, for people and later commands."""
    write_json(
        ledger.directory / "study.json",
        {
            "grid": plan.grid.name,
            "size": plan.size,
            "seeds": plan.seeds,
            "recipe": dataclasses.asdict(plan.recipe),
            "finetunings": {
                stage.name: dataclasses.asdict(stage.recipe) for stage in plan.trials[0].stages[1:]
            },
            "cells": {name: cell_to_dict(cell) for name, cell in plan.cells.items()},
            "costs": {name: dataclasses.asdict(price) for name, price in plan.costs.items()},
            "skipped": plan.skipped,
            "trials": {trial.label: to_dict(trial) for trial in plan.trials},
        },
    )


def show(report: Report, console: Console) -> None:
    """Print the report's summary and tables."""
    for table in report.tables:
        grid = RichTable(title=table.title, title_justify="left", box=None, pad_edge=False)
        for i, name in enumerate(table.header):
            grid.add_column(name, justify="left" if i == 0 else "right")
        for row in table.rows:
            grid.add_row(*(cell.replace("[", r"\[") for cell in row))
        console.print()
        console.print(grid)
    for note in report.notes:
        if note.startswith(("Skipped", "No result", "Data:")):
            console.print(note, highlight=False, markup=False)
    console.print()
    console.print(report.summary, highlight=False, markup=False)


def make_console() -> Console:
    """Return a console as wide as the terminal, and wide enough for the tables in a log."""
    console = Console()
    return console if console.is_terminal else Console(width=200)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 some failed, 2 bad usage."""
    options = parser().parse_args(arguments)
    console = make_console()
    try:
        return _main(options, console)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_USAGE
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED


def _main(options: argparse.Namespace, console: Console) -> int:
    directory = study_directory(options)
    check_store(options.mlflow)
    plugins: tuple[str, ...] = tuple(_absolute(plugin) for plugin in options.plugin)
    settings: Mapping[str, Any] = parse_settings(options.set)
    registry = default_registry(plugins)
    sources = None if options.stages is None else parse_stages(options.stages)
    plan = make_plan(options.grid, options.size, options.seeds, settings, registry, sources)
    console.print(describe(plan), highlight=False, markup=False)
    if options.plan:
        return DONE
    return run_study(
        plan,
        Ledger(directory),
        plugins=plugins,
        mlflow=options.mlflow,
        gpus_per_trial=options.gpus_per_trial,
        console=console,
    )


def study_directory(options: argparse.Namespace) -> Path:
    """Return the study's directory; raises `UsageError` where there can be none."""
    if options.study == "":
        raise UsageError("--study is empty; name a directory")
    directory = Path(options.study or f"studies/{options.grid}-{options.size}")
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"--study {str(directory)!r} is a file; name a directory")
    return directory


def _absolute(plugin: str) -> str:
    """Return a plugin's file as an absolute path: workers run in other directories."""
    is_file = plugin.endswith(".py") or "/" in plugin
    return str(Path(plugin).expanduser().resolve()) if is_file else plugin


if __name__ == "__main__":
    sys.exit(main())
