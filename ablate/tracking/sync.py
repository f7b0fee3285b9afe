"""Brings an MLflow store up to date from a study's ledger."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ablate.analysis.losses import needed_trials
from ablate.analysis.results import make_results
from ablate.core.ledger import Ledger
from ablate.core.plan import Plan
from ablate.core.provenance import without_passwords
from ablate.core.search_results import read_outcomes
from ablate.tracking.mlflow_runs import StudyRuns
from ablate.tracking.mlflow_searches import write_searches
from ablate.tracking.mlflow_store import explain

DONE, LACKING = 0, 1
REPORT = ("report.*", "effects.csv", "table.tex", "*.png", "*.svg")


class Sync:
    """Writes all of a study that a store lacks; what the store refuses is told and passed over."""

    def __init__(self, plan: Plan, ledger: Ledger, uri: str, models: bool | None = None) -> None:
        self.plan, self.ledger, self.store = plan, ledger, without_passwords(uri)
        self.runs = StudyRuns(plan, ledger, uri, models=models)
        self.down, self.lacking = False, 0

    def run(self) -> int:
        """Write what is missing and say what that was; returns the exit code.

        Raises `UsageError` where the study itself is at odds, before the store is touched.
        """
        results = make_results(self.plan, self.ledger)
        self._write("", partial(self.runs.connect, _tell))
        trials = [self._write(t.label, partial(self.runs.caught_up, t)) for t in self.plan.trials]
        outcomes = read_outcomes(self.ledger.directory)
        self._write("the search", lambda: write_searches(self.runs, outcomes))
        runs = [*results.effects, *results.noise]
        effects = self._write("the effects", partial(self.runs.write_effects, runs))
        files = report_files(self.ledger.directory)
        report = self._write("the report", partial(self.runs.write_artifacts, files))
        needed = needed_trials(self.plan, results.race)
        self._write("the study's run", partial(self.runs.ended, needed))
        if self.down:
            return LACKING
        print(
            f"{self.store}: brought up to date {sum(trials)} of {len(trials)} trials, "
            f"{report} of {len(files)} files of the report, effects: {effects}"
        )
        return LACKING if self.lacking else DONE

    def _write(self, what: str, job: Callable[[], int | None]) -> int:
        """Do a job and return its count; after a store that does not answer, do none."""
        if self.down:
            return 0
        try:
            return int(job() or 0)
        except Exception as error:  # any database or network error, of any backend
            self.lacking += 1
            self.down = self.runs.client is None or not self.runs.answers()
            _tell(f"MLflow store {self.store}: {f'{what}: ' if what else ''}{explain(error)}")
            return 0


def _tell(text: str) -> None:
    print(text, file=sys.stderr)


def report_files(directory: Path) -> list[Path]:
    """Return the files of a study's report, as far as they exist."""
    return sorted({path for pattern in REPORT for path in directory.glob(pattern)})
