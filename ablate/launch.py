"""Runs or continues a planned study: trials, MLflow, the report."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from ablate import progress
from ablate.cluster import find_nodes, session, start
from ablate.contact_sheet import draw_captions
from ablate.document import Document
from ablate.findings import held_race
from ablate.ledger import Ledger
from ablate.log import study_log
from ablate.mlflow_store import DEFAULT_STORE
from ablate.plan import FILE, Plan, read_plan, write_plan
from ablate.provenance import launch_note, without_passwords
from ablate.race import look_words, needed
from ablate.report import write_report
from ablate.resources import Resources, Scheduling, choose_resources
from ablate.tracking import Tracker
from ablate.trial import Trial
from assemblies.config import flatten
from blocks import UsageError, default_registry

DONE, SOME_FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130
MOST_NAMED = 4  # changes of a study's settings that an error names


class Watchers:
    """Passes what happens on to the terminal and to MLflow."""

    def __init__(self, shown: progress.Progress, tracker: Tracker) -> None:
        self.shown, self.tracker = shown, tracker

    def started(self, trial: Trial) -> None:
        """A trial begins or goes on."""
        self.shown.started(trial)
        self.tracker.started(trial)

    def measured(self, trial: Trial, metrics: dict[str, float]) -> None:
        """A trial has new metrics."""
        self.shown.measured(trial, metrics)
        self.tracker.measured(trial, metrics)

    def finished(self, trial: Trial, metrics: dict[str, float]) -> None:
        """A trial has its result."""
        self.shown.finished(trial, metrics)
        self.tracker.finished(trial, metrics)

    def failed(self, trial: Trial, reason: str) -> None:
        """A trial has failed for good."""
        self.shown.failed(trial, reason)
        self.tracker.failed(trial, reason)

    def stopped(self, trial: Trial, step: int) -> None:
        """ASHA has stopped a trial; its run in MLflow ends with the study's."""
        self.shown.stopped(trial, step)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How a study is run: what changes none of its numbers.

    ``arguments`` are those of the command, for the record; ``output`` is one of
    `ablate.progress.OUTPUTS`; ``models`` whether MLflow gets trials' models (None: small ones);
    ``memory`` and ``gpu_memory`` are the bytes that a trial is predicted
    to need, 0 where nothing is known.
    """

    arguments: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()
    mlflow: str = DEFAULT_STORE
    models: bool | None = None
    output: str = "auto"
    scheduling: Scheduling = field(default_factory=Scheduling)
    memory: int = 0
    gpu_memory: int = 0

    def resources(self) -> Resources:
        """Return what a trial gets, of this machine or of the cluster; raises `UsageError`."""
        nodes = find_nodes(self.scheduling.address)
        needs = {"memory": self.memory, "gpu_memory": self.gpu_memory}
        return choose_resources(self.scheduling, nodes, **needs)


def warn(text: str) -> None:
    """Tell a person what is not as it should be, apart from the command's output."""
    Console(stderr=True).print(text, style="yellow", markup=False)


def run_study(plan: Plan, ledger: Ledger, launch: Launch, console: Console) -> int:
    """Run what is left of a plan, write the report, and return the exit code."""
    from ablate.execute import execute

    resources = launch.resources()
    if resources.note:
        warn(resources.note)
    with ledger.locked(), study_log(ledger.directory), ExitStack() as stack:
        refuse_other_study(plan, ledger)
        _warn_of_earlier_runs(plan, ledger)
        write_plan(plan, ledger.directory, launch_note(launch.arguments))
        left = [trial for trial in plan.trials if not _is_over(trial, plan, ledger)]
        if done := len(plan.trials) - len(left):
            console.print(f"{done} of {len(plan.trials)} trials are already in the ledger")

        def run(left: Sequence[Trial]) -> None:
            done = {t: found for t in plan.trials if (found := ledger.metrics(t)) is not None}
            with progress.make_progress(left, done, console, launch.output) as shown:
                watchers = Watchers(shown, tracker)
                execute(
                    left,
                    ledger,
                    plugins=launch.plugins,
                    resources=resources,
                    watcher=watchers,
                    asha=plan.exploratory,
                )

        with session():
            ahead = needed(plan, held_race(plan, ledger) if plan.looks else None)
            if not all(_is_over(trial, plan, ledger) for trial in ahead):
                start(resources)  # before MLflow's thread looks for credentials: HOME changes
            tracker = stack.enter_context(
                Tracker(plan, ledger, launch.mlflow, warn, models=launch.models)
            )
            if plan.looks:
                run_looks(plan, ledger, run, console)
            else:
                run(left)
        draw_captions(plan, ledger, default_registry(launch.plugins))
        document, findings, paths = write_report(plan, ledger)
        wanted = needed(plan, findings.race)
        unfinished = [trial for trial in wanted if not _is_over(trial, plan, ledger)]
        tracker.close([*findings.effects, *findings.noise], paths, wanted)
    if len(unfinished) < len(wanted):
        show(document, console)
    tell_where(paths[0], launch, console)
    return _conclude(unfinished, ledger, console)


def _warn_of_earlier_runs(plan: Plan, ledger: Ledger) -> None:
    """Say what the study's directory has that this plan leaves out, or trains again."""
    if left_out := _left_out(plan, ledger):
        warn(
            f"left out of the report, though this study has it: {', '.join(left_out)} "
            "(--stages, --cells and --seeds name all of a study)"
        )
    if count := outdated(plan, ledger):
        kept = keep_plan(ledger)
        warn(
            f"{count} finished trials are of other code, blocks or versions than today's, and are "
            f"trained again; {kept.name} keeps their plan (as study.json in a copy of the "
            "directory it reports them again)"
        )


def keep_plan(ledger: Ledger) -> Path:
    """Copy a plan, before it is replaced, to a name of its own: else no report has its trials."""
    numbers = itertools.count(1)
    kept = next(p for n in numbers if not (p := ledger.directory / f"study-{n}.json").exists())
    shutil.copyfile(ledger.directory / FILE, kept)
    return kept


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
    shown = without_passwords(launch.mlflow)
    store = "" if launch.mlflow == DEFAULT_STORE else f" --mlflow {shown}"
    where = f"\nreport: {report}\nMLflow: {shown} (python -m ablate.ui{store})"
    console.print(where, highlight=False, markup=False, soft_wrap=True)


def run_looks(
    plan: Plan, ledger: Ledger, run: Callable[[Sequence[Trial]], None], console: Console
) -> None:
    """Run a race: what each look needs, then the next look; failed trials are tried once more.

    All it goes by is in the ledger. Returns early where a run was interrupted.
    """
    tried: set[str] = set()
    while True:
        race = held_race(plan, ledger)
        next_look = plan.looks[min(len(race.looks), len(plan.looks) - 1)]
        left = [
            trial
            for trial in needed(plan, race)
            if trial.pair < next_look and trial.key not in tried and ledger.result(trial) is None
        ]
        if not left:
            return
        for look in race.looks[-1:]:
            console.print(look_words(look), highlight=False, markup=False)
        tried |= {trial.key for trial in left}
        run(left)
        if any(ledger.result(t) is None and ledger.failure(t) is None for t in left):
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


def refuse_other_study(plan: Plan, ledger: Ledger) -> None:
    """Refuse a directory that holds another study, whose report would be overwritten.

    One that was stopped before its first trial has nothing to lose.
    """
    if not (ledger.directory / FILE).exists() or not (ledger.directory / "trials").exists():
        return
    before, now = _identity(read_plan(ledger.directory)), _identity(plan)
    # Another set to fine-tune on may be added, or left out, any time: only shared stages count.
    shared = before.keys() & now.keys()
    changed = sorted(f"{k}={before[k]!r}, now {now[k]!r}" for k in shared if before[k] != now[k])
    if changed:
        more = f"; and {len(changed) - MOST_NAMED} others" * (len(changed) > MOST_NAMED)
        named = "; ".join(changed[:MOST_NAMED])
        raise UsageError(
            f"study {str(ledger.directory)!r} was run with {named}{more}; "
            "give this one a directory of its own with --study"
        )


def _identity(plan: Plan) -> dict[str, Any]:
    """Return what makes a study another one, by name."""
    found: dict[str, Any] = {"grid": plan.grid, "size": plan.size}
    declared = plan.primary.name if plan.primary else ""
    found |= {"primary": declared, "exploratory": plan.exploratory, "looks": plan.looks}
    found["aim"] = plan.aim
    # Other seeds would leave the trials of those before out of the report.
    found |= {"smallest_effect": plan.smallest_effect, "first_seed": plan.first_seed}
    found |= {"search": plan.search.get("over", "no"), **_prefixed("search ", plan.search)}
    for stage in plan.stages:
        own = dataclasses.asdict(stage.recipe)
        shared = {name: value for name, value in own.items() if name not in plan.searched}
        found |= _prefixed(f"{stage.name} " if stage.is_finetuning else "", shared)
        found[f"{stage.name} data"] = stage.data_fingerprint[:16]
    for name, cell in plan.cells.items():
        found |= _prefixed(f"{name} ", flatten(cell))
    return found


def _prefixed(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}{name}": value for name, value in values.items()}


def _left_out(plan: Plan, ledger: Ledger) -> list[str]:
    """Return the cells, fine-tunings and seeds that the study had when it last ran, and has not."""
    if not (ledger.directory / FILE).exists():
        return []
    before = read_plan(ledger.directory)
    now = {*plan.cells, *(stage.name for stage in plan.stages)}
    left = [n for n in (*before.cells, *(s.name for s in before.stages)) if n not in now]
    seeds = sorted({t.pair for t in before.trials} - {t.pair for t in plan.trials})
    return left + [f"seed {seed}" for seed in seeds]


def outdated(plan: Plan, ledger: Ledger) -> int:
    """Return how many finished trials of the study's last run have other keys now."""
    if not (ledger.directory / FILE).exists():
        return 0
    now = {(t.name, t.seed): t.stages[0].key for t in plan.trials}
    before = [t for t in read_plan(ledger.directory).trials if (t.name, t.seed) in now]
    other = [t for t in before if t.stages[0].key != now[t.name, t.seed]]
    return sum(ledger.record(t, t.stages[0]) is not None for t in other)


def show(document: Document, console: Console) -> None:
    """Print a report's tables, what is doubtful, and the opening last, where the eye is."""
    for section in (s for s in document.sections if not s.folded):
        for table in section.tables:
            grid = RichTable(title=table.title, title_justify="left", box=None, pad_edge=False)
            for i, name in enumerate(table.header):
                grid.add_column(name, justify="left" if i == 0 else "right")
            for row in table.rows:
                grid.add_row(*(cell.replace("[", r"\[") for cell in row))
            console.print()
            console.print(grid)
        for item in section.items:
            console.print(item, highlight=False, markup=False)
    console.print()
    if document.stamp:
        console.print(document.stamp, style="yellow", highlight=False, markup=False)
    for sentence in document.opening:
        console.print(sentence, highlight=False, markup=False)
