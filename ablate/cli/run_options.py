"""What a study is asked for: the flags of `ablate run`, and the arguments of `ablate.run(...)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from ablate.cli.flags import command, flag
from ablate.cli.settings import parse_looks, parse_settings, split_names
from ablate.tracking import DEFAULT_STORE
from blocks.errors import UsageError

PROGRAM = ("python", "-m", "ablate.run")
SCHEDULING = "scheduling: changes no result (docs/cluster.md)"
SEARCH = "search before the seeds run (docs/search.md)"


@dataclass(frozen=True)
class RunOptions:
    """A study's grid and recipe, what is declared before it runs, and how it runs.

    Raises `UsageError` for what contradicts itself.
    """

    grid: str | None = flag(
        None, "smoke, paper, swaps, each, full or transplant; a search over blocks finds its own"
    )
    _: KW_ONLY
    size: str = flag("nano", "nano, tiny, small, base, large or giant (default nano)")
    seeds: int | None = flag(None, "how many (default: the grid's own, mostly 3)")
    first_seed: int = flag(
        0, "seeds from N on: new ones, after a study was looked at (default 0)", metavar="N"
    )
    set: Mapping[str, Any] = flag(
        {},
        "change a field of the recipe (lr=0.002) or of every cell (image.depth=4); repeatable",
        metavar="FIELD=VALUE",
        read=parse_settings,
    )
    match: str | None = flag(
        None,
        "what FFNs of all cells have in common: parameters (default), FLOPs, or inner width",
        choices=("params", "flops", "width"),
    )
    stages: str | None = flag(
        None,
        "what to train on in turn: embedded sets or sources (default: the grid's own)",
        metavar="pretrain,finetune:SET,...",
    )
    primary: str = flag("", "what the study is about (default: the grid's own)", metavar="CONTRAST")
    smallest_effect: float = flag(
        1.0, "smaller improvements are of no interest: equivalent (default 1)", metavar="PERCENT"
    )
    race: str | bool | None = flag(
        None,
        "a group-sequential design: add seeds from one interim look to the next, and stop cells "
        "early for efficacy or futility: of an improvement (improvements, the default) or of any "
        "verdict (verdicts)",
        choices=("improvements", "verdicts"),
        constant="improvements",
    )
    looks: Sequence[int] | None = flag(
        None,
        "numbers of seeds at interim looks; the last one is --seeds",
        metavar="3,5,8",
        read=parse_looks,
        separator=",",
    )
    asha: bool = flag(
        False,
        "stop the worse half of the trials at each evaluation on the validation split: "
        "exploratory, no verdicts",
    )
    noise_floor: bool | None = flag(
        None, "train the reference once more under other seeds (default: from 5 cells on)"
    )
    plugin: Sequence[str] = flag(
        [], "register the blocks of a file or module; repeatable", metavar="FILE_OR_MODULE",
        read=tuple,
    )  # fmt: skip
    cells: Sequence[str] = flag(
        [],
        "train these cells of the grid only",
        metavar="NAME,NAME,...",
        read=split_names,
        separator=",",
    )
    plan: bool = flag(
        False, "print what would run, how long it takes and what it can show, and stop"
    )
    budget: str | None = flag(
        None,
        "refuse a study that is predicted to take longer (2h, 90m, 1h30m), propose a smaller",
        metavar="TIME",
    )
    deviation: str = flag(
        "",
        "the standard deviation of improvements over seeds (default: as in this study so far)",
        metavar="PERCENT_OR_STUDY",
    )
    no_measure: bool = flag(
        False, "estimate times that are not known yet from FLOPs, instead of a few steps"
    )
    study: str | Path | None = flag(
        None, "the study's directory (default: studies/GRID-SIZE)", metavar="DIR"
    )
    mlflow: str = flag(
        DEFAULT_STORE, f"the store that runs are copied to (default {DEFAULT_STORE})", metavar="URI"
    )
    models: bool | None = flag(
        None, "copy trials' models to MLflow (default: those of at most 64 MiB)"
    )
    quiet: bool = flag(False, "print nothing but warnings, errors, and the report's path")
    json: bool = flag(False, "print an object a line, for programs")
    gpus_per_trial: float | None = flag(
        None,
        "0.25: four trials share a GPU; 4: a trial trains on four (default: by memory)",
        metavar="NUMBER",
        group=SCHEDULING,
    )
    cpus_per_trial: float | None = flag(
        None, "cores of a trial (default: so that none is idle)", metavar="NUMBER", group=SCHEDULING
    )
    workers_per_trial: int | None = flag(
        None,
        "processes that train one trial together (default: one per GPU)",
        metavar="NUMBER",
        group=SCHEDULING,
    )
    max_concurrent: int | None = flag(
        None, "trials side by side, at most", metavar="NUMBER", group=SCHEDULING
    )
    address: str = flag(
        "", "a running Ray cluster's, or auto", metavar="HOST:PORT", group=SCHEDULING
    )
    search: str | None = flag(
        None, "tune with equal budget for every cell", metavar="optuna", group=SEARCH
    )
    over: str | None = flag(
        None, "what is searched (default recipes)", metavar="recipes|blocks", group=SEARCH
    )
    search_trials: int | None = flag(
        None, "of each cell; over blocks: in all (default 16)", metavar="N", group=SEARCH
    )
    search_space: str | None = flag(
        None,
        "lr=1e-4..1e-2:log,weight_decay=0..0.3,batch=32|64 (default: around the recipe)",
        metavar="NAME=RANGE,...",
        group=SEARCH,
    )
    search_seeds: int | None = flag(
        None, "tuning seeds of each trial (default 1)", metavar="N", group=SEARCH
    )
    search_generation: int | None = flag(
        None, "trials asked for at a time (default 4)", metavar="N", group=SEARCH
    )
    search_keep: int | None = flag(
        None, "cells of a search over blocks that --seeds confirm (default 3)", metavar="K",
        group=SEARCH,
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Refuse outputs that contradict each other, and race as True or False means a choice."""
        if self.quiet and self.json:
            raise UsageError("--quiet and --json are two outputs; choose one")
        if isinstance(self.race, bool):
            object.__setattr__(self, "race", "improvements" if self.race else None)

    @property
    def output(self) -> str:
        """Return who reads what is printed: ``auto`` is a person or a log."""
        return "quiet" if self.quiet else "json" if self.json else "auto"

    @property
    def settings(self) -> dict[str, Any]:
        """Return the fields of recipe and cells that are set; ``--match`` is one of them."""
        match = {"*.ffn_match": self.match} if self.match else {}
        for name in match.keys() & self.set.keys():
            raise UsageError(f"--set {name!r} is given twice")
        return {**self.set, **match}

    @property
    def command(self) -> str:
        """Return the command line that asks for the same."""
        return command(PROGRAM, self)
