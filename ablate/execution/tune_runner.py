"""Runs trials side by side under Ray Tune; with `cluster` and `worker` the importers of Ray."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from ablate.core.ledger import Ledger
from ablate.core.metrics import SELECTION
from ablate.core.resources import Resources
from ablate.core.trial import Trial, device_kind, to_dict
from ablate.execution import ray_cluster as cluster
from ablate.execution.ray_worker import UNWRITABLE, train
from ablate.execution.study_log import study_log
from blocks import UsageError, default_registry

MAX_CRASHES = 2  # a trial that crashes (out of memory, killed) is started again this often
log = logging.getLogger(__name__)


def execute(
    trials: Sequence[Trial],
    ledger: Ledger,
    *,
    plugins: tuple[str, ...],
    resources: Resources,
    watchers: Sequence[Watcher],
    asha: bool = False,
) -> None:
    """Run trials; results are in the ledger. Returns early, and cleanly, on Ctrl-C or SIGTERM.

    Where that came too late to leave a trial undone, it is raised: the caller may have more to run.
    With ``asha``, the worse half of the trials stop at each look at the validation split.

    Ray is started on this machine, unless the resources are a running cluster's. Raises
    `UsageError` where the study's directory cannot be written (any more), or not by all nodes, and
    where trials would train on another kind of device than their keys say.
    """
    if not trials:
        return
    refuse_other_device(resources)
    for trial in trials:
        ledger.forget_failure(trial)
    shared = bool(resources.address)
    with study_log(ledger.directory), cluster.session():
        cluster.start(resources)
        if shared:
            cluster.check_shared(ledger.directory)
        relay = _relay(trials, ledger, watchers, asha)
        order, scheduler = launch_order(trials), _asha(trials[0]) if asha else None
        with _scratch(ledger.directory if shared else None) as scratch:
            # Tune's own files are scratch: it restores from pickles, and the ledger is the record.
            tuner = _tuner(order, ledger, plugins, resources, scratch, relay, scheduler)
            with _graceful_termination() as asked:
                tuner.fit()
    if relay.unwritable:
        raise UsageError(
            f"cannot write study {str(ledger.directory)!r}: {relay.unwritable}; "
            "the same command goes on from here"
        )
    if asked and all(_has_ended(trial, ledger) for trial in trials):
        raise KeyboardInterrupt  # it came too late for these, and whoever asked has others to run


def _has_ended(trial: Trial, ledger: Ledger) -> bool:
    ends = ledger.result(trial), ledger.failure(trial), ledger.stopped(trial)
    return ends != (None, None, None)


def refuse_other_device(resources: Resources) -> None:
    """Raise `UsageError` unless trials get the kind of device that this process planned them for.

    Numbers depend on it, so it is in the trials' keys.
    """
    planned, offered = device_kind(), "cuda" if resources.gpus else "cpu"
    if planned == offered:
        return
    cure = (
        "hide its GPUs from the command, with CUDA_VISIBLE_DEVICES="
        if planned == "cuda"
        else "start the command on a node with a GPU, or say --gpus-per-trial 0"
    )
    raise UsageError(
        f"trials would train on {offered}, but the machine that plans them has {planned}: {cure}"
    )


def launch_order(trials: Sequence[Trial]) -> list[Trial]:
    """Return trials seed by seed, the cells of each seed mixed: a study stopped early is balanced.

    Nor does a drift of the machine fall on the same cells each time. Keys are hashes, so their
    order is a mixed one, and the same whenever a study goes on.
    """
    return sorted(trials, key=lambda trial: (trial.seed, trial.key))


def _tuner(
    trials: Sequence[Trial],
    ledger: Ledger,
    plugins: tuple[str, ...],
    resources: Resources,
    scratch: Path,
    relay: Any,
    scheduler: Any,
) -> Any:
    """Return Tune, ready to run the trials in this order."""
    from ray import tune

    # Ray has less than the machine had when it was planned; a trial that asks for more would
    # wait for ever without a word.
    memory = min(resources.memory, cluster.largest_memory())
    share = {"CPU": resources.cpus, "GPU": resources.gpus, "memory": memory}
    shared = {
        "study": str(ledger.directory.resolve()),
        "scratch": str(scratch),
        "plugins": plugins,
        "registry": default_registry(plugins).fingerprint(),
        "device": device_kind(),
        "threads": resources.threads,
        "workers": resources.workers,
        "share": share,
        "here": str(Path.cwd()),
    }
    jobs = [{"key": trial.key, "trial": to_dict(trial), **shared} for trial in trials]
    alone = resources.workers == 1
    # With workers, Tune's own process only waits for them; Tune wants it to hold something.
    resources_of_tune = (
        {k.lower(): v for k, v in share.items()} if alone else {"cpu": 0, "memory": 1}
    )
    return tune.Tuner(
        tune.with_resources(train, resources_of_tune),
        param_space={"job": tune.grid_search(jobs)},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=resources.slots,
            scheduler=scheduler,
            reuse_actors=True,  # a new process for each trial would import torch again
            trial_name_creator=_trial_id,
            trial_dirname_creator=_trial_id,
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(scratch),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=MAX_CRASHES),
            callbacks=[relay],
            progress_reporter=_silent_reporter(),
        ),
    )


def _asha(trial: Trial) -> Any:
    """Return asynchronous successive halving (arXiv 1810.05934) by the validation CoCa loss."""
    from ray.tune.schedulers import ASHAScheduler

    steps, looks = trial.recipe.steps, trial.recipe.evaluate
    return ASHAScheduler(
        time_attr="step",
        metric=f"val/{SELECTION}",
        mode="min",
        grace_period=max(1, round(steps / looks)),
        reduction_factor=2,
        max_t=steps + 1,  # at the last step a trial has its test split still to see
    )


def _relay(trials: Sequence[Trial], ledger: Ledger, watchers: Sequence[Watcher], asha: bool) -> Any:
    """Return Tune's view of some watchers. An error here would abort the study, hence the care."""
    from ray.tune import Callback

    class Relay(Callback):  # type: ignore[misc]
        # Held here and not by closure: Tune pickles the class, and these cannot be pickled.
        def __init__(
            self, by_key: dict[str, Trial], ledger: Ledger, watchers: Sequence[Watcher]
        ) -> None:
            self.by_key, self.ledger, self.watchers = by_key, ledger, watchers
            self.unwritable = ""

        def __getstate__(self) -> dict[str, Any]:
            return {}  # Tune pickles its callbacks in order to restore them, which we never do

        def ours(self, trial: Any) -> Trial:
            return self.by_key[trial.config["job"]["key"]]

        def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            _tell(self.watchers, "started", self.ours(trial))

        def on_trial_result(
            self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            if UNWRITABLE in result:
                self.unwritable = self.unwritable or result[UNWRITABLE]
                os.kill(os.getpid(), signal.SIGUSR1)  # Tune stops: no trial could go on
                return
            metrics = {k: v for k, v in result.items() if "/" in k or k in ("step", "seconds")}
            _tell(self.watchers, "measured", self.ours(trial), metrics)

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            ours = self.ours(trial)
            if asha and self.ledger.result(ours) is None and self.ledger.failure(ours) is None:
                step = self.ledger.record_stop(ours)
                _tell(self.watchers, "stopped", ours, step)
                return
            _conclude(ours, self.ledger, self.watchers)

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            _conclude(self.ours(trial), self.ledger, self.watchers)

    return Relay({trial.key: trial for trial in trials}, ledger, watchers)


def _silent_reporter() -> Any:
    """Return a reporter of Tune's that says nothing: ours does."""
    from ray.tune import ProgressReporter

    class Silent(ProgressReporter):  # type: ignore[misc]
        def should_report(self, trials: Any, done: bool = False) -> bool:
            return False

        def report(self, trials: Any, done: bool, *system_info: Any) -> None:
            assert not done, "never asked to report"

    return Silent()


def _conclude(trial: Trial, ledger: Ledger, watchers: Sequence[Watcher]) -> None:
    """Tell the watchers how a trial ended, as the ledger has it."""
    if (metrics := ledger.metrics(trial)) is not None:
        ledger.forget_failure(trial)
        _tell(watchers, "finished", trial, metrics)
        return
    reason = ledger.failure(trial)
    if reason is None:
        reason = "its worker process died (out of memory, or killed)"
        _quietly(ledger.record_failure, trial, reason)
    _tell(watchers, "failed", trial, reason)


def _tell(watchers: Sequence[Watcher], event: str, *details: Any) -> None:
    """Tell every watcher of an event, whatever the others make of it."""
    for watcher in watchers:
        _quietly(getattr(watcher, event), *details)


def _quietly(call: Any, *arguments: Any) -> None:
    """Call a watcher or the ledger; what it raises is logged and never stops a trial."""
    try:
        call(*arguments)
    except Exception:
        log.exception("the study goes on without this")


def _trial_id(trial: Any) -> str:
    return str(trial.config["job"]["key"][:16])


@contextmanager
def _scratch(shared: Path | None) -> Iterator[Path]:
    """Hold Tune's own files for the run; the study's ledger is the record, not they.

    On a cluster they are in the study's directory, which all nodes see.
    """
    directory = Path(tempfile.mkdtemp(prefix=".ablate-", dir=shared and shared.resolve()))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _graceful_termination() -> Iterator[list[int]]:
    """Stop Tune in an orderly way on Ctrl-C and SIGTERM; a second Ctrl-C stops at once.

    Yields the signals that asked for it.
    """
    asked: list[int] = []

    def stop(number: int, frame: Any) -> None:
        print("stopping (some seconds; again to stop at once) ...", file=sys.stderr, flush=True)
        asked.append(number)
        signal.signal(signal.SIGINT, before[signal.SIGINT])
        if not callable(signal.getsignal(signal.SIGUSR1)):  # Tune is not listening yet
            raise KeyboardInterrupt
        os.kill(os.getpid(), signal.SIGUSR1)

    numbers = signal.SIGINT, signal.SIGTERM, signal.SIGUSR1
    before = {number: signal.getsignal(number) for number in numbers}
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    try:
        yield asked
    finally:  # Tune leaves its own behind, which would swallow the signals of the next run
        for number, handler in before.items():
            signal.signal(number, handler)


class Watcher(Protocol):
    """What the executor tells while trials run."""

    def started(self, trial: Trial) -> None:
        """A trial begins or goes on."""

    def measured(self, trial: Trial, metrics: dict[str, float]) -> None:
        """A trial has new metrics."""

    def finished(self, trial: Trial, metrics: dict[str, float]) -> None:
        """A trial has its result."""

    def failed(self, trial: Trial, reason: str) -> None:
        """A trial has failed for good."""

    def stopped(self, trial: Trial, step: int) -> None:
        """ASHA has stopped a trial."""
