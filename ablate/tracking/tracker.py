"""Copies a running study to MLflow without ever making it wait; the only writer, in the driver.

The ledger is the record and MLflow a copy. A thread writes it, and what a slow, locked or absent
store does not take is brought up from the ledger: by the same command, or `ablate sync`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

from ablate.core.ledger import Ledger
from ablate.core.plan import Plan
from ablate.core.provenance import without_passwords
from ablate.core.search_results import read_outcomes
from ablate.core.trial import Trial
from ablate.stats.effects import Effect
from ablate.tracking import system_metrics as machine
from ablate.tracking.mlflow_runs import StudyRuns
from ablate.tracking.mlflow_searches import write_searches
from ablate.tracking.mlflow_store import explain

INTERVAL = 2.0  # seconds between two rounds: what comes in between goes in one batch
LONGEST_PAUSE = 60.0  # seconds between two attempts on a store that does not answer
SAMPLE_SECONDS = 30.0  # between two looks at how busy the machine is
PATIENCE = 30.0  # seconds that the end of a study waits for a store that takes nothing
Job = Callable[[], Any]
log = logging.getLogger(__name__)


class Tracker:
    """Copies one study into one MLflow store; no call waits for the store, `close` a little.

    As a context it is open in the block; a block that `close` does not end ends the study's run as
    failed, or as killed by Ctrl-C, and the writer in any case.
    ``models`` is whether trials' models are copied too; None: those of at most 64 MiB. ``remedy``
    says what brings the store up to date, for what `ablate sync` takes not, and ``note`` is of
    the launch where the study's plan has none.
    """

    def __init__(
        self,
        plan: Plan,
        ledger: Ledger,
        uri: str,
        warn: Callable[[str], None],
        *,
        models: bool | None = None,
        patience: float = PATIENCE,
        remedy: str = "",
        note: Mapping[str, Any] | None = None,
    ) -> None:
        self.plan, self.ledger, self.uri = plan, ledger, uri
        self.warn, self.patience = warn, patience
        self.store = without_passwords(uri)
        again = f"`ablate sync {ledger.directory} --mlflow {self.store}`"
        self.remedy = remedy or f"the same command again, or {again},"
        self.runs = StudyRuns(plan, ledger, uri, models=models, note=note)
        self.jobs: dict[str, Job] = {}  # by what they write: a later one replaces an earlier one
        self.lock, self.closing, self.halt = (
            threading.Lock(),
            threading.Event(),
            threading.Event(),
        )
        self.connected, self.told = False, set[str]()
        self.refused: list[str] = []
        self.progress = self.sampled = time.monotonic()
        # A daemon: a store that hangs must not keep the process from ending.
        self.writer = threading.Thread(target=self._write, name="mlflow", daemon=True)

    def __enter__(self) -> Self:
        """Begin to connect, and to copy what the ledger has."""
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, *raised: object) -> None:
        """End the study's run where an error, or Ctrl-C, kept it from its end."""
        if not self.closing.is_set():
            status = "KILLED" if kind is KeyboardInterrupt else "FAILED"
            self._put("end", partial(self.runs.ended, self.plan.trials, status))
            self._drain()
        elif kind is not None:  # Ctrl-C while `close` waited, whose end is yet to be written
            self._drain()
        self.halt.set()

    def open(self) -> None:
        """Begin to connect, and to copy what the ledger has."""
        self.sync()
        self.writer.start()

    def started(self, trial: Trial) -> None:
        """Create the trial's run, or set it running again."""
        self._put(f"{trial.key} started", partial(self.runs.started, trial))

    def measured(self, trial: Trial, metrics: Mapping[str, float]) -> None:
        """Copy what the trial's curve has gained."""
        self._put(trial.key, partial(self.runs.measured, trial))

    def finished(self, trial: Trial, metrics: Mapping[str, float]) -> None:
        """Copy the trial's result and end its run."""
        self._put(trial.key, partial(self.runs.finished, trial))

    def failed(self, trial: Trial, reason: str) -> None:
        """Mark the trial's run as failed, with the reason."""
        self._put(trial.key, partial(self.runs.failed, trial, reason))

    def stopped(self, trial: Trial, step: int) -> None:
        """Copy what a trial's curve has to where ASHA stopped it; its run ends with the study's."""
        self._put(trial.key, partial(self.runs.measured, trial))

    def sync(self) -> None:
        """Copy every result in the ledger that the store does not have yet."""
        for trial in self.plan.trials:
            if self.ledger.result(trial) is not None:
                self._put(trial.key, partial(self.runs.finished, trial))
        if outcomes := read_outcomes(self.ledger.directory):
            self._put("search", partial(write_searches, self.runs, outcomes))

    def close(
        self, effects: Sequence[Effect], artifacts: Sequence[Path], needed: Sequence[Trial]
    ) -> None:
        """Write effects and report, end the study's run, and say so if the store lacks anything.

        ``needed`` are the trials that the study needs: a race may end before all of its plan.
        Waits as long as the store takes things, and ``patience`` seconds where it does not.
        """
        self.sync()
        self._put("effects", partial(self.runs.write_effects, effects))
        self._put("report", partial(self.runs.write_artifacts, artifacts))
        self._put("end", partial(self.runs.ended, needed))
        self._drain()

    def _drain(self) -> None:
        """Let the writer write the rest, wait for it, and say so if the store lacks anything."""
        if not self.closing.is_set():  # patience does not begin anew
            self.progress = time.monotonic()
        self.closing.set()
        while self.writer.is_alive() and time.monotonic() - self.progress < self.patience:
            self.writer.join(timeout=0.1)
        self.halt.set()
        with self.lock:
            behind = bool(self.jobs) or self.writer.is_alive() or bool(self.refused)
        if behind:
            self.warn(
                f"MLflow store {self.store} lacks part of this study; {self.remedy} "
                "brings it up to date"
            )

    def _put(self, name: str, job: Job) -> None:
        with self.lock:
            self.jobs.pop(name, None)  # a later one goes to the end: a trial starts, then finishes
            self.jobs[name] = job

    def _write(self) -> None:
        """Write in rounds until all is written and the study has ended, or the store fails then."""
        pause = INTERVAL
        while not self.halt.is_set():
            last = self.closing.is_set()  # all jobs were there before
            emptied = self._round()
            if last or self.halt.is_set():
                return
            # A store that is down is asked ever more rarely, up to once a minute.
            pause = INTERVAL if emptied else min(2 * pause, LONGEST_PAUSE)
            self.closing.wait(pause)

    def _round(self) -> bool:
        """Do what there is to do; returns False where the store takes nothing."""
        self._sample()
        while not self.halt.is_set():
            with self.lock:
                if not self.jobs:
                    return True
                name = next(iter(self.jobs))
                job = self.jobs.pop(name)
            if not self._try(job) and not self._again(name, job):
                with self.lock:
                    self.jobs = {name: self.jobs.get(name, job), **self.jobs}
                return False
            self.progress = time.monotonic()
        return False

    def _try(self, job: Job) -> bool:
        """Do a job; returns whether it went well, and says once if not."""
        try:
            if not self.connected:
                self.runs.connect(self._tell_once)
                self.connected = True
            job()
        except Exception as error:  # any database or network error, of any backend
            log.debug("MLflow", exc_info=True)
            self._complain(error)
            return False
        return True

    def _again(self, name: str, job: Job) -> bool:
        """Try a failed job again if the store takes other things; set it aside if it must be so."""
        if not (self.connected and self.runs.answers()):
            self.connected = False
            return False
        if not self._try(job):
            self.refused.append(name)
        return True

    def _complain(self, error: Exception) -> None:
        self._tell_once(
            f"MLflow store {self.store}: {explain(error)}. The study goes on; "
            f"{self.remedy} brings MLflow up to date.",
            about="trouble",
        )

    def _tell_once(self, text: str, about: str = "version") -> None:
        if about not in self.told:
            self.told.add(about)
            self.warn(text)

    def _sample(self) -> None:
        if self.connected and time.monotonic() - self.sampled >= SAMPLE_SECONDS:
            self.sampled = time.monotonic()
            self._put("sample", partial(self.runs.write_sample, machine.sample()))
