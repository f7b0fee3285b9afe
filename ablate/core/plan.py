"""What a study consists of: its plan, which `study.json` holds in full.

Everything that looks at a study later (report, status, bundle, notebooks) reads the plan from there
and needs neither the data nor the plugins again.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ablate.core.files import read_json, write_json
from ablate.core.grid import Contrast
from ablate.core.metrics import DECIDES, METRICS, compared
from ablate.core.stored import from_json
from ablate.core.trial import Stage, Trial, to_dict
from assemblies import CoCaConfig, Cost
from blocks import UsageError
from blocks.errors import unknown

STUDY_FILE = "study.json"
MATCHES = {"params": "parameters", "flops": "FLOPs", "width": "inner width"}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything about a study but its results."""

    grid: str
    """The grid's name."""

    summary: str
    """What the grid is, in a line."""

    size: str
    """The size that cells and recipe are of."""

    seeds: int
    """How many seeds every cell has; with interim looks, at most."""

    first_seed: int = 0
    """The seed that the others follow: above 0 where earlier ones have been looked at."""

    trials: list[Trial]
    """All that is trained, seed by seed: a study that is stopped early is still balanced."""

    costs: dict[str, Cost]
    """What each cell costs, in the grid's order; the A/A cell is last."""

    contrasts: tuple[Contrast, ...]
    """What is compared, at most one of them primary; p is adjusted for all of them."""

    noise: Contrast | None = None
    """The A/A contrast, if there is one: the reference against itself under other seeds."""

    factorial: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The swaps in each cell of a full factorial, if the grid holds one."""

    skipped: dict[str, str] = field(default_factory=dict)
    """Why a cell of the grid cannot be built, by cell."""

    same: dict[str, str] = field(default_factory=dict)
    """The earlier cell that a cell turned out to equal, by cell."""

    dropped: dict[str, str] = field(default_factory=dict)
    """What a contrast lacks that was left out for it, by contrast."""

    data_skipped: dict[str, int] = field(default_factory=dict)
    """How many pairs of the data are unusable, by reason."""

    references: dict[str, dict[str, float]] = field(default_factory=dict)
    """What an untrained model would get on the test split, by stage and metric."""

    blocks: dict[str, str] = field(default_factory=dict)
    """The hash of the source of every block in use, by kind and spelling."""

    code: str = ""
    """The hash of the code that assembles and trains."""

    decides: str = DECIDES
    """The metric that verdicts go by, one of `METRICS`."""

    smallest_effect: float = 1.0
    """The improvement in percent below which a difference is of no interest."""

    looks: tuple[int, ...] = ()
    """The numbers of seeds at interim looks, of a group-sequential study; none otherwise."""

    aim: str = "improvements"
    """What interim looks go on for: ``improvements``, or any ``verdicts``."""

    exploratory: bool = False
    """Whether trials are stopped early by ASHA; then there are no verdicts."""

    search: Mapping[str, Any] = field(default_factory=dict)
    """What is declared of a search before the seeds run, if there is one."""

    tuned: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The recipe that the search found, by cell (`ablate.search.recipes`)."""

    def __post_init__(self) -> None:
        """Refuse a metric that verdicts cannot go by."""
        if self.decides not in METRICS or not METRICS[self.decides].compared:
            raise unknown("metric to decide by", self.decides, [m.key for m in compared()])

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Return the stages that every trial has; fields of ``searched`` may differ by cell."""
        return self.trials[0].stages if self.trials else ()

    @property
    def searched(self) -> frozenset[str]:
        """Return the fields of recipes that a search has chosen for each cell by itself."""
        return frozenset(self.search.get("fields", ()))

    @functools.cached_property
    def cells(self) -> dict[str, CoCaConfig]:
        """Return the cells that are trained, by name."""
        return {trial.name: trial.cell for trial in self.trials}

    @property
    def primary(self) -> Contrast | None:
        """Return the contrast that the study was declared to be about."""
        return next((contrast for contrast in self.contrasts if contrast.primary), None)

    @property
    def reference(self) -> str:
        """Return the cell that others are compared with: the primary contrast's, or the first."""
        return self.primary.pairs[0][0] if self.primary else next(iter(self.costs))

    def beyond_reference(self, name: str) -> tuple[float, float]:
        """Return how many percent more parameters and FLOPs a cell has than the reference."""
        cell, base = self.costs[name], self.costs[self.reference]
        pairs = (cell.parameters, base.parameters), (cell.step_flops, base.step_flops)
        more, flops = (100 * (ours / theirs - 1) for ours, theirs in pairs)
        return more, flops

    @property
    def matching(self) -> str:
        """Return in words in what the FFNs of cells are as large as the reference's."""
        towers = self.cells[self.reference].towers() if self.cells else ()
        by_tower = {name: MATCHES[tower.ffn_match] for name, tower in towers}
        if len(set(by_tower.values())) == 1:
            return next(iter(by_tower.values()))
        return ", ".join(f"{words} ({name})" for name, words in by_tower.items())

    @property
    def start_words(self) -> str:
        """Return, after a comma, from which seed on the study goes, or nothing if from 0."""
        return f", from seed {self.first_seed} on" if self.first_seed else ""

    @property
    def again(self) -> str:
        """Return the name of the A/A cell, or nothing without one."""
        return self.noise.pairs[0][1] if self.noise else ""

    def original(self, name: str) -> str:
        """Return the cell that a cell repeats: of the A/A cell the reference, else itself."""
        return self.noise.pairs[0][0] if self.noise and name == self.again else name

    def place(self, trial: Trial) -> int:
        """Return which of the study's seeds a trial has, counting from 0."""
        return trial.seed - self.first_seed

    def of_cell(self, name: str) -> list[Trial]:
        """Return a cell's trials, one per seed."""
        return [trial for trial in self.trials if trial.name == name]


def write_plan(plan: Plan, directory: Path, launch: Mapping[str, Any]) -> None:
    """Write the plan into a study's directory, with a note of this launch and earlier ones."""
    data = {f.name: getattr(plan, f.name) for f in dataclasses.fields(plan)}
    data |= {
        "trials": [to_dict(trial) for trial in plan.trials],
        "costs": {name: dataclasses.asdict(price) for name, price in plan.costs.items()},
        "contrasts": [dataclasses.asdict(contrast) for contrast in plan.contrasts],
        "noise": plan.noise and dataclasses.asdict(plan.noise),
        "launches": [*read_launches(directory), launch and {**launch, **_scope(plan)}],
    }
    write_json(directory / STUDY_FILE, data)


def _scope(plan: Plan) -> dict[str, Any]:
    return {"seeds": plan.seeds, "cells": list(plan.cells)}


def read_plan(directory: Path) -> Plan:
    """Return a study's plan; raises `UsageError` where there is none, or not one of ours."""
    data = read_json(directory / STUDY_FILE) if directory != Path() else None
    if data is None:
        raise UsageError(f"{str(directory)!r} is no study: it has no {STUDY_FILE}")
    try:
        plan: Plan = from_json(Plan, (directory / STUDY_FILE).read_bytes())
    except UsageError as error:
        raise UsageError(
            f"study {str(directory)!r} was written by another version ({error}); "
            "run its command again, or use that version"
        ) from None
    _check_folders(plan, directory)
    # JSON with sorted keys does not keep the grid's order; that of the trials is the same.
    names = dict.fromkeys([*plan.cells, *plan.costs])
    costs = {name: plan.costs[name] for name in names if name in plan.costs}
    return dataclasses.replace(plan, costs=costs)


def _check_folders(plan: Plan, directory: Path) -> None:
    """Raise `UsageError` where a plan, perhaps a stranger's, names files outside of its study."""
    for stage in {stage for trial in plan.trials for stage in trial.stages}:
        folder = stage.folder
        if {"/", "\\"} & set(folder) or folder in (".", "..") or "\0" in folder:
            raise UsageError(
                f"study {str(directory)!r} has a stage with a folder outside of it: {folder!r}"
            )


def read_launches(directory: Path) -> list[dict[str, Any]]:
    """Return the notes of a study's launches, the first one first."""
    return list((read_json(directory / STUDY_FILE) or {}).get("launches", []))
