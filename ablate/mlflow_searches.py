"""A run per search trial in a study's MLflow store: tag ``ablate.role`` is ``search``."""

from __future__ import annotations

from ablate import mlflow_batches
from ablate.files import digest
from ablate.mlflow_runs import StudyRuns
from ablate.search_outcomes import Found, Outcome

SEARCH = "search"


def write_searches(runs: StudyRuns, found: Found) -> int:
    """Write the search trials that the store lacks, under the study's run; returns how many.

    Parameters are what was tried, so that MLflow's parallel coordinates compare a cell's trials;
    the metric ``val/coca`` is what they were judged by.
    """
    known = runs.known.setdefault("searches", {})
    every = [outcome for outcomes in found.values() for outcome in outcomes]
    missing = [outcome for outcome in every if _key(outcome) not in known]
    for outcome in missing:
        known[_key(outcome)] = _write(runs, outcome)
        runs.remember()
    return len(missing)


def _key(outcome: Outcome) -> str:
    return digest([outcome.subject, outcome.number, [*outcome.keys], outcome.reason])[:16]


def _write(runs: StudyRuns, outcome: Outcome) -> str:
    name = outcome.cell or outcome.subject
    tags = {
        "ablate.cell": name,
        "ablate.subject": outcome.subject,
        "ablate.key": " ".join(outcome.keys),
        "ablate.state": outcome.state,
        "ablate.failure": outcome.reason,
    }
    kept = {tag: text for tag, text in tags.items() if text}
    run = runs.create(f"{name} search {outcome.number}", SEARCH, kept)
    values = {"cell": name, "number": outcome.number, **outcome.values}
    mlflow_batches.log_params(runs.client, run, values)
    if outcome.loss is not None:
        point = {"step": outcome.number, "val/coca": outcome.loss}
        mlflow_batches.log_metrics(runs.client, run, [point])
    runs.client.set_terminated(run, "FINISHED" if outcome.loss is not None else "FAILED")
    return run
