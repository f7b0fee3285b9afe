"""Runs or continues a planned study: trials, MLflow, the report."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from ablate.analysis.losses import needed_trials, race_so_far
from ablate.core.ledger import Ledger
from ablate.core.plan import Plan, write_plan
from ablate.core.provenance import launch_note, without_passwords
from ablate.core.resources import Resources, Scheduling, choose_resources
from ablate.core.study_identity import keep_plan, left_out, outdated, refuse_other_study
from ablate.core.trial import Trial
from ablate.driver import progress
from ablate.driver.console import show, warn
from ablate.execution.ray_cluster import find_nodes, session, start
from ablate.execution.study_log import study_log
from ablate.figures.caption_sheet import draw_captions
from ablate.report.build import write_report
from ablate.report.race import look_words
from ablate.tracking import DEFAULT_STORE
from ablate.tracking.tracker import Tracker
from blocks import default_registry

DONE, SOME_FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How a study is run: what changes none of its numbers."""

    arguments: tuple[str, ...] = ()
    """The words of a command line that ask for the same, for the record."""

    plugins: tuple[str, ...] = ()
    """Files (absolute) and modules whose blocks workers register."""

    mlflow: str = DEFAULT_STORE
    """The store that runs are copied to."""

    models: bool | None = None
    """Whether the store gets trials' models; None: those of at most 64 MiB."""

    output: str = "auto"
    """One of `ablate.driver.progress.OUTPUTS`: who reads what is printed."""

    scheduling: Scheduling = field(default_factory=Scheduling)
    """What a trial asks of the machine."""

    memory: int = 0
    """Bytes of host memory that a trial is predicted to need, 0 where nothing is known."""

    gpu_memory: int = 0
    """Likewise of a GPU's memory."""

    def resources(self) -> Resources:
        """Return what a trial gets, of this machine or of the cluster; raises `UsageError`."""
        nodes = find_nodes(self.scheduling.address)
        needs = {"memory": self.memory, "gpu_memory": self.gpu_memory}
        return choose_resources(self.scheduling, nodes, **needs)


def run_study(plan: Plan, ledger: Ledger, launch: Launch, console: Console) -> int:
    """Run what is left of a plan, write the report, and return the exit code."""
    from ablate.execution.tune_runner import execute

    resources = launch.resources()
    if resources.note:
        warn(resources.note)
    with ledger.locked(), study_log(ledger.directory), ExitStack() as stack:
        # Under the lock: another process may have written the plan a moment ago.
        refuse_other_study(plan, ledger)
        _warn_of_earlier_runs(plan, ledger)
        write_plan(plan, ledger.directory, launch_note(launch.arguments))
        remaining = [trial for trial in plan.trials if not _is_over(trial, plan, ledger)]
        if done := len(plan.trials) - len(remaining):
            console.print(f"{done} of {len(plan.trials)} trials are already in the ledger")

        def run(remaining: Sequence[Trial]) -> None:
            done = {t: metrics for t in plan.trials if (metrics := ledger.metrics(t)) is not None}
            with progress.make_progress(
                remaining, done, console, launch.output, plan.decides
            ) as shown_progress:
                execute(
                    remaining,
                    ledger,
                    plugins=launch.plugins,
                    resources=resources,
                    watchers=(shown_progress, tracker),
                    asha=plan.exploratory,
                )

        with session():
            ahead = needed_trials(plan, race_so_far(plan, ledger) if plan.looks else None)
            if not all(_is_over(trial, plan, ledger) for trial in ahead):
                start(resources)  # before MLflow's thread looks for credentials: HOME changes
            tracker = stack.enter_context(
                Tracker(plan, ledger, launch.mlflow, warn, models=launch.models)
            )
            if plan.looks:
                run_looks(plan, ledger, run, console)
            else:
                run(remaining)
        # Needs data and models, unlike the report, which anyone can make again from the ledger.
        draw_captions(plan, ledger, default_registry(launch.plugins))
        document, results, paths = write_report(plan, ledger)
        needed = needed_trials(plan, results.race)
        unfinished = [trial for trial in needed if not _is_over(trial, plan, ledger)]
        tracker.close([*results.effects, *results.noise], paths, needed)
    if len(unfinished) < len(needed):
        show(document, console)
    tell_where(paths[0], launch, console)
    return _conclude(unfinished, ledger, console)


def _warn_of_earlier_runs(plan: Plan, ledger: Ledger) -> None:
    """Say what the study's directory has that this plan leaves out, or trains again."""
    if missing := left_out(plan, ledger):
        warn(
            f"left out of the report, though this study has it: {', '.join(missing)} "
            "(--stages, --cells and --seeds name all of a study)"
        )
    if count := outdated(plan, ledger):
        kept = keep_plan(ledger)
        warn(
            f"{count} finished trials are of other code, blocks or versions than today's, and are "
            f"trained again; {kept.name} keeps their plan (as study.json in a copy of the "
            "directory it reports them again)"
        )


def _is_over(trial: Trial, plan: Plan, ledger: Ledger) -> bool:
    """Return whether a trial asks for no more training: finished or, by ASHA, stopped."""
    stopped = plan.exploratory and ledger.stopped(trial) is not None
    return stopped or ledger.result(trial) is not None


def tell_where(report: Path, launch: Launch, console: Console) -> None:
    """Say where the report is, in the output asked for."""
    if launch.output == "quiet":
        print(report)
    elif launch.output == "json":
        print(json.dumps({"event": "report", "path": str(report)}))
    store_words = without_passwords(launch.mlflow)
    store = "" if launch.mlflow == DEFAULT_STORE else f" --mlflow {store_words}"
    where = f"\nreport: {report}\nMLflow: {store_words} (ablate ui{store})"
    console.print(where, highlight=False, markup=False, soft_wrap=True)


def run_looks(
    plan: Plan, ledger: Ledger, run: Callable[[Sequence[Trial]], None], console: Console
) -> None:
    """Run a race: what each look needs, then the next look; failed trials are tried once more.

    All it goes by is in the ledger. Returns early where a run was interrupted.
    """
    tried: set[str] = set()
    while True:
        race = race_so_far(plan, ledger)
        next_look = plan.looks[min(len(race.looks), len(plan.looks) - 1)]
        remaining = [
            trial
            for trial in needed_trials(plan, race)
            if trial.seed < next_look and trial.key not in tried and ledger.result(trial) is None
        ]
        if not remaining:
            return
        for look in race.looks[-1:]:
            console.print(look_words(look), highlight=False, markup=False)
        # Once more in this run, not for ever: a trial that always fails must not hold up the looks.
        tried |= {trial.key for trial in remaining}
        run(remaining)
        if any(ledger.result(t) is None and ledger.failure(t) is None for t in remaining):
            return


def _conclude(unfinished: Sequence[Trial], ledger: Ledger, console: Console) -> int:
    failed = [trial for trial in unfinished if ledger.failure(trial) is not None]
    if len(failed) < len(unfinished):
        console.print(
            f"stopped with {len(unfinished) - len(failed)} trials left; "
            "the same command goes on from here",
            style="yellow",
        )
        return INTERRUPTED
    if failed:
        console.print(
            f"{len(failed)} trial{'s' if len(failed) > 1 else ''} failed "
            f"(see {ledger.directory}/trials/*/error.txt); the same command tries them again",
            style="red",
        )
        return SOME_FAILED
    return DONE
