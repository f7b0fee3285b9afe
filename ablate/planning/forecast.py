"""Predicts the time and memory of trials: from their own steps, their records, or their FLOPs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ablate.core.files import cache_directory, digest, read_json, write_json
from ablate.core.ledger import Ledger
from ablate.core.plan import Plan
from ablate.core.provenance import device_name
from ablate.core.resources import ProbeConditions, gpu_memory, host_memory
from ablate.core.trial import Stage, Trial, code_hash
from ablate.planning.costs import estimate_memory, estimate_seconds, machine_speed
from ablate.planning.probe import STEPS, Timing
from ablate.planning.probe_pool import measure
from assemblies import CoCaConfig, Cost
from assemblies.config import to_dict as cell_to_dict
from blocks import Registry, UsageError

MEASURED, RECORDED, ESTIMATED = "measured", "recorded", "estimated"
# Bytes that a worker has beside a trial: Ray and Tune, and what earlier trials left in it. Without
# them benchmarks/forecast.py found 471 MiB predicted and 728 MiB real.
WORKER = 250 * 2**20
SLOWEST = 60.0  # seconds that measuring a cell may be expected to take
# Of a recipe: what changes neither the time of a step nor that of an evaluation.
FREE = {
    *("data", "steps", "evaluate", "patience", "lr", "warmup"),
    *("weight_decay", "beta2", "clip", "max_scale", "flip"),
}


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a whole trial of a cell takes: seconds by stage, peak bytes of its process.

    ``gpu_memory`` is what torch reserves, 0 without a GPU. ``basis`` says where the numbers come
    from: measured steps, finished trials, or FLOPs and parameters, then with the ``reason``.
    """

    stages: Mapping[str, float]
    memory: int
    gpu_memory: int = 0
    basis: str = MEASURED
    reason: str = ""

    @property
    def seconds(self) -> float:
        """Return the seconds of all stages, evaluation and captions of the test split included."""
        return sum(self.stages.values())


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a probe found: the timing of each stage, peak bytes of the process and of the GPU."""

    stages: Mapping[str, Timing]
    memory: int
    gpu_memory: int

    @classmethod
    def of(cls, data: Any) -> Measurement | None:
        """Return what plain data holds, or None where that is no measurement."""
        try:
            stages = {name: Timing(**timing) for name, timing in data["stages"].items()}
            return cls(stages=stages, memory=data["memory"], gpu_memory=data["gpu_memory"])
        except (KeyError, TypeError, AttributeError):
            return None


def forecast(
    plan: Plan,
    ledger: Ledger,
    registry: Registry,
    conditions: ProbeConditions,
    *,
    measuring: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Forecast]:
    """Return a forecast for each cell of a plan, by name.

    Cells that were never measured under these conditions are, if ``measuring`` and where this
    machine can; what is left is estimated. Cells that are equal, as A/A cells, are measured once.
    """
    trials = _shapes(plan)
    shapes = list(trials.values())
    measured = {t.name: m for t in shapes if (m := _read(t, registry, conditions)) is not None}
    missing = [trial for trial in shapes if trial.name not in measured]
    reasons = {t.name: _unfit(t, plan.costs[t.name], registry, conditions) for t in missing}
    if measuring:
        fit = [trial for trial in missing if not reasons[trial.name]]
        for trial, answer in zip(fit, measure(fit, conditions, say), strict=True):
            if (measurement := Measurement.of(answer)) is not None:
                measured[trial.name] = measurement
                write_json(_path(trial, registry, conditions), asdict(measurement))
            reasons[trial.name] = str(answer.get("error", ""))
    speed = _speed(measured, shapes, plan.costs, conditions)
    forecasts: dict[str, Forecast] = {}
    for trial in shapes:
        trained = _records(trial, plan, ledger)
        if trial.name in measured:
            forecasts[trial.name] = _from_measurement(trial, measured[trial.name], trained)
        else:
            forecasts[trial.name] = _from_cost(
                trial, plan.costs[trial.name], registry, speed, trained, reasons[trial.name]
            )
    return {name: forecasts[trials[cell].name] for name, cell in plan.cells.items()}


def known(
    plan: Plan, ledger: Ledger, registry: Registry, conditions: ProbeConditions
) -> dict[str, Forecast]:
    """Return the forecasts if every cell was measured before, else none."""
    if all(_read(trial, registry, conditions) for trial in _shapes(plan).values()):
        return forecast(plan, ledger, registry, conditions, measuring=False)
    return {}


def _shapes(plan: Plan) -> dict[CoCaConfig, Trial]:
    """Return the first trial of each distinct cell."""
    shapes: dict[CoCaConfig, Trial] = {}
    for trial in plan.trials:
        shapes.setdefault(trial.cell, trial)
    return shapes


def _unfit(trial: Trial, price: Cost, registry: Registry, conditions: ProbeConditions) -> str:
    """Return why a cell cannot be measured here, or nothing."""
    host, gpu = estimate_memory(trial, price, registry)
    if conditions.per_gpu and conditions.per_gpu * gpu > gpu_memory():
        return _too_large(conditions.per_gpu, gpu, gpu_memory(), "GPU")
    if conditions.slots * host > host_memory():
        return _too_large(conditions.slots, host, host_memory(), "machine")
    if not conditions.per_gpu:  # a GPU is fast enough for a few steps of what fits into it
        seconds = estimate_seconds(trial, price, machine_speed(conditions.threads))
        steps = {stage.name: stage.recipe.steps for stage in trial.stages}
        expected = sum(2 * STEPS * seconds[name] / steps[name] for name in steps)
        if expected > SLOWEST:
            return f"measuring it would take about {max(1, expected / 60):.0f} min"
    return ""


def _too_large(trials: int, each: int, there: int, what: str) -> str:
    some = f"{trials} trials need" if trials > 1 else "a trial needs"
    return f"{some} about {trials * each / 2**30:,.1f} GiB, the {what} has {there / 2**30:,.1f}"


def _records(shape: Trial, plan: Plan, ledger: Ledger) -> dict[str, float]:
    """Return the mean seconds that finished trials of a cell trained for, by stage.

    What comes before and after training, a record does not tell.
    """
    by_stage: dict[str, list[float]] = {}
    for trial in plan.trials:
        for stage in trial.stages if trial.cell == shape.cell else ():
            if (record := ledger.record(trial, stage)) is not None:
                by_stage.setdefault(stage.name, []).append(record["metrics"]["train_seconds"])
    return {name: statistics.mean(seconds) for name, seconds in by_stage.items()}


def _from_measurement(
    trial: Trial, measurement: Measurement, trained: Mapping[str, float]
) -> Forecast:
    """Return the forecast that timings give, with the training time of finished trials if known."""
    seconds = {}
    for stage in trial.stages:
        timing, recipe = measurement.stages[stage.name], stage.recipe
        training = recipe.steps * timing.step + recipe.evaluate * timing.look
        around = timing.setup + recipe.evaluate * timing.save + timing.finish
        seconds[stage.name] = trained.get(stage.name, training) + around
    return Forecast(
        stages=seconds,
        memory=measurement.memory + WORKER,
        gpu_memory=measurement.gpu_memory,
        basis=RECORDED if seconds.keys() <= trained.keys() else MEASURED,
    )


def _from_cost(
    trial: Trial,
    price: Cost,
    registry: Registry,
    speed: float,
    trained: Mapping[str, float],
    reason: str,
) -> Forecast:
    """Return the forecast that FLOPs and parameters give; training only, no evaluation."""
    host, gpu = estimate_memory(trial, price, registry)
    return Forecast(
        stages={**estimate_seconds(trial, price, speed), **trained},
        memory=host,
        gpu_memory=gpu,
        basis=ESTIMATED,
        reason=reason or "it was not measured",
    )


def _speed(
    measurements: Mapping[str, Measurement],
    shapes: Sequence[Trial],
    costs: Mapping[str, Cost],
    conditions: ProbeConditions,
) -> float:
    """Return FLOPs per second to estimate by: those of the cells measured, else the machine's."""
    if len(measurements) == len(shapes):
        return 1.0  # nothing is left to estimate
    if not measurements:
        return machine_speed(conditions.threads)
    first = shapes[0].stages[0].name
    return statistics.median(
        costs[name].step_flops / measurement.stages[first].step
        for name, measurement in measurements.items()
    )


def _read(trial: Trial, registry: Registry, conditions: ProbeConditions) -> Measurement | None:
    try:
        return Measurement.of(read_json(_path(trial, registry, conditions)))
    except UsageError:  # damaged: it is measured again
        return None


def _path(trial: Trial, registry: Registry, conditions: ProbeConditions) -> Path:
    """Return where a cell's measurement is kept: under all that can change it."""
    identity = {
        "cell": cell_to_dict(trial.cell),
        "blocks": [registry.source_hash(k, s) for k, s in trial.cell.spellings().values()],
        "stages": [_costly(stage) for stage in trial.stages],
        "code": code_hash(),
        "machine": [device_name(), torch.__version__],
        "conditions": [conditions.slots, conditions.threads, conditions.per_gpu],
    }
    return cache_directory() / "forecasts" / f"{digest(identity)}.json"


def _costly(stage: Stage) -> list[Any]:
    recipe = {name: value for name, value in asdict(stage.recipe).items() if name not in FREE}
    return [stage.name, stage.data_fingerprint, recipe]
