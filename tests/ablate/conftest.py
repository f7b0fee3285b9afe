"""Fixtures of tests of MLflow: a finished study and stores, made once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from samples import SMALL, shapes_rows, write_shard
from tracked import REGISTRY, SHORT, Study, train

from ablate.core.ledger import Ledger
from ablate.core.plan import write_plan
from ablate.core.provenance import launch_note
from ablate.planning.planner import make_plan


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Return a study of four trials with one fine-tuning, trained without Ray."""
    folder = tmp_path_factory.mktemp("finished")
    rows = shapes_rows(400)
    sources = [
        f"webdataset:{write_shard(folder / f'{name}.tar', part)}"
        for name, part in {"shapes": rows[:400], "later": rows[400:]}.items()
    ]
    settings = {**SMALL, **SHORT, "data": sources[0]}
    plan = make_plan("paper", "nano", 2, settings, REGISTRY, sources[1:])
    ledger = Ledger(folder / "study")
    write_plan(plan, ledger.directory, launch_note(["--grid", "paper"]))
    for trial in plan.trials:
        train(trial, ledger)
    (ledger.directory / "report.html").write_text("<h1>What the study found</h1>")
    (ledger.directory / "report.md").write_text("# What the study found")
    return plan, ledger


@pytest.fixture
def study(finished: Study, tmp_path: Path) -> Study:
    """Return a copy of the finished study that a test may change."""
    shutil.copytree(finished[1].directory, tmp_path / "study")
    return finished[0], Ledger(tmp_path / "study")


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an MLflow database with nothing in it, which takes MLflow seconds to make."""
    file = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def store(empty: Path, tmp_path: Path) -> str:
    """Return the URI of a store of the test's own."""
    shutil.copy(empty, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"
