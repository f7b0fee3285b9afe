"""Runs the stages of a trial, one after the other, in the trial's directory.

Pretraining writes into the directory itself, each fine-tuning into a folder of its own there:
``curve.jsonl`` (metrics by step), ``checkpoint.pt`` while it runs, and at the end ``model/`` (the
best on validation, a checkpoint folder), ``examples.safetensors`` (its losses by held-out pair) and
``result.json``. Killed at any moment, a trial goes on from its checkpoint with the numbers that it
would have had. A stage of a search leaves no model and no losses by pair: nothing of it is tested.

On several ranks the first one alone writes; the others yield as often as it does, and wait for it
at the end of a stage.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from ablate.core.files import write_json
from ablate.core.metrics import Metrics
from ablate.core.records import read_curve, read_record, trial_metrics
from ablate.core.trial import Stage, Trial
from ablate.training.train import Training
from assemblies.parallel import broadcast_from_rank0, rank
from blocks import Registry

CHECKPOINT_SECONDS = 60.0


def run_trial(trial: Trial, directory: Path, registry: Registry) -> Iterator[Metrics]:
    """Train, or go on training, and yield metrics as they come.

    Steps count on from stage to stage; metrics of a fine-tuning have its set's name in front, as in
    ``icons/test/coca``. Fine-tunings start from the pretrained checkpoint. Raises `DivergedError`
    when a loss is not finite.
    """
    before = 0
    for stage in trial.stages:
        for metrics in run_stage(trial, stage, directory, registry):
            yield trial_metrics(stage, metrics, before)
        before += stage.recipe.steps


def run_stage(trial: Trial, stage: Stage, directory: Path, registry: Registry) -> Iterator[Metrics]:
    """Train a stage and yield its metrics; the last ones are those on the test split."""
    folder = directory / stage.folder
    finished = read_record(folder, stage)
    if broadcast_from_rank0(finished is not None):
        yield {"step": stage.recipe.steps, **(finished or {"metrics": {}})["metrics"]}
        return
    training = Training(trial, stage, registry, directory)
    training.resume(folder)
    if broadcast_from_rank0(training.state.step) != training.state.step:
        raise RuntimeError(f"workers see different checkpoints in {folder}: is its disk shared?")
    keeps, saved = rank() == 0, time.monotonic()
    # Only one rank writes: two of them would tear each other's files.
    if keeps:
        folder.mkdir(parents=True, exist_ok=True)
        _cut_curve(folder / "curve.jsonl", training.state.step)
    for metrics in training.steps():
        if keeps:
            _append(folder / "curve.jsonl", metrics)
            looked = any(name.startswith("val/") for name in metrics)
            if looked or time.monotonic() - saved > CHECKPOINT_SECONDS:
                # After an evaluation too, since that is the costly part of a step to repeat.
                training.save(folder)
                saved = time.monotonic()
        yield metrics
    training.close()
    final = _conclude(training, folder) if keeps else {}
    broadcast_from_rank0(
        training.state.step
    )  # the next stage starts from what the first rank has written
    yield {"step": stage.recipe.steps, **final}


def _conclude(training: Training, folder: Path) -> Metrics:
    """Test the best model and write it with its record; returns the metrics."""
    final = training.finish()
    if not training.stage.is_search:
        training.write_model(folder)
    # Last: a record is what says that the stage is finished, so its model must be there before.
    write_json(folder / "result.json", training.record(final))
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    return final


def _append(path: Path, metrics: Metrics) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(metrics) + "\n")


def _cut_curve(path: Path, step: int) -> None:
    """Forget what was logged after the checkpoint that training goes on from."""
    kept = [line for line in read_curve(path) if line["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    os.replace(temporary, path)
