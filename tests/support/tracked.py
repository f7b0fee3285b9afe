"""MLflow tests' study and how they follow it: used by test_tracking and test_mlflow_store."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from mlflow import MlflowClient

from ablate.analysis.results import make_results
from ablate.core.ledger import Ledger
from ablate.core.plan import Plan
from ablate.core.trial import Trial
from ablate.stats.effects import Effect
from ablate.tracking import sync
from ablate.tracking.tracker import Tracker
from ablate.training.stages import run_trial
from blocks import default_registry

REGISTRY = default_registry()
SHORT = {"steps": 6, "batch": 16, "evaluate": 2, "evaluation_batch": 16, "lr": 0.003}
Study = tuple[Plan, Ledger]


def train(trial: Trial, ledger: Ledger) -> None:
    for _ in run_trial(trial, ledger.folder(trial), REGISTRY):
        pass


def effects_of(plan: Plan, ledger: Ledger) -> list[Effect]:
    return make_results(plan, ledger).effects


def track(plan: Plan, ledger: Ledger, uri: str, said: list[str], **options: Any) -> None:
    """Follow a whole study as the launcher does, its trials having run."""
    tracker = Tracker(plan, ledger, uri, said.append, **options)
    tracker.open()
    for trial in plan.trials:
        tracker.started(trial)
        tracker.measured(trial, {})
        metrics = ledger.metrics(trial)
        if metrics is None:
            tracker.failed(trial, "Traceback\nDivergedError: loss nan at step 3\n")
        else:
            tracker.finished(trial, metrics)
    tracker.close(effects_of(plan, ledger), sync.report_files(ledger.directory), plan.trials)


def runs_of(uri: str, role: str) -> dict[str, Any]:
    """Return the runs of a role, by name."""
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("coca-blocks")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], f"tags.`ablate.role` = '{role}'")
    by_name = {run.info.run_name: run for run in found}
    assert len(by_name) == len(found), "a run is there twice"
    return by_name


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
