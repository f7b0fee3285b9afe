"""Measures what a trial takes, from a few of its own steps: `python -m ablate.planning.probe`.

Reads jobs from standard input, one JSON object a line, and answers each with one line. Every job
runs in a fork of this process, so that torch is imported once and the peak memory is the job's own.
`ablate.planning.forecast` starts as many of these processes as trials will run side by side.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import torch

from ablate.core.trial import Stage, Trial, from_dict
from ablate.data.batches import EncodedSplit, Prefetched
from ablate.training.caption_metrics import caption_metrics
from ablate.training.captioning import Captioner
from ablate.training.train import Training
from assemblies import Decoding
from assemblies.checkpoint import save
from blocks import default_registry

STEPS, SECONDS = 8, 1.0  # a step is timed at least so often, and steps for at least so long
PICTURES = 64  # that are captioned, as many as the captioner takes at a time
KIBIBYTES = 1 if sys.platform == "darwin" else 1024  # in a unit of ru_maxrss


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Seconds that the parts of a stage take.

    ``setup`` once, ``step`` for each optimiser step, ``look`` for each look at the validation split
    and ``save`` for the checkpoint after it, ``finish`` for the test split and the files.
    """

    setup: float
    step: float
    look: float
    save: float
    finish: float


def answer(jobs: TextIO, answers: TextIO) -> None:
    """Measure job after job, each in a fork."""
    for line in jobs:
        reading, writing = os.pipe()
        with tempfile.TemporaryDirectory(prefix="ablate-probe-") as scratch:
            if (child := os.fork()) == 0:
                os.close(reading)
                _work(json.loads(line), Path(scratch), writing)
            os.close(writing)
            with os.fdopen(reading, encoding="utf-8") as file:
                content = file.read()
            _, status, used = os.wait4(child, 0)
        answer = json.loads(content) if content else {"error": _death(status)}
        print(json.dumps(answer | {"memory": used.ru_maxrss * KIBIBYTES}), file=answers, flush=True)


def _death(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"its process died ({f'signal {-code}' if code < 0 else f'exit code {code}'})"


def _work(job: dict[str, Any], scratch: Path, writing: int) -> None:
    """Measure one job in this process and end it."""
    try:
        torch.set_num_threads(job["threads"])
        answer: dict[str, Any] = measure(from_dict(job["trial"]), tuple(job["plugins"]), scratch)
    except Exception as error:
        traceback.print_exc()
        answer = {"error": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}
    with os.fdopen(writing, "w", encoding="utf-8") as file:
        json.dump(answer, file)
    os._exit(0)  # what a fork inherited is not its own to clean up


def measure(trial: Trial, plugins: tuple[str, ...], scratch: Path) -> dict[str, Any]:
    """Return the timing of each stage as plain data, and the peak of GPU memory in bytes."""
    registry = default_registry(plugins)
    timings = {}
    for stage in trial.stages:
        began = time.perf_counter()
        training = Training(trial, stage, registry, scratch)
        _wait()
        timing = measure_stage(training, time.perf_counter() - began, scratch)
        timings[stage.name] = {name: getattr(timing, name) for name in Timing.__slots__}
    gpu = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0
    return {"stages": timings, "gpu_memory": gpu}


def measure_stage(training: Training, setup: float, scratch: Path) -> Timing:
    """Time steps, one batch of evaluation scaled to the splits' sizes, and what is written."""
    steps = _time_steps(training)
    if isinstance(training.batches, Prefetched):
        training.batches.close()
    splits = training.data.splits
    scale = {name: _shorten(splits, name, training.stage) for name in ("val", "test")}
    look = scale["val"] * _seconds(training.validate)
    saving = _seconds(lambda: training.save(scratch))
    tested = _seconds(lambda: training.evaluate_split("test", training.examples))
    last = training.recipe.evaluate > 1  # the best model may be another one: two are tested
    finish = scale["test"] * tested * (1 + last) + _time_captions(training)
    finish += _seconds(lambda: _write(training, scratch))
    return Timing(setup=setup, step=steps, look=look, save=saving, finish=finish)


def _time_steps(training: Training) -> float:
    """Return the mean seconds of a step, after one to warm up.

    Not the median: on a busy machine some steps take far longer, and a trial has its share of them.
    """
    seconds: list[float] = []
    while training.state.step < training.recipe.steps:
        seconds.append(_seconds(training.step))
        training.state.step += 1
        if len(seconds) > STEPS and sum(seconds[1:]) > SECONDS:
            break
    return statistics.mean(seconds[1:] or seconds)


def _shorten(splits: dict[str, EncodedSplit], name: str, stage: Stage) -> float:
    """Keep one evaluation batch of a split; return how many times as long the split was."""
    split = splits[name]
    kept = slice(stage.recipe.evaluation_batch)
    splits[name] = replace(
        split, rows=split.rows[kept], ids=split.ids[kept], groups=split.groups[kept]
    )
    return len(split) / len(splits[name])


def _time_captions(training: Training) -> float:
    """Return the seconds of captioning the test split and scoring it, from one batch.

    An untrained model never ends a caption; a trained one is taken to say as many tokens as the
    longest of the batch's own captions.
    """
    if not training.trial.cell.captions:
        return 0.0
    pairs = training.data.pairs
    rows = pairs.indices("test")
    few = rows[:PICTURES]
    ids = training.data.splits["test"].ids[: len(few)]
    longest = min(max(len(captions[0]) for captions in ids), training.trial.cell.context) - 1
    captioner = Captioner(training.model, training.data.tokenizer)

    def caption() -> None:
        said = captioner.caption([pairs.images[i] for i in few], Decoding(maximum=max(1, longest)))
        caption_metrics(said, [pairs.captions[i] for i in few])

    return _seconds(caption) * len(rows) / len(few)


def _write(training: Training, scratch: Path) -> None:
    """Write the model as a trial does; a fine-tuning starts from it."""
    tokenizer = training.data.tokenizer.to_str()
    save(training.trial.cell, training.state.best_model, scratch / "model", tokenizer=tokenizer)


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - began


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a plugin prints is no answer
    answer(sys.stdin, answers)
