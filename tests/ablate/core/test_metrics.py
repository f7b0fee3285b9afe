"""The one list of metrics: what is measured, compared and decided by."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from samples import small
from studies import finish, planned, write_result

from ablate.analysis.results import make_results
from ablate.core import metrics
from ablate.core.ledger import Ledger
from ablate.core.metrics import METRICS, Metric, compared
from ablate.core.plan import Plan, read_plan, write_plan
from ablate.core.recipe import Recipe, with_fields
from ablate.data.dataset import open_dataset
from ablate.report.build import write_report
from ablate.tracking.mlflow_views import views
from ablate.training.captioning import Captioner
from ablate.training.evaluate import evaluate, evaluate_captions
from ablate.training.optim import autocast
from assemblies import CoCa
from blocks import default_registry

ACCURACY = Metric(key="accuracy", label="probe accuracy", direction="higher", compared=True)


def test_what_evaluation_measures_is_the_list(shapes: str) -> None:
    recipe = with_fields(Recipe(), {"data": shapes, "evaluation_batch": 16})
    data = open_dataset(recipe, small())
    model = CoCa(small(), seed=0, registry=default_registry())
    captioner = Captioner(model, data.tokenizer)
    precision = autocast("fp32", captioner.device)
    measured = evaluate(model, data.splits["test"], recipe, captioner.device, precision)
    measured |= evaluate_captions(captioner, data.pairs, "test")
    assert measured.keys() == METRICS.keys()


def with_accuracy(plan: Plan, ledger: Ledger) -> None:
    """Give every trial an accuracy that rises with grr, by 2% of the reference's."""
    for trial in plan.trials:
        gain = 1.02 + 0.0001 * (trial.seed - 1) if trial.name == "grr" else 1.0
        value = 0.5 * gain * (1 + 0.001 * trial.seed)
        write_result(plan, ledger, trial, trial.stages[0], 0.3, **{"test/accuracy": value})


@pytest.fixture
def study(shapes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Plan, Ledger]:
    plan, ledger = planned(tmp_path, shapes, grid="paper", seeds=3)
    finish(plan, ledger)
    with_accuracy(plan, ledger)
    monkeypatch.setitem(metrics.METRICS, "accuracy", ACCURACY)
    return plan, ledger


def test_an_added_metric_is_in_report_figures_csv_and_views(study: tuple[Plan, Ledger]) -> None:
    plan, ledger = study
    document, results, _ = write_report(plan, ledger)
    effect = results.of("baseline -> grr", "accuracy")
    assert effect is not None
    assert effect.estimate == pytest.approx(2.0)  # a rise is an improvement
    assert effect.verdict == "improved"
    report = (ledger.directory / "report.md").read_text(encoding="utf-8")
    assert "probe accuracy %" in report
    assert "| probe accuracy | CoCa loss of the last weights |" in report  # of the cells
    assert "probe accuracy" in (ledger.directory / "effects.svg").read_text(encoding="utf-8")
    with (ledger.directory / "effects.csv").open(newline="") as file:
        assert "accuracy" in {row["metric"] for row in csv.DictReader(file)}
    assert len(views("x", [], plan.decides)) == 2
    assert "improves the CoCa loss" in document.opening[0]  # what decides stays


def test_the_plan_says_which_metric_decides(study: tuple[Plan, Ledger]) -> None:
    plan, ledger = study
    write_plan(dataclasses.replace(plan, decides="accuracy"), ledger.directory, {})
    again = read_plan(ledger.directory)
    assert again.decides == "accuracy"
    document, _, _ = write_report(again, ledger)
    assert document.opening[0].startswith("baseline -> grr improves the probe accuracy by +2.00%")
    assert "verdict (probe accuracy)" in (ledger.directory / "report.md").read_text("utf-8")


@contextmanager
def reordered() -> Iterator[None]:
    """Hold the list the other way round."""
    before = dict(METRICS)
    METRICS.clear()
    METRICS.update(reversed(before.items()))
    yield
    METRICS.clear()
    METRICS.update(before)


def test_the_order_of_the_list_is_that_of_columns_and_nothing_else(
    study: tuple[Plan, Ledger],
) -> None:
    plan, ledger = study
    # As text: a metric that was not measured has NaN, which no NaN equals.
    before = {(e.contrast, e.metric): str(e) for e in make_results(plan, ledger).effects}
    write_report(plan, ledger)
    verdicts = verdicts_of(ledger)
    with reordered():
        assert next(compared()).key == "accuracy"
        after = {(e.contrast, e.metric): str(e) for e in make_results(plan, ledger).effects}
        write_report(plan, ledger)
    assert after == before
    assert verdicts_of(ledger) == verdicts


def verdicts_of(ledger: Ledger) -> dict[str, str]:
    """Return the verdicts of the report's table of effects, with the column's header."""
    lines = (ledger.directory / "report.md").read_text(encoding="utf-8").splitlines()
    start = lines.index("### Effects: pretrain")
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in lines[start + 2 : start + 6]]
    return {row[0]: row[-1] for row in rows if len(row) > 1 and set(row[0]) != {"-"}}
