"""What MLflow holds of a study: sqlite files, a real server, broken stores and locked ones."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from rich.console import Console
from tracked import Study, effects_of, runs_of, track, wait_until

from ablate.cli.command import main
from ablate.core.ledger import Ledger
from ablate.core.search_results import Outcome, write_outcomes
from ablate.core.trial import Trial
from ablate.driver.run_study import Launch, run_study
from ablate.stats.effects import Effect
from ablate.tracking import mlflow_batches
from ablate.tracking.mlflow_views import TAG, view_key
from ablate.tracking.tracker import Tracker
from blocks import UsageError


def contents(file: Path) -> dict[str, list[Any]]:
    """Return what a sqlite store says about runs."""
    tables = ("metrics", "params", "tags", "inputs", "experiment_tags")
    with sqlite3.connect(file) as database:
        found = {t: sorted(map(repr, database.execute(f"select * from {t}"))) for t in tables}
    database.close()
    return found


def test_a_study_has_a_parent_trials_and_effects(study: Study, store: str, tmp_path: Path) -> None:
    plan, ledger = study
    said: list[str] = []
    track(plan, ledger, store, said)
    assert said == []
    client = MlflowClient(tracking_uri=store)
    (parent,) = runs_of(store, "study").values()
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["ablate.trials"] == "4 of 4 done"
    assert parent.data.tags["ablate.python"] == sys.version.split()[0]
    assert parent.data.tags["ablate.version.torch"].startswith("2.")
    assert {a.path for a in client.list_artifacts(parent.info.run_id, "report")} == {
        "report/report.html", "report/report.md",
    }  # fmt: skip
    trials = runs_of(store, "trial")
    assert set(trials) == {f"{cell} seed {s}" for cell in ("baseline", "grr") for s in (0, 1)}
    for trial in plan.trials:
        check_trial(client, trials[f"{trial.name} seed {trial.seed}"], trial, ledger)
    check_effects(runs_of(store, "effect"), effects_of(plan, ledger), parent.info.run_id)
    experiment = client.get_experiment_by_name("coca-blocks")
    for role in ("trial", "effect"):
        view = experiment.tags[TAG + view_key(parent.info.run_id, role)]
        assert view.startswith("deflate;")
        assert len(view) < 5000


def check_trial(client: MlflowClient, run: Any, trial: Trial, ledger: Ledger) -> None:
    assert run.info.status == "FINISHED"
    assert run.data.tags["ablate.current"] == "true"
    assert run.data.tags["block.image.norm"] == run.data.params["image.norm"]
    assert run.data.params["cell"] == trial.name
    expected = ledger.metrics(trial)
    assert expected is not None
    assert run.data.metrics["test/coca"] == expected["test/coca"]
    assert run.data.metrics["later/test/coca"] == expected["later/test/coca"]
    assert run.info.end_time - run.info.start_time == int(1000 * expected["train_seconds"])
    curve = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(p.step, p.value) for p in curve] == [
        (line["step"], line["train/loss"]) for line in ledger.curve(trial) if "train/loss" in line
    ]
    assert [p.timestamp for p in curve] == sorted(p.timestamp for p in curve)
    inputs = {i.dataset.name: (i.dataset.digest, i.tags) for i in run.inputs.dataset_inputs}
    assert set(inputs) == {stage.recipe.data for stage in trial.stages}
    for stage in trial.stages:
        digest, tags = inputs[stage.recipe.data]
        assert digest == stage.data_fingerprint[:36]
        assert {(t.key, t.value) for t in tags} >= {("mlflow.data.context", "train")}
        files = client.list_artifacts(run.info.run_id, f"{stage.prefix}model")
        assert {Path(file.path).name for file in files} == {
            "config.json", "model.safetensors", "tokenizer.json",
        }  # fmt: skip


def check_effects(runs: dict[str, Any], effects: list[Effect], parent: str) -> None:
    assert set(runs) == {effect.contrast for effect in effects}
    for effect in effects:
        run = runs[effect.contrast]
        assert run.data.tags["mlflow.parentRunId"] == parent
        assert run.data.tags["ablate.contrast"] == effect.contrast
        assert run.data.metrics[f"{effect.metric}/estimate"] == effect.estimate
        assert run.data.metrics[f"{effect.metric}/p_adjusted"] == effect.p_adjusted
        assert run.data.tags[f"ablate.verdict.{effect.metric}"] == effect.verdict
        if effect.metric == "coca":
            assert run.data.tags["ablate.verdict"] == effect.verdict


def test_a_continued_study_continues_the_same_runs(
    study: Study, store: str, tmp_path: Path
) -> None:
    plan, ledger = study
    said: list[str] = []
    half = replace(plan, trials=plan.trials[:2], seeds=1)
    track(half, ledger, store, said)
    before = runs_of(store, "trial") | runs_of(store, "study") | runs_of(store, "effect")
    track(plan, ledger, store, said)
    after = runs_of(store, "trial") | runs_of(store, "study") | runs_of(store, "effect")
    assert said == []
    assert len(after) == len(before) + 2
    assert all(after[name].info.run_id == run.info.run_id for name, run in before.items())
    contrast = plan.contrasts[0].name
    assert before[contrast].data.metrics["coca/seeds"] == 1
    assert after[contrast].data.metrics["coca/seeds"] == 2
    track(half, ledger, store, said)  # back to fewer seeds: the effect is that of the plan
    effects, trials = runs_of(store, "effect"), runs_of(store, "trial")
    assert effects[contrast].data.metrics["coca/seeds"] == 1
    current = {name for name, run in trials.items() if run.data.tags["ablate.current"] == "true"}
    assert current == {f"{t.name} seed {t.seed}" for t in half.trials}


def test_what_is_sent_again_changes_nothing(study: Study, store: str, tmp_path: Path) -> None:
    plan, ledger = study
    file = tmp_path / "mlflow.db"
    track(plan, ledger, store, [])
    before = contents(file)
    noted = json.loads((ledger.directory / "mlflow.json").read_text())
    noted[store]["children"].pop(plan.trials[0].key)  # as after a kill between sending and noting
    for child in noted[store]["children"].values():
        child |= {"step": 0, "final": False, "described": False}
    (ledger.directory / "mlflow.json").write_text(json.dumps(noted))
    assert main(["sync", str(ledger.directory), "--mlflow", store]) == 0
    assert contents(file) == before


def test_a_failed_trial_says_why_until_it_succeeds(
    study: Study, store: str, tmp_path: Path
) -> None:
    plan, ledger = study
    lost = plan.trials[-1]
    shutil.move(ledger.folder(lost), tmp_path / "aside")
    ledger.record_failure(lost, "Traceback\nDivergedError: loss nan at step 3\n")
    track(plan, ledger, store, [])
    run = runs_of(store, "trial")[f"{lost.name} seed {lost.seed}"]
    assert run.info.status == "FAILED"
    assert run.data.tags["ablate.failure"] == "DivergedError: loss nan at step 3"
    (parent,) = runs_of(store, "study").values()
    assert parent.info.status == "FAILED"
    shutil.rmtree(ledger.folder(lost))
    shutil.move(tmp_path / "aside", ledger.folder(lost))
    track(plan, ledger, store, [])
    run = runs_of(store, "trial")[f"{lost.name} seed {lost.seed}"]
    assert run.info.status == "FINISHED"
    assert "ablate.failure" not in run.data.tags


def test_a_study_ends_with_the_trials_that_it_needs(study: Study, store: str) -> None:
    plan, ledger = study
    (ledger.folder(plan.trials[-1]) / "result.json").unlink()
    for wanted, status in ((plan.trials, "KILLED"), (plan.trials[:-1], "FINISHED")):
        tracker = Tracker(plan, ledger, store, pytest.fail)
        tracker.open()
        tracker.close([], [], wanted)
        (parent,) = runs_of(store, "study").values()
        assert parent.info.status == status


@pytest.mark.parametrize(("raised", "status"), [
    (UsageError("no space left"), "FAILED"), (KeyboardInterrupt(), "KILLED"),
])  # fmt: skip
def test_a_study_that_breaks_off_ends_its_run_and_the_writer(
    study: Study, store: str, raised: BaseException, status: str
) -> None:
    plan, ledger = study
    with pytest.raises(type(raised)), Tracker(plan, ledger, store, pytest.fail) as tracker:
        raise raised
    assert not tracker.writer.is_alive()
    (parent,) = runs_of(store, "study").values()
    assert parent.info.status == status
    assert {run.info.status for run in runs_of(store, "trial").values()} == {"FINISHED"}


def test_a_report_that_cannot_be_made_leaves_no_run_running(study: Study, store: str) -> None:
    plan, ledger = study
    one, other = (ledger.folder(plan.of_cell(cell)[0]) for cell in ("baseline", "grr"))
    pairs = zip(sorted(one.rglob("*.jsonl")), sorted(other.rglob("*.jsonl")), strict=True)
    for curve, copy in pairs:
        shutil.copy(curve, copy)
    launch = Launch(mlflow=store, output="quiet")
    with pytest.raises(UsageError, match="identical curves"):
        run_study(plan, ledger, launch, Console(quiet=True))
    assert "mlflow" not in {thread.name for thread in threading.enumerate()}
    (parent,) = runs_of(store, "study").values()
    assert parent.info.status == "FAILED"


def test_the_machine_is_looked_at_while_a_study_runs(
    study: Study, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, ledger = study
    monkeypatch.setattr("ablate.tracking.tracker.INTERVAL", 0.05)
    monkeypatch.setattr("ablate.tracking.tracker.SAMPLE_SECONDS", 0.0)
    tracker = Tracker(plan, ledger, store, pytest.fail)
    tracker.open()
    wait_until(lambda: tracker.runs.notes.get("samples", 0) > 2)
    tracker.close([], [], plan.trials)
    (parent,) = runs_of(store, "study").values()
    assert 0 < parent.data.metrics["system/system_memory_usage_percentage"] <= 100


def test_models_are_left_out_when_told(study: Study, store: str, tmp_path: Path) -> None:
    plan, ledger = study
    track(plan, ledger, store, [], models=False)
    client = MlflowClient(tracking_uri=store)
    for run in runs_of(store, "trial").values():
        assert client.list_artifacts(run.info.run_id) == []
    assert not list(tmp_path.rglob("mlartifacts/**/*.safetensors"))


def test_no_call_waits_for_a_locked_store(study: Study, store: str, tmp_path: Path) -> None:
    plan, ledger = study
    blocker = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
    blocker.execute("begin exclusive")
    try:
        said: list[str] = []
        tracker = Tracker(plan, ledger, store, said.append, patience=0.5)
        tracker.open()
        for trial in plan.trials:
            tracker.measured(trial, {})
            tracker.finished(trial, {})
        tracker.close(effects_of(plan, ledger), [], plan.trials)  # all while the lock is held
    finally:
        blocker.execute("rollback")
        blocker.close()
    assert f"ablate sync {ledger.directory} --mlflow {store}" in said[-1]
    tracker.writer.join(timeout=60)
    assert not tracker.writer.is_alive()
    assert main(["sync", str(ledger.directory), "--mlflow", store]) == 0
    assert {run.info.status for run in runs_of(store, "trial").values()} == {"FINISHED"}


def test_one_thing_that_the_store_refuses_holds_up_nothing_else(
    study: Study, store: str, tmp_path: Path
) -> None:
    plan, ledger = study
    said: list[str] = []
    damaged = ledger.folder(plan.trials[0]) / "curve.jsonl"
    damaged.write_text('{"step": 1, "train/loss": "many"}\n')
    track(plan, ledger, store, said)
    assert "could not convert" in said[0]
    assert "ablate sync" in said[1]
    statuses = {name: run.info.status for name, run in runs_of(store, "trial").items()}
    assert sorted(statuses.values()) == ["FINISHED", "FINISHED", "FINISHED", "KILLED"]


def test_a_search_trial_has_one_run_however_often_it_is_sent(
    study: Study, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, ledger = study
    over = Outcome(subject="grr", number=3, values={"lr": 0.1}, loss=3.5, state="complete")
    write_outcomes({"grr": [over]}, ledger.directory)
    log_params, tried = mlflow_batches.log_params, []

    def hiccup(client: Any, run: str, values: dict[str, Any]) -> None:
        if "number" in values:
            tried.append(run)
            if len(tried) < 3:
                raise ConnectionError("a hiccup")
        log_params(client, run, values)

    monkeypatch.setattr(mlflow_batches, "log_params", hiccup)
    said: list[str] = []
    track(plan, ledger, store, said)
    assert "a hiccup" in said[0]
    track(plan, ledger, store, [])
    track(plan, ledger, store, [])
    (run,) = runs_of(store, "search").values()
    assert tried == [run.info.run_id] * 3
    assert (run.info.status, run.data.metrics["val/coca"]) == ("FINISHED", 3.5)
    MlflowClient(tracking_uri=store).delete_run(run.info.run_id)
    track(plan, ledger, store, [])
    (again,) = runs_of(store, "search").values()
    assert (again.info.status, again.info.run_id != run.info.run_id) == ("FINISHED", True)


def test_sync_fills_a_fresh_store_and_then_has_nothing_to_do(
    study: Study, store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, ledger = study
    store, file = f"sqlite:///{tmp_path}/fresh.db", tmp_path / "fresh.db"
    command = [str(ledger.directory), "--mlflow", store]
    assert main(["sync", *command]) == 0
    shown = capsys.readouterr().out
    assert "brought up to date 4 of 4 trials, 2 of 2 files of the report, effects: 1" in shown
    before = contents(file)
    assert main(["sync", *command]) == 0
    assert "0 of 4 trials, 0 of 2 files of the report, effects: 0" in capsys.readouterr().out
    assert contents(file) == before
    client = MlflowClient(tracking_uri=store)
    lost = next(iter(runs_of(store, "trial").values()))
    client.delete_run(lost.info.run_id)
    (ledger.directory / "report.md").write_text("# Another report")
    assert main(["sync", *command]) == 0
    assert "1 of 4 trials, 1 of 2 files of the report, effects: 0" in capsys.readouterr().out
    assert lost.info.run_name in runs_of(store, "trial")


def test_sync_tells_what_it_cannot_do(
    study: Study, store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, ledger = study
    assert main(["sync", str(tmp_path)]) == 2
    assert "is no study" in capsys.readouterr().err
    assert main(["sync", str(ledger.directory), "--mlflow", "http://127.0.0.1:9"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "MLflow store http://127.0.0.1:9: does not answer (Connection refused)"
    ]
    client = MlflowClient(tracking_uri=store)
    client.delete_experiment(client.create_experiment("coca-blocks"))
    assert main(["sync", str(ledger.directory), "--mlflow", store]) == 1
    assert "was deleted; restore it with `mlflow experiments restore" in capsys.readouterr().err
    with ledger.locked():
        owner = subprocess.run(
            [sys.executable, "-m", "ablate", "sync", str(ledger.directory)],
            capture_output=True, text=True, cwd=tmp_path,
        )  # fmt: skip
    assert owner.returncode == 2, owner.stderr
    assert f"is in use by process {os.getpid()}" in owner.stderr


def test_a_study_at_odds_with_itself_is_not_the_stores_problem(
    study: Study, store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, ledger = study
    before = contents(tmp_path / "mlflow.db")
    one, other = (ledger.folder(plan.of_cell(cell)[0]) for cell in ("baseline", "grr"))
    for curve, copy in zip(
        sorted(one.rglob("*.jsonl")), sorted(other.rglob("*.jsonl")), strict=True
    ):
        shutil.copy(curve, copy)
    assert main(["sync", str(ledger.directory), "--mlflow", store]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: cells 'baseline' and 'grr' have identical curves with seed 0")
    assert contents(tmp_path / "mlflow.db") == before
