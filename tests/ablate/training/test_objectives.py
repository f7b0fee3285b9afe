"""Studies of models with one objective: all that is measured of them is shown, and no more."""

from __future__ import annotations

from pathlib import Path

import pytest
from studies import finish, planned

from ablate.analysis.results import make_results
from ablate.cli.command import main
from ablate.core.metrics import METRICS, compared
from ablate.core.records import read_examples
from ablate.figures import cell_figures
from ablate.figures import effect_figures as figures
from ablate.figures.caption_sheet import draw_captions
from ablate.figures.catalogue import DRAWINGS
from ablate.report.verify_bundle import verify
from ablate.training.stages import run_trial
from blocks import default_registry

REGISTRY = default_registry()
MEASURED = {"contrastive": ["contrastive", "coca"], "captioning": ["perplexity", "coca"]}


def keys() -> list[str]:
    return [metric.key for metric in compared()]


@pytest.mark.parametrize("objective", MEASURED)
def test_results_of_planned_studies_are_what_training_measures(
    objective: str, shapes: str, tmp_path: Path
) -> None:
    changed = {"objective": objective, "steps": 2, "evaluate": 1}
    plan, ledger = planned(tmp_path, shapes, grid="paper", seeds=2, changed=changed)
    made, trained = plan.trials[:2]
    finish(plan, ledger, but=[trained])
    assert [*run_trial(trained, ledger.folder(trained), REGISTRY)]
    ours, theirs = (ledger.metrics(trial) or {} for trial in (made, trained))
    assert ours.keys() <= theirs.keys()
    for found in (ours, theirs):
        assert [m for m in keys() if f"test/{m}" in found] == MEASURED[objective]
    first, second = (read_examples(ledger.folder(trial)) or {} for trial in (made, trained))
    assert first.keys() == second.keys() != set()
    first, second = (ledger.result(trial) or {} for trial in (made, trained))
    assert first["built"].keys() == second["built"].keys()


@pytest.mark.parametrize("grid", ["paper", "full"])
@pytest.mark.parametrize("objective", MEASURED)
def test_figures_have_a_panel_for_each_metric_that_was_measured(
    grid: str, objective: str, shapes: str, tmp_path: Path
) -> None:
    plan, ledger = planned(tmp_path, shapes, grid=grid, seeds=3, changed={"objective": objective})
    finish(plan, ledger)
    found = make_results(plan, ledger)
    titles = [METRICS[metric].label for metric in MEASURED[objective]]

    def panels(drawing: figures.Drawing | None) -> list[str]:
        assert drawing is not None
        return [panel.get_title("left") for panel in drawing.axes]

    assert panels(figures.forest(plan, found)) == [titles[0], f"{titles[1]} (decides)"]
    assert panels(figures.slopes(plan, make_results(plan, ledger))) == titles
    curves = panels(cell_figures.curves(plan, make_results(plan, ledger)))
    assert curves[:2] == [f"validation {title}" for title in titles]
    assert len(curves) == 4
    assert len(panels(cell_figures.cost_against_quality(plan, make_results(plan, ledger)))) == 2
    if grid == "full":
        assert panels(figures.shapley(found)) == titles
        assert len(panels(figures.interactions(plan, make_results(plan, ledger)))) == 3
    assert draw_captions(plan, ledger, REGISTRY) == []


@pytest.mark.parametrize(("grid", "objective"), [
    ("paper", "captioning"), ("paper", "contrastive"),
    pytest.param("full", "captioning", marks=pytest.mark.slow),
    pytest.param("full", "contrastive", marks=pytest.mark.slow),
])  # fmt: skip
def test_a_study_of_one_objective_is_reported_bundled_and_verified(
    grid: str, objective: str, shapes: str, tmp_path: Path
) -> None:
    study, out = tmp_path / "study", tmp_path / "study.zip"
    plan, ledger = planned(
        study, shapes, grid=grid, seeds=3, sources=[shapes], changed={"objective": objective}
    )
    finish(plan, ledger)
    assert main(["bundle", str(study), str(out)]) == 0
    assert verify(out) == []
    missing = {"search"} if grid == "full" else {"search", "shapley", "interactions"}
    assert {path.stem for path in study.glob("*.svg")} == set(DRAWINGS) - missing
    assert "improves the CoCa loss" in (study / "report.md").read_text(encoding="utf-8")
