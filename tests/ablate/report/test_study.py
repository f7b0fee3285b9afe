from __future__ import annotations

import dataclasses
import inspect
import json
import math
import subprocess
import sys
import typing
from pathlib import Path

import nbformat
import numpy as np
import pytest
from commands import options_in
from matplotlib.figure import Figure
from nbclient import NotebookClient
from samples import SMALL
from studies import finish, planned

import ablate
from ablate.cli.run_options import RunOptions
from ablate.core.plan import Plan
from blocks import UsageError

ROOT = Path(__file__).parents[3]
TOUR = ROOT / "docs/tour.ipynb"


@pytest.fixture(scope="module")
def study(shapes: str, tmp_path_factory: pytest.TempPathFactory) -> ablate.Study:
    directory = tmp_path_factory.mktemp("study")
    plan, ledger = planned(directory, shapes, seeds=3)
    finish(plan, ledger, but=plan.trials[-1:])
    ledger.record_failure(plan.trials[-1], "Traceback\nDivergedError: loss nan at step 3\n")
    return ablate.Study.open(directory)


def test_importing_the_package_is_light_and_has_what_it_names() -> None:
    code = (
        "import ablate, json, sys; names = sorted(sys.modules)\n"
        "import ablate.run\n"
        "from ablate import Study, run\n"
        "assert callable(run) and run is ablate.run and run.__name__ == 'run'\n"
        "print(json.dumps(names))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "mlflow", "pandas", "matplotlib"} & set(json.loads(shown.stdout))
    with pytest.raises(AttributeError, match="has no attribute 'stduy'"):
        ablate.stduy  # noqa: B018


def test_trials_are_a_table(study: ablate.Study) -> None:
    found = study.trials
    assert list(found["cell"].unique()) == list(study.plan.cells)
    assert found["done"].sum() == len(study.plan.trials) - 1
    assert found.iloc[-1]["failure"] == "DivergedError: loss nan at step 3"
    assert found["test/coca"].notna().sum() == len(found) - 1
    assert repr(study).endswith(f"grid full, {len(found) - 1} of {len(found)} trials done>")


def test_effects_and_curves_are_tables(study: ablate.Study) -> None:
    found = study.effects.set_index(["contrast", "metric"])
    assert len(found) == 3 * (len(study.plan.contrasts) + 1)
    assert found.loc[("baseline -> grr", "coca"), "estimate"] == pytest.approx(
        study.results.of("baseline -> grr").estimate
    )
    curves = study.curves
    assert set(curves["step"]) == {5, 10, 15, 20}
    assert len(curves) == 4 * (len(study.plan.trials) - 1)


@pytest.mark.parametrize("name", ["forest", "slopes", "shapley", "interactions", "curves", "cost"])
def test_every_figure_is_drawn_by_name(name: str, study: ablate.Study) -> None:
    figure = getattr(study.plot, name)()
    assert isinstance(figure, Figure)
    assert figure.axes


def test_a_figure_shows_itself_in_a_notebook(study: ablate.Study) -> None:
    assert study.plot.slopes()._repr_png_().startswith(b"\x89PNG")


def test_a_forest_is_of_a_stage_that_exists(shapes: str, tmp_path: Path) -> None:
    plan, ledger = planned(tmp_path, shapes, grid="paper", seeds=3, sources=(shapes,))
    finish(plan, ledger)
    study = ablate.Study.open(tmp_path)
    means = {
        stage: [one.get_xdata()[0] for one in study.plot.forest(stage).axes[-1].lines]
        for stage in ("", "shapes", "finetune")
    }
    assert study.results.of("baseline -> grr", "shapes/coca").estimate in means["shapes"]
    assert study.results.of("baseline -> grr").estimate not in means["shapes"]
    assert means["shapes"] == means["finetune"]  # the mean of one
    with pytest.raises(UsageError, match="no fine-tuning named 'shaeps'; did you mean 'shapes'"):
        study.plot.forest("shaeps")
    assert study.plot.shapley() is None


def test_a_report_is_written_by_name(shapes: str, tmp_path: Path) -> None:
    plan, ledger = planned(tmp_path, shapes, grid="paper", seeds=3)
    finish(plan, ledger)
    assert ablate.Study.open(str(tmp_path)).report() == tmp_path / "report.html"
    assert (tmp_path / "report.html").exists()


def test_what_is_no_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no study"):
        ablate.Study.open(tmp_path)


def test_keyword_arguments_are_the_flags() -> None:
    options = RunOptions(
        grid="full", seeds=6, plan=True, quiet=False, study=None, noise_floor=False,
        smallest_effect=0.5, plugin=("a.py", "b"), race=True, looks=(3, 6), cells=("x(a=1,b=2)",),
        set={"lr": 0.002, "text.norm": "rmsnorm", "tokenizer": "3", "clip": math.inf},
    )  # fmt: skip
    assert options.command.startswith("python -m ablate.run --grid full --seeds 6 ")
    assert options_in(options.command) == options
    assert options.race == "improvements"


def test_the_signature_is_the_declaration() -> None:
    parameters = inspect.signature(ablate.run).parameters
    assert list(parameters) == [field.name for field in dataclasses.fields(RunOptions)]
    assert parameters["seeds"].annotation == "int | None"
    for field in dataclasses.fields(RunOptions):
        assert f"{field.name}: {field.metadata['flag'].help}" in str(ablate.run.__doc__)


@pytest.mark.parametrize(("given", "message"), [
    ({"sedes": 3}, "no argument named 'sedes'; did you mean 'seeds'"),
    ({"help": True}, "no argument named 'help'"),
    ({"seeds": [1, 2]}, r"seeds: .* integer, got \[1, 2\]"),
    ({"seeds": "six"}, "seeds: .* integer, got 'six'"),
    ({"seeds": True}, "seeds: .* integer, got True"),
    ({"plan": "yes"}, "plan: .* boolean, got 'yes'"),
    ({"plugin": "a.py"}, "plugin: .*, got 'a.py'"),
    ({"quiet": True, "json": True}, "choose one"),
    ({"grid": "ful"}, "did you mean 'full'"),
    ({"set": {"stpes": 3}}, "did you mean 'steps'"),
    ({"set": "lr"}, "set: .* dictionary, got 'lr'"),
    ({"mlflow": "foo://bar"}, "cannot log to --mlflow"),
    ({"study": __file__}, "is a file; name a directory"),
])  # fmt: skip
def test_mistakes_raise_and_never_leave_the_process(
    given: dict[str, typing.Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        ablate.run(**{"grid": "paper", **given})
    assert list(tmp_path.iterdir()) == []


def test_a_plan_is_printed_and_runs_nothing(
    shapes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {**SMALL, "data": shapes, "steps": 4, "batch": 16, "evaluation_batch": 16}
    planned = ablate.run("smoke", set=settings, seeds=2, plan=True, no_measure=True)
    assert isinstance(planned, Plan)
    assert [trial.name for trial in planned.trials] == ["baseline", "grr"] * 2
    assert "2 cells x 2 seeds" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_the_tours_outputs_are_stripped() -> None:
    notebook = nbformat.read(TOUR, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) > 5
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


@pytest.mark.slow
@pytest.mark.ray
def test_the_tour_runs(tmp_path: Path) -> None:
    notebook = nbformat.read(TOUR, as_version=4)
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources=where).execute()
    shown = {
        kind: text
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        for kind, text in output.get("data", {}).items()
    }
    assert "image/png" in shown
    study = ablate.Study.open(tmp_path / "tour")
    assert "6 of 6 trials done" in repr(study)
    assert np.isfinite(study.results.of("baseline -> grr").estimate)
    assert (tmp_path / "tour/report.html").exists()
    launches = json.loads((tmp_path / "tour/study.json").read_text())["launches"]
    assert "--grid paper --seeds 3" in launches[0]["command"]
