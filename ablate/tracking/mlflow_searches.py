"""A run per search trial in a study's MLflow store: tag ``ablate.role`` is ``search``."""

from __future__ import annotations

from typing import Any

from ablate.core.files import digest
from ablate.core.metrics import SELECTION
from ablate.core.search_results import Outcome, SearchOutcomes
from ablate.tracking import mlflow_batches
from ablate.tracking.mlflow_runs import StudyRuns

SEARCH = "search"


def write_searches(runs: StudyRuns, outcomes_of: SearchOutcomes) -> int:
    """Write the search trials that the store lacks, under the study's run; returns how many.

    Parameters are what was tried, so that MLflow's parallel coordinates compare a cell's trials;
    the validation metric `SELECTION` is what they were judged by.
    """
    in_order = [outcome for outcomes in outcomes_of.values() for outcome in outcomes]
    return sum([_write(runs, outcome) for outcome in in_order])


def _key(outcome: Outcome) -> str:
    return digest([outcome.subject, outcome.number, [*outcome.keys], outcome.reason])[:16]


def _write(runs: StudyRuns, outcome: Outcome) -> bool:
    """Write a search trial's run, or finish it; returns False if all was there."""
    noted = _noted(runs, outcome)
    if noted["final"]:
        return False
    run, name = noted["run"], outcome.cell or outcome.subject
    values = {"cell": name, "number": outcome.number, **outcome.values}
    mlflow_batches.log_params(runs.client, run, values)
    if outcome.loss is not None:  # at one time, so that a point that is sent again replaces itself
        point = {"step": outcome.number, "time": noted["began"], f"val/{SELECTION}": outcome.loss}
        mlflow_batches.log_metrics(runs.client, run, [point])
    runs.client.set_terminated(run, "FINISHED" if outcome.loss is not None else "FAILED")
    noted["final"] = True
    runs.remember()
    return True


def _noted(runs: StudyRuns, outcome: Outcome) -> dict[str, Any]:
    """Return what is known of the trial's run, created where there is none and noted at once."""
    noted: dict[str, Any] | None = runs.notes["searches"].get(_key(outcome))
    if noted is not None:
        return noted
    name = outcome.cell or outcome.subject
    tags = {
        "ablate.cell": name,
        "ablate.subject": outcome.subject,
        "ablate.key": " ".join(outcome.keys),
        "ablate.state": outcome.state,
        "ablate.failure": outcome.reason,
    }
    kept = {tag: text for tag, text in tags.items() if text}
    began = mlflow_batches.now()
    run = runs.create(f"{name} search {outcome.number}", SEARCH, kept, began)
    noted = runs.notes["searches"][_key(outcome)] = {"run": run, "final": False, "began": began}
    runs.remember()
    return noted
