"""One study's runs in one MLflow store: a parent, a child per trial, one per contrast.

Everything comes from the ledger. What the store has already is noted in the study's
``mlflow.json``, so that a continued study continues the same runs, and nothing is sent twice.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from ablate.core.files import digest, read_json, write_json
from ablate.core.ledger import Ledger
from ablate.core.plan import Plan, read_launches
from ablate.core.provenance import without_passwords
from ablate.core.trial import Stage, Trial
from ablate.stats.effects import Effect
from ablate.tracking import mlflow_batches
from ablate.tracking.mlflow_batches import MAX_VALUE
from ablate.tracking.mlflow_store import absolute_store, connect, is_active, make_experiment
from ablate.tracking.mlflow_views import views
from assemblies.config import flatten

MODEL_BYTES = 64 * 2**20  # a model above is left in the study's directory: sizes small and up
MODEL_FILES = (".json", ".safetensors")  # never a pickle
EFFECT_NUMBERS = ("estimate", "low", "high", "p", "p_adjusted")
TRIAL, EFFECT, STUDY = "trial", "effect", "study"
log = logging.getLogger(__name__)


class StudyRuns:
    """Writes one study into one store. Every call does so at once, and may raise what MLflow does.

    ``models`` is whether trials' models are copied; None: those of at most 64 MiB. ``note`` is of
    this launch; without one it is the last that the study's plan has.
    """

    def __init__(
        self,
        plan: Plan,
        ledger: Ledger,
        uri: str,
        *,
        models: bool | None = None,
        note: Mapping[str, Any] | None = None,
    ) -> None:
        self.plan, self.ledger, self.uri = plan, ledger, absolute_store(uri)
        self.models, self.note = models, note
        self.manifest = ledger.directory / "mlflow.json"
        self.notes: dict[str, Any] = {}
        self.client: Any = None

    @property
    def parent(self) -> str:
        """Return the id of the study's run."""
        return str(self.notes["parent"])

    def connect(self, warn: Callable[[str], None]) -> None:
        """Find or create the experiment and the study's run; ``warn`` is told what looks odd."""
        self.client = None
        client = connect(self.uri, warn)
        number = make_experiment(client, self.uri)
        noted = (read_json(self.manifest) or {}).get(without_passwords(self.uri)) or {}
        groups = ("children", "effects", "searches", "artifacts")
        fresh = {"experiment": number, "parent": "", **{name: {} for name in groups}}
        again = noted.get("experiment") == number and is_active(client, noted.get("parent", ""))
        self.notes, self.client = {**fresh, **noted} if again else fresh, client
        if again:
            client.update_run(self.parent, status="RUNNING")
            self._reconcile()
        else:
            self.notes["parent"] = self.create(self.ledger.directory.name, STUDY, {})
            self.remember()
        self._describe_study()
        self._offer_views()

    def answers(self) -> bool:
        """Return whether the store takes anything at all now."""
        try:
            self.client.set_tag(self.parent, "ablate.study", self.ledger.directory.name)
        except Exception:
            log.debug("MLflow", exc_info=True)
            return False
        return True

    def started(self, trial: Trial) -> None:
        """Create the trial's run, or set it running again."""
        child = self._child(trial)
        self._clear_failure(child)
        child["final"] = False
        self.client.update_run(child["run"], status="RUNNING")

    def measured(self, trial: Trial) -> bool:
        """Copy what the trial's curve has gained; returns whether it had."""
        child = self._child(trial)
        points = _timed(self.ledger.curve(trial), child["began"])
        new = [point for point in points if point["step"] > child["step"]]
        if new:
            mlflow_batches.log_metrics(self.client, child["run"], new)
            child["step"] = new[-1]["step"]
            self.remember()
        return bool(new)

    def finished(self, trial: Trial) -> bool:
        """Copy the trial's result and its models, and end its run; False if all was there."""
        child = self._child(trial)
        record, metrics = self.ledger.result(trial), self.ledger.metrics(trial)
        if child["final"] or record is None or metrics is None:
            return False
        self.measured(trial)
        end = child["began"] + 1000 * metrics["train_seconds"]
        mlflow_batches.log_metrics(
            self.client, child["run"], [{"step": trial.steps, "time": end, **metrics}]
        )
        self.client.set_tag(child["run"], "ablate.device", record["device"])
        self._clear_failure(child)
        for stage in trial.stages:
            self._log_model(child["run"], trial, stage)
        self.client.set_terminated(child["run"], "FINISHED", end_time=int(end))
        child["final"] = True
        self.remember()
        return True

    def failed(self, trial: Trial, reason: str) -> bool:
        """Mark the trial's run as failed, with the reason; False if it was."""
        child = self._child(trial)
        self.measured(trial)
        last = (reason.strip().splitlines() or ["unknown"])[-1][:1000]
        if child.get("failed") == last:
            return False
        self.client.set_tag(child["run"], "ablate.failure", last)
        self.client.set_terminated(child["run"], "FAILED")
        child["failed"] = last
        self.remember()
        return True

    def caught_up(self, trial: Trial) -> bool:
        """Copy whatever the ledger has of a trial; returns whether anything was missing."""
        if self.ledger.result(trial) is not None:
            return self.finished(trial)
        reason = self.ledger.failure(trial)
        if reason is not None:
            return self.failed(trial, reason)
        return bool(self.ledger.curve(trial)) and self.measured(trial)

    def write_effects(self, effects: Iterable[Effect]) -> int:
        """Write a run per contrast, or bring it up to date; returns how many changed."""
        seen = [effect for effect in effects if effect.seeds]
        by_contrast = sorted(seen, key=lambda effect: effect.contrast)
        effects_of = {
            k: list(v) for k, v in groupby(by_contrast, key=lambda effect: effect.contrast)
        }
        changed = sum(
            [self._write_effect(name, of_contrast) for name, of_contrast in effects_of.items()]
        )
        for name, run in self.notes["effects"].items():
            changed += self._mark(run, name in effects_of)
        return changed

    def write_artifacts(self, paths: Iterable[Path]) -> int:
        """Copy files of the study to its run, under ``report``; returns how many had changed."""
        changed = 0
        for path in paths:
            place = Path("report")
            if path.is_relative_to(self.ledger.directory):
                place /= path.relative_to(self.ledger.directory).parent
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            name = str(place / path.name)
            if self.notes["artifacts"].get(name) != content:
                self.client.log_artifact(self.parent, str(path), str(place))
                self.notes["artifacts"][name] = content
                changed += 1
                self.remember()
        return changed

    def write_sample(self, sample: Mapping[str, float]) -> None:
        """Log how busy the machine is, on the study's run."""
        if sample:
            self.notes["samples"] = self.notes.get("samples", 0) + 1
            mlflow_batches.log_metrics(
                self.client, self.parent, [{"step": self.notes["samples"], **sample}]
            )

    def ended(self, needed: Sequence[Trial], broken: str = "") -> None:
        """End the study's run, and those of trials that were stopped, as the ledger has them.

        ``needed`` are the trials that the study needs: a race may end before all of its plan.
        ``broken`` is the status of a study that did not come to its end.
        """
        remaining = [trial for trial in needed if self.ledger.result(trial) is None]
        failures = [trial for trial in remaining if self.ledger.failure(trial) is not None]
        for child in self.notes["children"].values():
            if not child["final"] and "failed" not in child:
                self.client.set_terminated(child["run"], "KILLED")
        done = f"{len(needed) - len(remaining)} of {len(needed)} done"
        self.client.set_tag(self.parent, "ablate.trials", done)
        status = broken or ("FAILED" if failures else "KILLED" if remaining else "FINISHED")
        self.client.set_terminated(self.parent, status)
        self.remember()

    def _clear_failure(self, child: dict[str, Any]) -> None:
        if child.pop("failed", None) is not None:
            self.client.delete_tag(child["run"], "ablate.failure")

    def _reconcile(self) -> None:
        """Forget runs that were deleted in the store, adopt those that a kill left unnoted."""
        chosen = f"tags.`mlflow.parentRunId` = '{self.parent}'"
        there: dict[str, Any] = {}
        token: str | None = None
        while token is None or token:
            page = self.client.search_runs(
                [self.notes["experiment"]], chosen, max_results=1000, page_token=token
            )
            there |= {run.info.run_id: run for run in page}
            token = page.token or ""
        noted = set()
        for group in (self.notes[name] for name in ("children", "effects", "searches")):
            for key in [k for k, entry in group.items() if entry["run"] not in there]:
                del group[key]
            noted |= {entry["run"] for entry in group.values()}
        planned = {trial.key for trial in self.plan.trials}
        for run in (run for number, run in there.items() if number not in noted):
            is_trial = run.data.tags.get("ablate.role") == TRIAL  # a search's run has a key as well
            key = run.data.tags.get("ablate.key")
            if is_trial and key in planned - self.notes["children"].keys():
                self.notes["children"][key] = _entry(run.info.run_id, run.info.start_time)
        for key, child in self.notes["children"].items():
            self._mark(child, key in planned)
        self.remember()

    def _mark(self, entry: dict[str, Any], current: bool) -> bool:
        """Tag a run with whether it still belongs to the study; returns whether that is new."""
        if entry.get("current", True) == current:
            return False
        self.client.set_tag(entry["run"], "ablate.current", str(current).lower())
        entry["current"] = current
        return True

    def create(self, name: str, role: str, tags: Mapping[str, str], began: int = 0) -> str:
        """Create a run, under the study's unless it is that, and return its id."""
        everyone = {
            "mlflow.runName": name,
            "mlflow.source.name": "ablate.run",
            "mlflow.source.type": "LOCAL",
            "ablate.role": role,
            "ablate.current": "true",
            "ablate.study": self.ledger.directory.name,
        }
        nested = {} if role == STUDY else {"mlflow.parentRunId": self.parent}
        values = {k: v[:MAX_VALUE] for k, v in {**everyone, **nested, **tags}.items()}
        began = began or mlflow_batches.now()
        run = self.client.create_run(self.notes["experiment"], start_time=began, tags=values)
        return str(run.info.run_id)

    def _describe_study(self) -> None:
        """Set the study's tags: what it is, and where this launch runs."""
        launch = self.note or (read_launches(self.ledger.directory) or [{}])[-1]
        packages = launch.get("packages", {})
        tags = {
            "ablate.grid": self.plan.grid,
            "ablate.size": self.plan.size,
            "ablate.seeds": self.plan.seeds,
            "ablate.decides": self.plan.decides,
            "mlflow.note.content": f"Grid {self.plan.grid}: {self.plan.summary}.",
            "ablate.data_skipped": "; ".join(
                f"{n} x {why}" for why, n in self.plan.data_skipped.items()
            )
            or "none",
            **{f"ablate.{k}": v for k, v in launch.items() if isinstance(v, str)},
            **{f"ablate.version.{name}": number for name, number in packages.items()},
        }
        if re.fullmatch(r"[0-9a-f]{40}(\+changes)?", launch.get("git", "")):
            tags["mlflow.source.git.commit"] = launch["git"][:40]
        mlflow_batches.log_tags(self.client, self.parent, tags)
        mlflow_batches.log_data(self.client, self.parent, self.plan.stages)

    def _offer_views(self) -> None:
        """Offer ready-made views; their format is MLflow's own affair, so that it may refuse."""
        tags = views(
            self.parent, [stage.prefix for stage in self.plan.stages[1:]], self.plan.decides
        )
        for tag, view in tags.items():
            if len(view) <= MAX_VALUE and self.notes.get(tag) != view:
                try:
                    self.client.set_experiment_tag(self.notes["experiment"], tag, view)
                    self.notes[tag] = view
                except Exception:
                    log.debug("no shared view", exc_info=True)
        self.remember()

    def _child(self, trial: Trial) -> dict[str, Any]:
        """Return what is known of the trial's run, created where there is none."""
        entry: dict[str, Any] | None = self.notes["children"].get(trial.key)
        if entry is None:
            spelt = trial.cell.spellings().items()
            tags = {f"block.{path}": spelling for path, (_, spelling) in spelt}
            tags |= {"ablate.cell": trial.name, "ablate.key": trial.key}
            began = mlflow_batches.now()
            run = self.create(f"{trial.name} seed {trial.seed}", TRIAL, tags, began)
            entry = self.notes["children"][trial.key] = _entry(run, began)
            self.remember()
        entry.setdefault("began", mlflow_batches.now())  # noted by an earlier version
        if not entry.get("described"):
            mlflow_batches.log_params(self.client, entry["run"], _parameters(trial, self.plan))
            mlflow_batches.log_data(self.client, entry["run"], trial.stages)
            entry["described"] = True
            self.remember()
        return entry

    def _write_effect(self, name: str, effects: Sequence[Effect]) -> bool:
        numbers = {
            f"{effect.metric}/{number}": float(getattr(effect, number))
            for effect in effects
            for number in EFFECT_NUMBERS
        }
        numbers |= {f"{effect.metric}/seeds": float(len(effect.seeds)) for effect in effects}
        words = {f"ablate.verdict.{effect.metric}": effect.verdict for effect in effects}
        decisive = [e for e in effects if e.metric == self.plan.decides] or effects
        primary = self.plan.primary is not None and self.plan.primary.name == name
        tags = {"ablate.contrast": name, "ablate.verdict": decisive[0].verdict, **words}
        tags["ablate.primary"] = str(primary).lower()
        state = digest([{k: repr(v) for k, v in numbers.items()}, tags])
        entry = self.notes["effects"].get(name)
        if entry is None:
            run = self.create(name, EFFECT, {"ablate.contrast": name})
            entry = self.notes["effects"][name] = {"run": run, "state": "", "writes": 0}
            self.remember()
        if entry["state"] == state:
            return False
        # Each change is a step of its own, since MLflow shows the value of the highest step.
        finite = {k: v for k, v in numbers.items() if math.isfinite(v)}
        mlflow_batches.log_metrics(
            self.client, entry["run"], [{"step": entry["writes"] + 1, **finite}]
        )
        mlflow_batches.log_tags(self.client, entry["run"], tags)
        self.client.set_terminated(entry["run"], "FINISHED")
        entry |= {"state": state, "writes": entry["writes"] + 1}
        self.remember()
        return True

    def _log_model(self, run: str, trial: Trial, stage: Stage) -> None:
        """Copy a stage's best model as a folder of safetensors and JSON."""
        folder = self.ledger.folder(trial) / stage.folder / "model"
        files = [path for path in sorted(folder.iterdir()) if path.suffix in MODEL_FILES]
        small = sum(path.stat().st_size for path in files) <= MODEL_BYTES
        if small if self.models is None else self.models:
            for path in files:
                self.client.log_artifact(run, str(path), f"{stage.prefix}model")

    def remember(self) -> None:
        """Note what the store has. A password stays out of a file that is handed on."""
        noted = read_json(self.manifest) or {}
        write_json(self.manifest, {**noted, without_passwords(self.uri): self.notes})


def _entry(run: str, began: int) -> dict[str, Any]:
    return {"run": run, "step": 0, "final": False, "began": began}


def _timed(curve: Iterable[Mapping[str, Any]], began: int) -> list[dict[str, Any]]:
    """Return a curve with times in milliseconds, the same whenever it is sent.

    They come from its seconds of training, which each stage counts anew: sent again after a kill, a
    point replaces itself.
    """
    points, before, last = [], 0.0, 0.0
    for line in curve:
        seconds = float(line.get("seconds", last))
        if seconds < last:
            before, last = before + last, 0.0
        last = seconds
        numbers = {k: v for k, v in line.items() if k != "seconds"}  # the time says the same
        points.append({**numbers, "time": began + 1000 * (before + seconds)})
    return points


def _parameters(trial: Trial, plan: Plan) -> dict[str, Any]:
    """Return what a trial is, flat: its cell, recipe, data and cost."""
    recipe = {f"recipe.{k}": v for k, v in dataclasses.asdict(trial.recipe).items()}
    for stage in trial.stages[1:]:
        fields = dataclasses.asdict(stage.recipe)
        recipe |= {
            f"{stage.prefix}recipe.{k}": v for k, v in fields.items() if v != recipe[f"recipe.{k}"]
        }
    facts = {
        "cell": trial.name,
        "seed": trial.stream,
        "pair": trial.seed,
        "stages": len(trial.stages),
    }
    facts |= {f"{s.prefix}data_fingerprint": s.data_fingerprint for s in trial.stages}
    cost = dataclasses.asdict(plan.costs[trial.name])
    return {**facts, **flatten(trial.cell), **recipe, **cost}
