"""Runs trials side by side under Ray Tune; the only importer of Ray."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablate.ledger import Ledger
from ablate.progress import Watcher
from ablate.stages import run_trial
from ablate.train import DivergedError
from ablate.trial import Trial, from_dict, to_dict
from blocks import UsageError, default_registry

# Set before Ray is imported. One machine: everything listens on loopback and nothing phones home.
RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours says what happens, then does the same
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
# One thread each: two spinning thread pools on two cores were measured to be 6-15x slower. And one
# arena: Tune runs each trial in a new thread, and glibc would give each an arena that only grows.
WORKER_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
MAX_CRASHES = 2  # a trial that crashes (out of memory, killed) is started again this often
OBJECT_STORE_BYTES = (
    100 * 2**20
)  # trials pass no objects; Ray's default would take a third of memory
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """What one trial gets: CPU cores and GPUs, fractions of a GPU allowed."""

    cpus: float = 1
    gpus: float = 0

    @property
    def threads(self) -> int:
        """Return how many threads torch gets."""
        return max(1, int(self.cpus))


def cores() -> int:
    """Return the CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_resources(gpus_per_trial: float | None) -> Resources:
    """Return a trial's share: a GPU, or the fraction asked for, if there are any, else a core."""
    import torch

    found = torch.cuda.device_count()
    wanted = (1.0 if found else 0.0) if gpus_per_trial is None else gpus_per_trial
    if not 0 <= wanted <= found:
        raise UsageError(f"--gpus-per-trial {wanted:g}: this machine has {found} GPUs")
    if wanted > 1:
        raise UsageError(f"--gpus-per-trial {wanted:g}: a trial trains on one GPU or a part of one")
    if not wanted:
        return Resources(cpus=1, gpus=0)
    slots = found * int(1 / wanted)  # a trial's share is of one GPU
    return Resources(cpus=max(1, cores() // slots) if cores() >= slots else 0.5, gpus=wanted)


def side_by_side(resources: Resources) -> int:
    """Return how many trials run at a time on this machine."""
    import torch

    slots = int(cores() / resources.cpus)
    if resources.gpus:
        slots = min(slots, torch.cuda.device_count() * int(1 / resources.gpus))
    return max(1, slots)


def worker_environment() -> dict[str, str]:
    """Return the environment variables of a process that trains."""
    return WORKER_ENVIRONMENT | {"PYTHONPATH": _import_path()}


def execute(
    trials: Sequence[Trial],
    ledger: Ledger,
    *,
    plugins: tuple[str, ...],
    resources: Resources,
    watcher: Watcher,
) -> None:
    """Run trials; results are in the ledger. Returns early, and cleanly, on Ctrl-C or SIGTERM."""
    if not trials:
        return
    os.environ.update({k: v for k, v in RAY_ENVIRONMENT.items() if k not in os.environ})
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray
    from ray import tune

    fingerprint = default_registry(plugins).fingerprint()
    for trial in trials:
        ledger.forget_failure(trial)
    configs = [
        {
            "key": trial.key,
            "trial": to_dict(trial),
            "study": str(ledger.directory.resolve()),
            "plugins": plugins,
            "registry": fingerprint,
            "threads": resources.threads,
        }
        for trial in trials
    ]
    with _ray(), _scratch() as scratch, _graceful_termination():
        share = {"cpu": resources.cpus, "gpu": resources.gpus}
        tuner = tune.Tuner(
            tune.with_resources(_train, share),
            param_space={"job": tune.grid_search(configs)},
            tune_config=tune.TuneConfig(
                reuse_actors=True,  # a new process for each trial would import torch again
                trial_name_creator=_trial_id,
                trial_dirname_creator=_trial_id,
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=str(scratch),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=MAX_CRASHES),
                callbacks=[_relay(trials, ledger, watcher)],
                progress_reporter=_silent_reporter(),
            ),
        )
        tuner.fit()
        ray.shutdown()


def _train(config: dict[str, Any]) -> None:
    """Run one trial inside a Ray worker."""
    import torch
    from ray import tune

    job = config["job"]
    trial, ledger = from_dict(job["trial"]), Ledger(Path(job["study"]))
    torch.set_num_threads(job["threads"])
    registry = default_registry(tuple(job["plugins"]))
    if registry.fingerprint() != job["registry"]:
        raise RuntimeError(
            "this worker has other blocks than the driver: plugins or versions differ"
        )
    try:
        for metrics in run_trial(trial, ledger.folder(trial), registry):
            tune.report(metrics)
    except (DivergedError, UsageError):
        ledger.record_failure(trial, traceback.format_exc())  # it would only happen again
    except Exception:
        ledger.record_failure(trial, traceback.format_exc())
        raise


def _relay(trials: Sequence[Trial], ledger: Ledger, watcher: Watcher) -> Any:
    """Return Tune's view of a watcher. An error here would abort the study, hence the care."""
    from ray.tune import Callback

    class Relay(Callback):  # type: ignore[misc]
        def __init__(self, by_key: dict[str, Trial], ledger: Ledger, watcher: Watcher) -> None:
            self.by_key = by_key
            self.ledger, self.watcher = ledger, watcher

        def __getstate__(self) -> dict[str, Any]:
            return {}  # Tune pickles its callbacks in order to restore them, which we never do

        def ours(self, trial: Any) -> Trial:
            return self.by_key[trial.config["job"]["key"]]

        def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            _quietly(self.watcher.started, self.ours(trial))

        def on_trial_result(
            self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            metrics = {k: v for k, v in result.items() if "/" in k or k in ("step", "seconds")}
            _quietly(self.watcher.measured, self.ours(trial), metrics)

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            _conclude(self.ours(trial), self.ledger, self.watcher)

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            _conclude(self.ours(trial), self.ledger, self.watcher)

    return Relay({trial.key: trial for trial in trials}, ledger, watcher)


def _silent_reporter() -> Any:
    """Return a reporter of Tune's that says nothing: ours does."""
    from ray.tune import ProgressReporter

    class Silent(ProgressReporter):  # type: ignore[misc]
        def should_report(self, trials: Any, done: bool = False) -> bool:
            return False

        def report(self, trials: Any, done: bool, *system_info: Any) -> None:
            assert not done, "never asked to report"

    return Silent()


def _conclude(trial: Trial, ledger: Ledger, watcher: Watcher) -> None:
    """Tell the watcher how a trial ended, as the ledger has it."""
    if (metrics := ledger.metrics(trial)) is not None:
        ledger.forget_failure(trial)
        _quietly(watcher.finished, trial, metrics)
        return
    if ledger.failure(trial) is None:
        ledger.record_failure(trial, "its worker process died (out of memory, or killed)")
    _quietly(watcher.failed, trial, ledger.failure(trial))


def _quietly(call: Any, *arguments: Any) -> None:
    """Call a watcher; what it raises is logged and never stops a trial."""
    try:
        call(*arguments)
    except Exception:
        log.exception("a watcher failed; the study goes on")


def _trial_id(trial: Any) -> str:
    return str(trial.config["job"]["key"][:16])


@contextmanager
def _ray() -> Iterator[None]:
    import ray
    import torch

    for name in ("ray", "ray.tune", "ray.train"):  # failures are told by the watcher, in one line
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    ray.init(
        num_cpus=cores(),
        num_gpus=torch.cuda.device_count(),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.CRITICAL + 1,
        object_store_memory=OBJECT_STORE_BYTES,
        runtime_env={"env_vars": worker_environment()},
    )
    try:
        yield
    finally:
        ray.shutdown()


def _import_path() -> str:
    """Return the path under which workers find this package and what the driver could import."""
    here = str(Path(__file__).resolve().parent.parent)
    return os.pathsep.join(
        dict.fromkeys([here, *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    )


@contextmanager
def _scratch() -> Iterator[Path]:
    """Hold Tune's own files for the run; the study's ledger is the record, not they."""
    directory = Path(tempfile.mkdtemp(prefix="ablate-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _graceful_termination() -> Iterator[None]:
    """Stop Tune in an orderly way on Ctrl-C and SIGTERM; a second Ctrl-C stops at once."""

    def stop(number: int, frame: Any) -> None:
        print("stopping (some seconds; again to stop at once) ...", file=sys.stderr, flush=True)
        signal.signal(signal.SIGINT, before[signal.SIGINT])
        if not callable(signal.getsignal(signal.SIGUSR1)):  # Tune is not listening yet
            raise KeyboardInterrupt
        os.kill(os.getpid(), signal.SIGUSR1)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
