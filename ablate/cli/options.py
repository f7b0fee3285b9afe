"""The command line of `ablate.run`: read, and written anew for a smaller study."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import re
import shlex
from collections.abc import Sequence
from typing import Any, get_args

from ablate.core.grids import GRIDS
from ablate.core.resources import Scheduling
from ablate.core.trial import FINETUNE, PRETRAIN
from ablate.data.sources import SCHEMES, embedded_names
from ablate.planning.budget import Proposal
from ablate.search.request import add_flags
from ablate.stats.effects import FEWEST_SEEDS
from ablate.stats.race import AIMS, IMPROVEMENTS
from ablate.tracking.mlflow_store import DEFAULT_STORE
from assemblies import SIZES
from assemblies.config import Match
from blocks import UsageError
from blocks.errors import Parser, unknown

MATCH = "*.ffn_match"  # the field of all towers that --match sets


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = Parser(
        prog="python -m ablate.run",
        description="Plan, run or continue a study, and report. "
        "The same command again goes on where it stopped.",
        epilog="example: python -m ablate.run --grid full --seeds 5 --set lr=0.002 "
        "--plugin my_norm.py",
    )
    top.add_argument("--grid", help=f"{', '.join(GRIDS)}; a walk over blocks finds its own")
    top.add_argument("--size", default="nano", help=f"{', '.join(SIZES)} (default nano)")
    top.add_argument("--seeds", type=int, help="how many (default: the grid's own, mostly 3)")
    top.add_argument(
        "--first-seed",
        type=int,
        default=0,
        metavar="N",
        help="seeds from N on: a study with new ones after another was looked at (default 0)",
    )
    top.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change a field of the recipe (lr=0.002) or of every cell (image.depth=4); repeatable",
    )
    top.add_argument(
        "--match",
        choices=get_args(Match),
        help="what FFNs of all cells have in common: parameters (default), FLOPs, or inner width",
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
        "--race",
        nargs="?",
        const=IMPROVEMENTS,
        choices=AIMS,
        help="add seeds look by look and drop, on the way, cells that are decided, or hopeless: "
        "hardly to be found improved (improvements, the default) or to have a verdict (verdicts)",
    )
    top.add_argument(
        "--looks", metavar="3,5,8", help="numbers of seeds at which a race decides; --seeds is last"
    )
    top.add_argument(
        "--asha",
        action="store_true",
        help="stop the worse half of the trials at each look at the validation split: exploratory, "
        "no verdicts",
    )
    top.add_argument(
        "--noise-floor",
        action=argparse.BooleanOptionalAction,
        help="train the reference once more under other seeds (default: with 5 cells and more)",
    )
    top.add_argument("--plugin", action="append", default=[], metavar="FILE_OR_MODULE")
    top.add_argument(
        "--cells", default="", metavar="NAME,NAME,...", help="train these cells of the grid only"
    )
    top.add_argument(
        "--plan",
        action="store_true",
        help="print what would run, how long it takes and what it can show, and stop",
    )
    top.add_argument(
        "--budget",
        metavar="TIME",
        help="refuse a study that is predicted to take longer (2h, 90m, 1h30m), propose a smaller",
    )
    top.add_argument(
        "--deviation",
        default="",
        metavar="PERCENT_OR_STUDY",
        help="how much improvements vary from seed to seed (default: as in this study so far)",
    )
    top.add_argument(
        "--no-measure",
        action="store_true",
        help="estimate times that are not known yet from FLOPs, instead of a few steps",
    )
    top.add_argument("--study", metavar="DIR", help="default: studies/GRID-SIZE")
    add_store(top)
    output = top.add_mutually_exclusive_group()
    output.add_argument(
        "--quiet",
        dest="output",
        action="store_const",
        const="quiet",
        default="auto",  # argparse takes that of the first one
        help="print nothing but warnings, errors, and the report's path",
    )
    output.add_argument(
        "--json",
        dest="output",
        action="store_const",
        const="json",
        default="auto",
        help="print an object a line, for programs",
    )
    add_scheduling(top)
    add_flags(top)
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


def read_scheduling(options: argparse.Namespace) -> Scheduling:
    """Return what those flags ask for; raises `UsageError` for what no machine could give."""
    names = [field.name for field in dataclasses.fields(Scheduling)]
    return Scheduling(**{name: getattr(options, name) for name in names})


def add_store(top: argparse.ArgumentParser) -> None:
    """Add the flags that say which MLflow store is written to, and what of."""
    top.add_argument("--mlflow", default=DEFAULT_STORE, metavar="URI")
    top.add_argument(
        "--models",
        action=argparse.BooleanOptionalAction,
        help="copy trials' models to MLflow (default: those of at most 64 MiB)",
    )


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the fields that a command sets; ``--match`` is one of them."""
    match = [f"{MATCH}={options.match}"] if options.match else []
    return parse_settings([*options.set, *match])


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


def split_names(text: str) -> tuple[str, ...]:
    """Return names given with commas between them; those in parentheses belong to a name."""
    names = [name.strip() for name in re.split(r",(?![^()]*\))", text)]
    return tuple(name for name in names if name)


def smaller_command(arguments: Sequence[str], proposal: Proposal) -> str:
    """Return the command with a proposal's seeds and cells instead of its own, to be run."""
    # Looks end with the seeds: those given no longer fit, and a race has usual ones of its own.
    changed, added = {"--plan": 0, "--seeds": 1, "--looks": 1}, ["--seeds", str(proposal.seeds)]
    if proposal.dropped:
        changed |= {"--cells": 1, "--noise-floor": 0, "--no-noise-floor": 0}
        added += ["--cells", ",".join(proposal.cells), "--no-noise-floor"]
    if proposal.seeds <= FEWEST_SEEDS:
        changed["--race"] = 0  # there is no look before the last one
    kept: list[str] = []
    left = [*arguments]
    while left:
        argument = left.pop(0)
        name, equals, _ = argument.partition("=")
        # argparse takes any beginning of an option that no other option has.
        full = [option for option in changed if len(name) > 2 and option.startswith(name)]
        if not full:
            kept.append(argument)
        elif not equals and (changed[full[0]] or (full == ["--race"] and {*left[:1]} & {*AIMS})):
            left.pop(0)
    return shlex.join(["python", "-m", "ablate.run", *kept, *added])


def parse_stages(text: str) -> tuple[str, ...]:
    """Return the stages that ``pretrain,finetune:icons,tiles`` names, a URI to each fine-tuning.

    A set is an embedded one's name or a source (docs/data.md), which may hold commas.
    """
    first, *rest = text.split(",")
    if first.strip() != PRETRAIN:
        raise UsageError(f"--stages must begin with {PRETRAIN}, got {first.strip()!r}")
    if rest and not rest[0].strip().startswith(FINETUNE):
        raise UsageError(
            f"--stages {text!r}: after {PRETRAIN} comes finetune:SET,SET,..., got {rest[0]!r}"
        )
    sources: list[str] = []
    for part in (piece.strip().removeprefix(FINETUNE) for piece in rest):
        if part in embedded_names():
            sources.append(f"embedded:{part}")
        elif part.partition(":")[0] in SCHEMES and ":" in part:
            sources.append(part)
        elif sources and not sources[-1].startswith("embedded:"):
            sources[-1] += f",{part}"  # a comma inside a source, as in coco:IMAGES,FILE
        else:
            raise unknown("embedded data set or source", part, [*embedded_names(), *SCHEMES])
    return tuple(sources)
