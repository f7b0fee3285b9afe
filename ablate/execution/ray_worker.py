"""What runs inside Ray's worker processes: a trial, alone or on several workers by Ray Train."""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ablate.core.files import is_disk_error
from ablate.core.ledger import Ledger
from ablate.core.metrics import Metrics
from ablate.core.trial import device_kind, from_dict
from ablate.execution.study_log import redirect_output
from ablate.training.stages import run_trial
from ablate.training.train import DivergedError
from blocks import Registry, UsageError, default_registry

UNWRITABLE = "unwritable"  # the result by which a trial says so
PATIENCE_SECONDS = 24 * 3600  # workers wait for the first one while it evaluates


class FinalError(RuntimeError):
    """A failure that would only happen again."""


class UnwritableError(RuntimeError):
    """The study's disk takes no more: no other trial could go on either."""


def train(config: dict[str, Any]) -> None:
    """Run one trial of Tune's. A failure that is in the ledger already is not raised again."""
    from ray import tune

    job = config["job"]
    try:
        if job["workers"] == 1:
            for metrics in steps(job):
                tune.report(metrics)
        else:
            _train_on_workers(job)
    except Exception as error:
        if message := _said(UnwritableError, error):
            tune.report({UNWRITABLE: message})
        # Tune tries again what is raised; a divergence would only happen again.
        elif not _said(FinalError, error):
            raise


def steps(job: dict[str, Any]) -> Iterator[Metrics]:
    """Train and yield metrics; failures are recorded in the ledger."""
    import torch

    trial, ledger = from_dict(job["trial"]), Ledger(Path(job["study"]))
    redirect_output(ledger.directory)
    with suppress(OSError):  # a node without that folder has absolute paths only, and says so
        os.chdir(job["here"])
    # A reused worker has the threads of the trial before it.
    torch.set_num_threads(job["threads"])
    os.environ["OMP_NUM_THREADS"] = str(job["threads"])
    try:
        registry = default_registry(tuple(job["plugins"]))
        _refuse_other_numbers(job, registry)
        yield from run_trial(trial, ledger.folder(trial), registry)
    except Exception as error:
        if is_disk_error(error):
            raise UnwritableError(str(error)) from error
        ledger.record_failure(trial, traceback.format_exc())
        if isinstance(error, (DivergedError, UsageError)):
            raise FinalError(str(error)) from error
        raise


def _refuse_other_numbers(job: dict[str, Any], registry: Registry) -> None:
    """Raise `UsageError` where this worker would not compute what the trial's key says."""
    if registry.fingerprint() != job["registry"]:
        raise UsageError("this worker has other blocks than the driver: plugins or versions differ")
    if device_kind() != job["device"]:
        raise UsageError(
            f"this worker trains on {device_kind()}, but the trial was planned for {job['device']}"
        )


def _train_on_workers(job: dict[str, Any]) -> None:
    """Run one trial on several workers, whose first one's metrics go to Tune.

    Each has resources of its own; Tune's process only waits, and holds none.
    """
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    backend = "cpu:gloo,cuda:nccl" if job["share"]["GPU"] else "gloo"
    trainer = TorchTrainer(
        _rank,
        train_loop_config=job,
        torch_config=TorchConfig(backend=backend, timeout_s=PATIENCE_SECONDS),
        scaling_config=ScalingConfig(
            num_workers=job["workers"],
            use_gpu=bool(job["share"]["GPU"]),
            resources_per_worker=job["share"],
        ),
        run_config=RunConfig(
            name=job["key"],
            storage_path=job["scratch"],
            callbacks=[TuneReportCallback()],
            failure_config=FailureConfig(max_failures=0),  # Tune tries again
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    trainer.fit()


def _rank(job: dict[str, Any]) -> None:
    """Run one worker's part of a trial; all of them report, as Ray Train wants it."""
    import ray.train
    import ray.train.torch
    import torch

    logging.getLogger().setLevel(logging.WARNING)  # Ray Train logs every report otherwise
    if torch.cuda.is_available():
        torch.cuda.set_device(ray.train.torch.get_device())
    for metrics in steps(job):
        ray.train.report(metrics)


def _said(kind: type[Exception], error: Exception) -> str:
    """Return an error's message if it is of a kind, or if one of a trial's workers raised that.

    Ray Train passes on their tracebacks as text.
    """
    if isinstance(error, kind):
        return str(error) or kind.__name__
    lines = [line for line in str(error).splitlines() if f"{kind.__name__}: " in line]
    return lines[-1].partition(f"{kind.__name__}: ")[2] if lines else ""
