"""A study's directory: its lock, its trials and their results under content-addressed keys.

``result.json`` in the folder of a stage is the record of that it is finished. Nothing else decides
what is done, so the same command again continues where the study stopped.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ablate.core.files import read_json, write_json, write_text
from ablate.core.records import read_curve, read_record, trial_metrics
from ablate.core.trial import Stage, Trial
from blocks import UsageError

STOPPED = "stopped.json"


class Ledger:
    """What a study's directory says about its trials."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def folder(self, trial: Trial) -> Path:
        """Return the directory that a trial writes into."""
        return self.directory / "trials" / re.sub(r"[^\w.+=-]+", "_", trial.label)

    def record(self, trial: Trial, stage: Stage) -> dict[str, Any] | None:
        """Return the record of a finished stage, or None."""
        return read_record(self.folder(trial) / stage.folder, stage)

    def result(self, trial: Trial) -> dict[str, Any] | None:
        """Return the last stage's record if all stages are finished, or None."""
        records = [self.record(trial, stage) for stage in trial.stages]
        return None if None in records else records[-1]

    def metrics(self, trial: Trial) -> dict[str, float] | None:
        """Return a finished trial's metrics of all stages, named as in its curve."""
        if self.result(trial) is None:
            return None
        merged = {"train_seconds": 0.0}
        for stage in trial.stages:
            metrics = dict((self.record(trial, stage) or {})["metrics"])
            merged["train_seconds"] += metrics.pop("train_seconds")
            merged |= {stage.prefix + name: value for name, value in metrics.items()}
        return merged

    def curve(self, trial: Trial) -> list[dict[str, Any]]:
        """Return a trial's metrics by step, which count on from stage to stage."""
        lines, before = [], 0
        for stage in trial.stages:
            path = self.folder(trial) / stage.folder / "curve.jsonl"
            lines += [trial_metrics(stage, line, before) for line in read_curve(path)]
            before += stage.recipe.steps
        return lines

    def losses(self, trial: Trial) -> list[dict[str, float]]:
        """Return a trial's curve without what depends on the machine's speed."""
        return [{k: v for k, v in line.items() if "/" in k} for line in self.curve(trial)]

    def reached(self, trial: Trial, stage: Stage) -> int:
        """Return how many steps of a stage have been logged."""
        curve = read_curve(self.folder(trial) / stage.folder / "curve.jsonl")
        return int(curve[-1]["step"]) if curve else 0

    def failure(self, trial: Trial) -> str | None:
        """Return why a trial failed when it last ran, or None."""
        path = self.folder(trial) / "error.txt"
        return path.read_text(encoding="utf-8") if path.exists() else None

    def record_failure(self, trial: Trial, text: str) -> None:
        """Keep why a trial failed; the next run tries it again."""
        write_text(self.folder(trial) / "error.txt", text)

    def forget_failure(self, trial: Trial) -> None:
        """Drop the record of an earlier failure."""
        (self.folder(trial) / "error.txt").unlink(missing_ok=True)

    def stopped(self, trial: Trial) -> int | None:
        """Return the step at which ASHA stopped a trial, or None."""
        stop = read_json(self.folder(trial) / STOPPED)
        same = isinstance(stop, dict) and stop.get("key") == trial.key
        return int(stop["step"]) if same else None

    def record_stop(self, trial: Trial) -> int:
        """Keep that ASHA stopped a trial, which is never taken for a finished one."""
        step = self.reached(trial, trial.stages[0])
        write_json(self.folder(trial) / STOPPED, {"key": trial.key, "step": step})
        return step

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the study for this process; raises `UsageError` naming a process that holds it."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            file = (self.directory / "lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise UsageError(
                f"cannot write study {str(self.directory)!r}: {error.strerror}"
            ) from None
        with file:
            try:
                # The system frees it when the process dies, however it dies; a pid file would go
                # stale.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                owner = file.read().strip() or "another process"
                raise UsageError(
                    f"study {str(self.directory)!r} is in use by {owner}; wait, or use --study"
                ) from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            yield
            file.truncate(0)
