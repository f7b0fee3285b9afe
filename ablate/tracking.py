"""Writes studies to MLflow; the only writer, in the driver.

The ledger is the record and MLflow a copy. What a store has, up to which step, is noted in the
study's ``mlflow.json``, and `Tracker.sync` brings a store up to date from the ledger at any time.
An MLflow that fails is reported once and never stops a study.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ablate.effects import Effect
from ablate.files import read_json, write_json
from ablate.ledger import Ledger
from ablate.plan import Plan
from ablate.trial import Trial
from assemblies.config import flatten
from blocks import UsageError

EXPERIMENT = "coca-blocks"
DEFAULT_STORE = "sqlite:///mlflow.db"
STORES = ("sqlite:///", "http://", "https://", "postgresql", "mysql", "mssql", "databricks:")
BATCH = 500  # MLflow takes at most 1000 metrics a call
MLFLOW_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "GIT_PYTHON_REFRESH": "quiet",
}
log = logging.getLogger(__name__)


def absolute_store(uri: str) -> str:
    """Return a store's URI with the path of a relative sqlite file made absolute."""
    prefix = "sqlite:///"
    if uri.startswith(prefix) and not uri.startswith(prefix + "/"):
        return f"{prefix}{Path(uri.removeprefix(prefix)).resolve()}"
    return uri


def check_store(uri: str) -> None:
    """Refuse what cannot be an MLflow store; one that merely does not answer is another matter."""
    store = absolute_store(uri)
    if not store.startswith(STORES) and store != "databricks":
        raise UsageError(
            f"cannot log to --mlflow {uri!r}; write sqlite:///FILE.db or a server's http://HOST:PORT"
        )
    folder = Path(store.removeprefix("sqlite:///")).parent
    if store.startswith("sqlite:") and not folder.is_dir():
        raise UsageError(f"--mlflow {uri!r}: there is no folder {str(folder)!r}")


class Tracker:
    """Copies one study into one MLflow store: a parent run, and a child run per trial."""

    def __init__(self, plan: Plan, ledger: Ledger, uri: str, warn: Callable[[str], None]) -> None:
        self.plan, self.ledger, self.uri = plan, ledger, absolute_store(uri)
        self.warn, self.warned = warn, False
        self.manifest = ledger.directory / "mlflow.json"
        self.known: dict[str, Any] = {"experiment": "", "parent": "", "children": {}}
        self.client: Any = None

    def open(self) -> None:
        """Connect, and create or find the experiment and the parent run."""
        self._guard(self._open)

    def started(self, trial: Trial) -> None:
        """Create the trial's run, or set it running again."""
        self._guard(self._start, trial)

    def measured(self, trial: Trial, metrics: Mapping[str, float]) -> None:
        """Copy what the trial's curve has gained."""
        self._guard(self._log_curve, trial)

    def finished(self, trial: Trial, metrics: Mapping[str, float]) -> None:
        """Copy the trial's result and end its run."""
        self._guard(self._finish, trial)

    def failed(self, trial: Trial, reason: str) -> None:
        """Mark the trial's run as failed, with the reason."""
        self._guard(self._fail, trial, reason)

    def sync(self) -> None:
        """Copy everything in the ledger that the store does not have yet."""
        for trial in self.plan.trials:
            if self.ledger.result(trial) is not None:
                self._guard(self._finish, trial)

    def close(self, effects: list[Effect], artifacts: list[Path], *, complete: bool) -> None:
        """Log the effects and the report, and end the parent run."""
        self.sync()
        self._guard(self._close, effects, artifacts, complete)

    def _guard(self, call: Callable[..., None], *arguments: Any) -> None:
        if self.client is None and call != self._open:
            return
        try:
            call(*arguments)
        except Exception as error:  # any database or network error, of any backend
            log.debug("MLflow", exc_info=True)
            if not self.warned:
                self.warned = True
                reason = (str(error).strip() or repr(error)).splitlines()[0][:200]
                self.warn(
                    f"MLflow store {self.uri} does not answer: {reason}. The study goes on; "
                    "run the same command again later to bring MLflow up to date."
                )

    def _open(self) -> None:
        os.environ.update({k: v for k, v in MLFLOW_ENVIRONMENT.items() if k not in os.environ})
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):  # after the import, which sets levels of its own
            logging.getLogger(name).setLevel(logging.ERROR)

        client = MlflowClient(tracking_uri=self.uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        number = experiment.experiment_id if experiment else self._create_experiment(client)
        saved = (read_json(self.manifest) or {}).get(self.uri)
        if saved and saved["experiment"] == number and _exists(client, saved["parent"]):
            self.known = saved
            client.update_run(saved["parent"], status="RUNNING")
        else:
            self.known = {"experiment": number, "parent": "", "children": {}}
        self.client = client
        if not self.known["parent"]:
            self.known["parent"] = self._create_parent()
            self._remember()
        for name in ("size", "seeds"):
            client.set_tag(self.known["parent"], f"ablate.{name}", getattr(self.plan, name))
        skipped = "; ".join(f"{n} x {why}" for why, n in self.plan.data_skipped.items())
        client.set_tag(self.known["parent"], "ablate.data_skipped", skipped[:5000] or "none")

    def _create_experiment(self, client: Any) -> str:
        location = None
        if self.uri.startswith("sqlite:////"):
            folder = Path(self.uri.removeprefix("sqlite:///")).parent
            location = (folder / "mlartifacts").as_uri()
        return str(client.create_experiment(EXPERIMENT, artifact_location=location))

    def _create_parent(self) -> str:
        study = self.ledger.directory.name
        tags = {
            "mlflow.runName": study,
            "ablate.role": "study",
            "ablate.study": study,
            "ablate.grid": self.plan.grid,
            "mlflow.note.content": f"Grid {self.plan.grid}: {self.plan.summary}.",
        }
        run = self.client.create_run(self.known["experiment"], tags=tags)
        return str(run.info.run_id)

    def _start(self, trial: Trial) -> None:
        child = self.known["children"].get(trial.key)
        if child is None:
            self._create_child(trial)
        else:
            self.client.update_run(child["run"], status="RUNNING")

    def _create_child(self, trial: Trial) -> dict[str, Any]:
        blocks = {
            f"block.{path}": spelling for path, (_, spelling) in trial.cell.spellings().items()
        }
        tags = {
            "mlflow.parentRunId": self.known["parent"],
            "mlflow.runName": f"{trial.name} seed {trial.seed}",
            "ablate.role": "trial",
            "ablate.study": self.ledger.directory.name,
            "ablate.cell": trial.name,
            "ablate.key": trial.key,
            **blocks,
        }
        run = self.client.create_run(self.known["experiment"], tags=tags)
        recipe = {f"recipe.{k}": v for k, v in dataclasses.asdict(trial.recipe).items()}
        for stage in trial.stages[1:]:
            own = dataclasses.asdict(stage.recipe)
            recipe |= {
                f"{stage.prefix}recipe.{k}": v for k, v in own.items() if v != recipe[f"recipe.{k}"]
            }
        cost = dataclasses.asdict(self.plan.costs[trial.name])
        facts = {"cell": trial.name, "seed": trial.seed, "stages": len(trial.stages)}
        facts |= {f"{s.prefix}data_fingerprint": s.data_fingerprint for s in trial.stages}
        self._log_params(run.info.run_id, {**facts, **flatten(trial.cell), **recipe, **cost})
        child = {"run": str(run.info.run_id), "step": 0, "final": False}
        self.known["children"][trial.key] = child
        self._remember()
        return child

    def _log_params(self, run: str, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        self.client.log_batch(run, params=[Param(k, str(v)) for k, v in values.items()])

    def _log_curve(self, trial: Trial) -> None:
        child = self.known["children"].get(trial.key) or self._create_child(trial)
        new = [line for line in self.ledger.curve(trial) if line["step"] > child["step"]]
        if new:
            self._log_metrics(child["run"], new)
            child["step"] = new[-1]["step"]
            self._remember()

    def _log_metrics(self, run: str, lines: list[dict[str, Any]]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [
            Metric(metric_name(name), float(value), now, int(line["step"]))
            for line in lines
            for name, value in line.items()
            if name != "step"
        ]
        for start in range(0, len(metrics), BATCH):
            self.client.log_batch(run, metrics=metrics[start : start + BATCH])

    def _finish(self, trial: Trial) -> None:
        child = self.known["children"].get(trial.key) or self._create_child(trial)
        if child["final"]:
            return
        self._log_curve(trial)
        record, metrics = self.ledger.result(trial), self.ledger.metrics(trial)
        assert record is not None, trial.label
        assert metrics is not None, trial.label
        self._log_metrics(child["run"], [{"step": trial.steps, **metrics}])
        self.client.set_tag(child["run"], "ablate.device", record["device"])
        self.client.set_terminated(child["run"], "FINISHED")
        child["final"] = True
        self._remember()

    def _fail(self, trial: Trial, reason: str) -> None:
        child = self.known["children"].get(trial.key) or self._create_child(trial)
        self.client.set_tag(child["run"], "ablate.failure", reason.strip().splitlines()[-1][:1000])
        self.client.set_terminated(child["run"], "FAILED")

    def _close(self, effects: list[Effect], artifacts: list[Path], complete: bool) -> None:
        parent = self.known["parent"]
        done = sum(self.ledger.result(trial) is not None for trial in self.plan.trials)
        line: dict[str, Any] = {"step": done}
        for effect in effects:
            if effect.seeds:
                line[f"effect/{effect.contrast}/{effect.metric}"] = effect.estimate
        self._log_metrics(parent, [line])
        for path in artifacts:
            self.client.log_artifact(parent, str(path), "report")
        failed = False
        for trial in self.plan.trials:
            child = self.known["children"].get(trial.key)
            reason = self.ledger.failure(trial)
            failed = failed or reason is not None
            if child and not child["final"] and reason is None:
                self.client.set_terminated(child["run"], "KILLED")
        status = "FINISHED" if complete else "FAILED" if failed else "KILLED"
        self.client.set_terminated(parent, status)

    def _remember(self) -> None:
        write_json(self.manifest, {**(read_json(self.manifest) or {}), self.uri: self.known})


def metric_name(name: str) -> str:
    """Return a name that MLflow accepts."""
    return re.sub(r"[^\w\-. /:]", "_", name.replace("->", "to").replace("@", "_at_"))


def _exists(client: Any, run: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run).info.lifecycle_stage == "active")
    except MlflowException:
        return False
