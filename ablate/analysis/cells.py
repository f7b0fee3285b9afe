"""What each cell reaches: means over seeds by stage, curves, and cost against quality."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ablate.core.ledger import Ledger
from ablate.core.metrics import METRICS, Metric, compared
from ablate.core.plan import Plan
from ablate.core.trial import Stage, Trial
from ablate.stats.effects import improvement, is_usable
from ablate.stats.tests_and_intervals import t_interval

Curves = Mapping[int, Mapping[int, float]]  # seed -> step -> value


@dataclass(frozen=True, kw_only=True, slots=True)
class Mean:
    """A mean over seeds."""

    mean: float
    """Of the values that are usable; nan without any."""

    standard_deviation: float
    """Over seeds; nan with fewer than two."""

    unusable: int
    """How many values no effect could use either: not finite, or a loss of 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CellMeans:
    """What a cell reached in a stage, on the test split."""

    seeds: int
    """How many of its trials have finished the stage."""

    values: Mapping[str, Mean]
    """By the name of a metric as in records: ``test/coca``, ``last/coca``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A cell's validation metric by step: mean, lowest and highest seed."""

    cell: str
    steps: list[int]
    means: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True, kw_only=True, slots=True)
class CurveLines:
    """How cells learn, in one metric."""

    values: list[Line]
    """The metric itself."""

    improvements: list[Line]
    """In percent over the reference, at the same step of the same seed."""

    last_step: int
    """Where the longest curve ends."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CellCost:
    """A cell's place in the figure of cost against quality."""

    cell: str
    gigaflops: float
    """Of a training step."""

    seconds: float
    """Of training, all stages; the mean over its trials."""

    mean: float
    """Of the deciding metric on the test split, placed as `comparable` says."""

    low: float
    high: float
    """The mean's 95% interval over seeds; nan with one seed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CostTable:
    """Cells by what they cost and reach, the best one first."""

    cells: list[CellCost] = field(default_factory=list)
    same_seeds: bool = True
    """Whether all cells have results of the same seeds."""

    without_reference: list[str] = field(default_factory=list)
    """Cells that have no seed in common with the reference, and so no place."""


def cell_means(plan: Plan, ledger: Ledger) -> dict[str, dict[str, CellMeans]]:
    """Return what cells reached, by stage and cell."""
    return {
        stage.name: {
            name: _means(_measured(plan.of_cell(name), ledger, stage)) for name in plan.costs
        }
        for stage in plan.stages
    }


def _means(measured: Sequence[Mapping[str, float]]) -> CellMeans:
    names = dict.fromkeys(name for metrics in measured for name in metrics)
    return CellMeans(
        seeds=len(measured),
        values={
            name: mean_of(_usable(name, m[name]) for m in measured if name in m)
            for name in names
            if "/" in name
        },
    )


def _usable(name: str, value: float) -> float:
    """Return a metric's value, nan for one that no effect can use either."""
    metric = METRICS.get(name.rpartition("/")[2])
    return value if is_usable(value) or not (metric and metric.compared) else math.nan


def mean_of(values: Iterable[float]) -> Mean:
    """Return the mean of the values that are finite."""
    everything = list(values)
    finite = [value for value in everything if math.isfinite(value)]
    return Mean(
        mean=statistics.mean(finite) if finite else math.nan,
        standard_deviation=statistics.stdev(finite) if len(finite) > 1 else math.nan,
        unusable=len(everything) - len(finite),
    )


def _measured(trials: Sequence[Trial], ledger: Ledger, stage: Stage) -> list[dict[str, float]]:
    """Return what trials measured in the stage of that name, as far as they have finished it."""
    measured = []
    for trial in trials:
        # By name: a search may have given each cell a recipe, and so a stage, of its own.
        same = next(s for s in trial.stages if s.name == stage.name)  # keys differ by trial
        if record := ledger.record(trial, same):
            measured.append(record["metrics"])
    return measured


def train_seconds(plan: Plan, ledger: Ledger) -> dict[str, float]:
    """Return the mean training time of each cell that has finished trials, all stages."""
    by_cell = {
        cell: [m["train_seconds"] for t in plan.of_cell(cell) if (m := ledger.metrics(t))]
        for cell in plan.costs
    }
    return {cell: statistics.fmean(seconds) for cell, seconds in by_cell.items() if seconds}


def curve_lines(plan: Plan, ledger: Ledger) -> dict[str, CurveLines]:
    """Return how cells learn by validation metric, of those that were measured."""
    by_trial = {trial: ledger.curve(trial) for trial in plan.trials}
    lines = {}
    for metric in compared():
        curves = _curves(plan, by_trial, f"val/{metric.key}")
        if curves:
            lines[metric.key] = CurveLines(
                values=[_line(cell, by_seed) for cell, by_seed in curves.items()],
                improvements=[
                    _line(cell, by_seed)
                    for cell, by_seed in _improvements(curves, plan.reference, metric).items()
                ],
                last_step=max(
                    s for by_seed in curves.values() for c in by_seed.values() for s in c
                ),
            )
    return lines


def _curves(
    plan: Plan, by_trial: Mapping[Trial, Sequence[Mapping[str, float]]], name: str
) -> dict[str, Curves]:
    """Return a metric's finite values by cell, seed and step."""
    curves: dict[str, dict[int, dict[int, float]]] = {cell: {} for cell in plan.costs}
    for trial, lines in by_trial.items():
        points = {
            int(line["step"]): line[name]
            for line in lines
            if math.isfinite(line.get(name, math.nan))
        }
        if points:
            curves[trial.name][trial.seed] = points
    return {cell: by_seed for cell, by_seed in curves.items() if by_seed}


def _improvements(
    curves: Mapping[str, Curves], reference: str, metric: Metric
) -> dict[str, Curves]:
    """Return the improvement in percent over the reference at the same step of the same seed."""
    base = curves.get(reference, {})
    improvements: dict[str, dict[int, dict[int, float]]] = {}
    for cell in (cell for cell in curves if cell != reference):
        for seed in curves[cell].keys() & base.keys():
            ours, theirs = curves[cell][seed], base[seed]
            both = ours.keys() & theirs.keys()
            points = {s: improvement(theirs[s], ours[s], metric.direction) for s in both}
            if points:
                improvements.setdefault(cell, {})[seed] = points
    return dict(improvements)


def _line(cell: str, by_seed: Curves) -> Line:
    points = defaultdict(list)
    for curve in by_seed.values():
        for step, value in curve.items():
            points[step].append(value)
    steps = sorted(points)
    return Line(
        cell=cell,
        steps=steps,
        means=[statistics.fmean(points[step]) for step in steps],
        low=[min(points[step]) for step in steps],
        high=[max(points[step]) for step in steps],
    )


def cost_table(plan: Plan, ledger: Ledger) -> CostTable:
    """Return cells by what they cost and reach in the deciding metric, in pretraining."""
    measured = _deciding(plan, ledger)
    placed = comparable(measured, plan.reference)
    seconds = train_seconds(plan, ledger)
    sign = 1 if METRICS[plan.decides].direction == "lower" else -1
    return CostTable(
        cells=[
            _cell_cost(plan, cell, placed[cell], seconds[cell])
            for cell in sorted(placed, key=lambda cell: sign * float(placed[cell].mean()))
        ],
        same_seeds=_have_same_seeds(measured),
        without_reference=[cell for cell in measured if cell not in placed],
    )


def _cell_cost(plan: Plan, cell: str, values: np.ndarray, seconds: float) -> CellCost:
    # Of this cell alone: seeds that are easy are easy for all cells, so these intervals are wider
    # than those of effects, which are paired.
    low, high = t_interval(values)
    return CellCost(
        cell=cell,
        gigaflops=plan.costs[cell].step_flops / 1e9,
        seconds=seconds,
        mean=float(values.mean()),
        low=low,
        high=high,
    )


def _deciding(plan: Plan, ledger: Ledger) -> dict[str, dict[int, float]]:
    """Return the finite values of the deciding metric by cell and seed, of finished trials."""
    name = f"test/{plan.decides}"
    measured: dict[str, dict[int, float]] = {}
    for trial in plan.trials:
        value = (ledger.metrics(trial) or {}).get(name, math.nan)
        if math.isfinite(value):
            measured.setdefault(trial.name, {})[trial.seed] = value
    return {cell: measured[cell] for cell in plan.costs if cell in measured}


def comparable(values: Mapping[str, Mapping[int, float]], reference: str) -> dict[str, np.ndarray]:
    """Return values [seeds] by cell, of means that compare also where seeds are not the same.

    After interim looks or a failure a cell's mean tells as well how easy the seeds are that it has.
    Each cell's values are then scaled until their mean is the reference's over all of its seeds
    times the cell's mean ratio to it within a seed. A cell without a seed of the reference is left
    out.
    """
    plain = {cell: np.array(list(by_seed.values())) for cell, by_seed in values.items()}
    if _have_same_seeds(values):
        return plain
    base = values.get(reference, {})
    placed = {}
    for cell, by_seed in values.items():
        ratios = [value / base[seed] for seed, value in by_seed.items() if base.get(seed, 0.0) > 0]
        if ratios:
            mean = statistics.fmean(base.values()) * statistics.fmean(ratios)
            placed[cell] = plain[cell] * (mean / plain[cell].mean())
    return placed


def _have_same_seeds(values: Mapping[str, Mapping[int, float]]) -> bool:
    return len({frozenset(by_seed) for by_seed in values.values()}) <= 1
