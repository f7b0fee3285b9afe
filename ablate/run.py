"""`python -m ablate.run`: plan, run or continue a study, and report."""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ablate import keywords
from ablate.files import is_disk_error
from ablate.grids import GRIDS
from ablate.launch import BAD_USAGE, DONE, INTERRUPTED, Launch, run_study
from ablate.ledger import Ledger
from ablate.planner import Declared, make_plan
from ablate.preview import describe
from ablate.resources import Scheduling
from ablate.tracking import DEFAULT_STORE, check_store
from ablate.workflow import parse_stages
from assemblies import SIZES
from blocks import UsageError, default_registry
from blocks.errors import Parser

if TYPE_CHECKING:
    from ablate.study import Study


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
    top.add_argument(
        "--primary", default="", metavar="CONTRAST", help="what the study is about (grid's own)"
    )
    top.add_argument(
        "--smallest-effect",
        type=float,
        default=1.0,
        metavar="PERCENT",
        help="improvements below it are of no interest: equivalent (default 1)",
    )
    top.add_argument(
        "--noise-floor",
        action=argparse.BooleanOptionalAction,
        help="train the reference once more under other seeds (default: with 5 cells and more)",
    )
    top.add_argument("--plugin", action="append", default=[], metavar="FILE_OR_MODULE")
    top.add_argument("--plan", action="store_true", help="print what would run, and stop")
    top.add_argument("--study", metavar="DIR", help="default: studies/GRID-SIZE")
    top.add_argument("--mlflow", default=DEFAULT_STORE, metavar="URI")
    output = top.add_mutually_exclusive_group()
    output.add_argument(
        "--quiet",
        dest="output",
        action="store_const",
        const="quiet",
        default="auto",  # argparse takes the first one's
        help="print nothing but warnings, errors, and the report's path",
    )
    output.add_argument(
        "--json",
        dest="output",
        action="store_const",
        const="json",
        help="print an object a line, for programs",
    )
    add_scheduling(top)
    return top


def add_scheduling(top: argparse.ArgumentParser) -> None:
    """Add what a trial gets of the machine, or of which cluster."""
    group = top.add_argument_group("scheduling", "changes no result; see docs/cluster.md")
    for flag, kind, words in (
        ("gpus", float, "0.25: four trials share a GPU; 4: a trial trains on four (by memory)"),
        ("cpus", float, "cores of a trial (default: so that none is idle)"),
        ("workers", int, "processes that train one trial together (default: one per GPU)"),
    ):
        group.add_argument(f"--{flag}-per-trial", type=kind, metavar="NUMBER", help=words)
    group.add_argument(
        "--max-concurrent", type=int, metavar="NUMBER", help="trials side by side, at most"
    )
    group.add_argument(
        "--address", default="", metavar="HOST:PORT", help="a running Ray cluster's, or auto"
    )


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


def make_console(output: str = "auto") -> Console:
    """Return a console as wide as the terminal, and wide enough for the tables in a log.

    It says nothing if the output is not for a person to read.
    """
    console = Console(quiet=output != "auto")
    return console if console.is_terminal else Console(width=200)


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
    directory = study_directory(options)
    check_store(options.mlflow)
    plugins: tuple[str, ...] = tuple(_absolute(plugin) for plugin in options.plugin)
    settings: Mapping[str, Any] = parse_settings(options.set)
    registry = default_registry(plugins)
    sources = None if options.stages is None else parse_stages(options.stages)
    scheduling = Scheduling(**{f.name: getattr(options, f.name) for f in fields(Scheduling)})
    declared = Declared(
        primary=options.primary,
        noise=options.noise_floor,
        smallest_effect=options.smallest_effect,
    )
    plan = make_plan(
        options.grid, options.size, options.seeds, settings, registry, sources, declared
    )
    console.print(describe(plan), highlight=False, markup=False)
    if options.plan:
        return DONE
    launch = Launch(
        arguments=tuple(options.arguments),
        plugins=plugins,
        mlflow=options.mlflow,
        output=options.output,
        scheduling=scheduling,
    )
    return run_study(plan, Ledger(directory), launch, console)


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


class _Command(ModuleType):
    """This module, which can be called: importing it binds its name in the package ``ablate``.

    So a function `ablate.run` would be hidden as soon as anything imports the module of that name.
    """

    def __call__(self, grid: str, **flags: Any) -> Study | None:
        """Run the command from Python and return the study; None after ``plan=True``.

        Arguments are named like the flags: ``seeds=6``, ``study="DIR"``, ``set={"lr": 0.002}``,
        ``plugin=["a.py"]``. Raises `UsageError` where the command exits with 2.
        """
        from ablate.study import Study

        top = parser()
        arguments = keywords.command_line(top, {"grid": grid, **flags})
        options = keywords.parse(top, arguments)
        options.arguments = arguments
        _main(options, make_console(options.output))
        return None if options.plan else Study.open(study_directory(options))


sys.modules[__name__].__class__ = _Command

if __name__ == "__main__":
    sys.exit(main())
