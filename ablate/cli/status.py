"""`ablate status STUDY`: what of a study is done, running, failed, and left."""

from __future__ import annotations

import argparse
import fcntl
import json
from pathlib import Path
from typing import Any

from rich.table import Table

from ablate.analysis.losses import needed_trials, race_so_far
from ablate.core.ledger import Ledger
from ablate.core.metrics import METRICS, SELECTION
from ablate.core.plan import STUDY_FILE, read_plan
from ablate.core.search_results import SEARCH_FILE, best, read_outcomes
from ablate.core.trial import Stage, Trial
from ablate.driver.console import make_console

DONE, SOME_FAILED = 0, 1


def main(options: argparse.Namespace) -> int:
    """Print a study's state; return 0, or 1 if some trial has failed."""
    state = status(options.study)
    if options.json:
        print(json.dumps(state))
    else:
        show(state)
    return SOME_FAILED if any(trial["failure"] for trial in state["trials"]) else DONE


def status(study: Path) -> dict[str, Any]:
    """Return the state of a study as plain data: its trials, their stages, steps and failures.

    Of a race, trials are those that its looks ask for, as far as they have been held. While a study
    is searched for, there is only what its search has found.
    """
    state = {"study": str(study), "running": _is_locked(study), "search": _of_search(study)}
    if (study / SEARCH_FILE).exists() and not (study / STUDY_FILE).exists():
        return {**state, "grid": "", "decides": "", "trials": []}
    plan, ledger = read_plan(study), Ledger(study)
    race = race_so_far(plan, ledger) if plan.looks else None
    trials = [_of_trial(trial, ledger, plan.decides) for trial in needed_trials(plan, race)]
    return {**state, "grid": plan.grid, "decides": plan.decides, "trials": trials}


def _of_search(study: Path) -> dict[str, dict[str, Any]]:
    """Return of each cell that is tuned, or of the walk: trials so far, and the lowest loss."""
    leading = {
        subject: (outcomes, best(outcomes)) for subject, outcomes in read_outcomes(study).items()
    }
    return {
        subject: {"trials": len(outcomes), f"val/{SELECTION}": first and first.loss}
        for subject, (outcomes, first) in leading.items()
    }


def _of_trial(trial: Trial, ledger: Ledger, decides: str) -> dict[str, Any]:
    over = ledger.result(trial) is not None
    failure = [] if over else (ledger.failure(trial) or "").strip().splitlines()
    return {
        "cell": trial.name,
        "seed": trial.seed,
        "folder": str(ledger.folder(trial)),
        "failure": failure[-1] if failure else "",
        "stages": {stage.name: _of_stage(trial, stage, ledger, decides) for stage in trial.stages},
    }


def _of_stage(trial: Trial, stage: Stage, ledger: Ledger, decides: str) -> dict[str, Any]:
    record = ledger.record(trial, stage)
    steps, name = stage.recipe.steps, f"test/{decides}"
    value = record and record["metrics"].get(name)
    reached = steps if record else ledger.reached(trial, stage)
    return {"done": record is not None, "step": reached, "steps": steps, name: value}


def _is_locked(study: Path) -> bool:
    """Return whether a process holds the study."""
    try:
        with (study / "lock").open("r", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def show(state: dict[str, Any]) -> None:
    """Print a table of trials by stages, and what there is to do."""
    trials, console = state["trials"], make_console()
    for subject, progress in state["search"].items():
        value = progress[f"val/{SELECTION}"]
        loss = "none yet" if value is None else f"{value:.4f}"
        label = METRICS[SELECTION].label
        line = f"search: {subject}: {progress['trials']} done, lowest validation {label} {loss}"
        console.print(line, highlight=False, markup=False)
    running = "a process is running it" if state["running"] else "no process is running it"
    if not trials:
        if not state["search"]:
            console.print("search: no generation is over yet")
        console.print(f"the search comes before the trials; {running}", highlight=False)
        return
    stages = list(trials[0]["stages"])
    table = Table(box=None, pad_edge=False)
    for name in ("cell", "seed", *stages, ""):
        table.add_column(name)
    for trial in trials:
        cells = [_words(trial["stages"][stage], state["decides"]) for stage in stages]
        table.add_row(trial["cell"], str(trial["seed"]), *cells, trial["failure"][:80])
    console.print(table, markup=False)
    done = sum(all(stage["done"] for stage in trial["stages"].values()) for trial in trials)
    failed = sum(bool(trial["failure"]) for trial in trials)
    console.print(
        f"{done} of {len(trials)} trials done, {failed} failed; {running}",
        highlight=False,
        markup=False,
    )


def _words(stage: dict[str, Any], decides: str) -> str:
    if stage["done"]:
        value = stage[f"test/{decides}"]
        return "done" if value is None else f"{METRICS[decides].label} {value:.3f}"
    return f"step {stage['step']} of {stage['steps']}" if stage["step"] else "-"
