"""`--search` as a user types it: real Ray, real Optuna, real MLflow (sqlite), real files."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import options_of
from rich.console import Console
from samples import SMALL
from tracked import runs_of

from ablate.cli.command import main
from ablate.cli.search_options import read_request
from ablate.core.ledger import Ledger
from ablate.core.plan import Plan, read_plan
from ablate.core.search_results import Outcome, read_outcomes, write_outcomes
from ablate.driver.run_search import Searching, log_block_search, running
from ablate.driver.run_study import Launch
from ablate.planning.planner import make_plan
from ablate.search.request import FIRST_SEED, Request, SearchSize, base_grid
from ablate.tracking.tracker import Tracker
from blocks import UsageError, default_registry

SETTINGS = {**SMALL, "steps": 6, "batch": 16, "evaluate": 2, "evaluation_batch": 16}
DYT = str(Path(__file__).parents[3] / "plugins" / "dyt" / "dyt.py")


def arguments(shapes: str, tmp_path: Path, *more: str) -> list[str]:
    settings = [f"--set={k}={v}" for k, v in {**SETTINGS, "data": shapes}.items()]
    where = ["--study", str(tmp_path / "study"), "--mlflow", f"sqlite:///{tmp_path}/mlflow.db"]
    return [*where, *settings, "--stages", "pretrain", "--search", "optuna", *more]


def command(shapes: str, tmp_path: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "ablate.run", *arguments(shapes, tmp_path, *more)]


def run(shapes: str, tmp_path: Path, *more: str) -> tuple[int, str]:
    """Run the command in a process of its own, as its signal handlers and Ray deserve."""
    given = command(shapes, tmp_path, *more)
    done = subprocess.run(given, capture_output=True, text=True, cwd=tmp_path, timeout=270)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_a_study_is_tuned_interrupted_and_goes_on_to_its_report(
    shapes: str, tmp_path: Path
) -> None:
    more = ("--grid", "paper", "--seeds", "1", "--search-trials", "3", "--search-generation", "2")
    stopped_between_generations(command(shapes, tmp_path, *more), tmp_path)
    assert not (tmp_path / "study/study.json").exists()
    kept = {p: p.read_text() for p in (tmp_path / "study/trials").glob("*/result.json")}
    assert len(kept) >= 4
    code, shown = run(shapes, tmp_path, *more)
    assert code == 0, shown
    assert "3 of 3 trials; lowest validation CoCa loss: baseline" in shown
    assert "Warning" not in shown
    assert all(path.read_text() == text for path, text in kept.items())
    plan, found = read_plan(tmp_path / "study"), read_outcomes(tmp_path / "study")
    assert {name: len(own) for name, own in found.items()} == {"baseline": 3, "grr": 3}
    for trial in plan.trials:
        values = plan.tuned[trial.name]["values"]
        assert {name: getattr(trial.recipe, name) for name in values} == values
    report = (tmp_path / "study/report.md").read_text()
    assert "Tuned recipes" in report
    assert "tuned for each cell" in report
    assert (tmp_path / "study/search.png").exists()
    check_mlflow(tmp_path, {"study": 1, "trial": 2, "search": 6})


def stopped_between_generations(given: list[str], tmp_path: Path) -> None:
    """Run a command until a first generation has been told, and stop it there."""
    running = subprocess.Popen(
        given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path
    )
    deadline = time.monotonic() + 200
    while not read_outcomes(tmp_path / "study"):
        assert running.poll() is None, running.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for _ in range(10):  # Python loses a signal that comes inside of a callback of a fork
        running.send_signal(signal.SIGINT)
        try:
            running.wait(timeout=6)
            break
        except subprocess.TimeoutExpired:
            continue
    shown, _ = running.communicate(timeout=100)
    assert running.returncode == 130, shown
    assert "the same command goes on from here" in shown
    assert "Traceback" not in shown


def check_mlflow(tmp_path: Path, counts: dict[str, int]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("coca-blocks")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=200)
    roles = [run.data.tags["ablate.role"] for run in runs]
    assert {role: roles.count(role) for role in counts} == counts
    (parent,) = (r for r in runs if r.data.tags["ablate.role"] == "study")
    assert parent.info.status == "FINISHED"
    assert parent.inputs.dataset_inputs, "a study and a walk alike say what they were trained on"
    for one in runs:
        if one.data.tags["ablate.role"] == "search":
            assert one.data.tags["mlflow.parentRunId"] == parent.info.run_id
            assert one.info.status == "FINISHED"
            assert one.data.metrics["val/coca"] > 0
            assert not any(name.startswith("test/") for name in one.data.metrics)
            assert {"cell", "number"} < one.data.params.keys()


@pytest.mark.ray
@pytest.mark.slow
def test_a_walk_and_then_the_study_that_confirms_it(shapes: str, tmp_path: Path) -> None:
    more = ("--over", "blocks", "--search-trials", "4", "--search-keep", "1", "--plugin", DYT)
    code, shown = run(shapes, tmp_path, *more)
    assert code == 0, shown
    assert "That is exploratory" in shown
    assert "study/search/report.html" in shown
    assert " --seeds 3 " in shown.splitlines()[-1]  # of the command that confirms
    assert "EXPLORATORY" in (tmp_path / "study/search/report.md").read_text()
    assert not (tmp_path / "study/study.json").exists()
    (outcomes,) = read_outcomes(tmp_path / "study").values()
    done = sum(outcome.loss is not None for outcome in outcomes)
    check_mlflow(tmp_path, {"study": 1, "trial": 0, "search": 4})
    code, shown = run(shapes, tmp_path, *more, "--seeds", "1")
    assert code == 0, shown
    plan = read_plan(tmp_path / "study")
    assert len(plan.cells) == 2
    assert plan.primary is not None
    searched = {path.name for path in (tmp_path / "study/trials").glob(f"*seed{FIRST_SEED}*")}
    assert len(searched) == done
    assert "Where the cells come from" in (tmp_path / "study/report.md").read_text()
    check_mlflow(tmp_path, {"study": 1, "trial": 2, "search": 4})


@pytest.mark.parametrize(("more", "message"), [
    ([], "--grid is missing; only --search optuna --over blocks finds its own"),
    (["--grid", "paper", "--search", "optunna"], "no search named 'optunna'; did you mean"),
    (["--grid", "paper", "--over", "block"], "no thing to search over named 'block'; did you mean"),
    (["--grid", "paper", "--over", "blocks"], "leave --grid paper out"),
    (["--over", "blocks", "--search-space", "lr=1..2"], "--search-space does nothing with --over"),
    (["--grid", "paper", "--search-keep", "2"], "--search-keep does nothing with --over recipes"),
    (["--over", "blocks", "--cells", "grr"], "--over blocks has yet to find"),
    (["--over", "blocks", "--search-keep", "0"], "--search-keep must be at least 1"),
    (["--grid", "paper", "--search-trials", "0"], "--search-trials must be from 1 to 1000, got 0"),
    (["--grid", "paper", "--search-space", "lrr=1..2"], "did you mean 'lr'"),
    (["--grid", "paper", "--search-space", "batch=16|999"], "fewer than a batch of 999"),
    (["--grid", "paper", "--search-space", "label_smoothing=0|0.1", "--set", "caption_weight=0"],
     "label_smoothing has no effect"),
])  # fmt: skip
def test_mistakes_exit_with_2_and_write_nothing(
    more: list[str], message: str, shapes: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert main(["run", *arguments(shapes, tmp_path, *more)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert re.search(message, error)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("flag", ["--over=blocks", "--search-trials=3", "--search-keep=1"])
def test_flags_of_a_search_do_nothing_without_one(flag: str) -> None:
    with pytest.raises(UsageError, match=f"{flag.partition('=')[0]} does nothing without --search"):
        read_request(options_of("--grid", "paper", flag))


def test_what_is_asked_for() -> None:
    assert read_request(options_of("--grid", "paper")) is None
    assert read_request(options_of("--grid", "paper", "--search", "optuna")) == Request(
        over="recipes", budget=SearchSize()
    )
    numbers = ("--search-trials=9", "--search-seeds=2", "--search-generation=3", "--search-keep=5")
    walk = options_of("--search", "optuna", "--over", "blocks", *numbers)
    assert read_request(walk) == Request(
        over="blocks", budget=SearchSize(trials=9, seeds=2, generation=3), keep=5
    )


def test_a_plan_says_what_the_search_trains(
    shapes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--grid", "paper", "--search-trials", "5", "--search-seeds", "2", "--plan"]
    assert main(["run", *arguments(shapes, tmp_path, *more), "--no-measure"]) == 0
    shown = capsys.readouterr().out
    assert "first 20 trainings of 6 steps, 10 for each of 2 cells, tune lr=" in shown
    assert "and 20 trainings of the search" in shown
    walk = ["--over", "blocks", "--search-trials", "7", "--plan", "--no-measure"]
    assert main(["run", *arguments(shapes, tmp_path, *walk)]) == 0
    assert "first a walk of 7 trainings of 6 steps" in capsys.readouterr().out
    assert not (tmp_path / "study").exists()


def test_search_outcomes_that_are_not_ours_are_named(tmp_path: Path) -> None:
    (tmp_path / "search.json").write_text(json.dumps([{"subject": "grr"}]))
    with pytest.raises(UsageError, match=r"search\.json' is not one of ours"):
        read_outcomes(tmp_path)
    assert read_outcomes(tmp_path / "nothing") == {}


OVER = Outcome(subject="blocks", number=0, values={"norm": "rmsnorm"}, loss=3.5, state="complete")


def block_search(shapes: str, tmp_path: Path) -> tuple[Plan, Ledger]:
    """Return a walk's plan, and a directory with its one outcome."""
    plan = make_plan(base_grid, "nano", 2, {**SETTINGS, "data": shapes}, default_registry(), ())
    write_outcomes({"blocks": [OVER]}, tmp_path / "study")
    return plan, Ledger(tmp_path / "study")


def test_a_walk_alone_is_in_mlflow_with_its_versions_and_data(
    shapes: str, store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, ledger = block_search(shapes, tmp_path)
    log_block_search(plan, ledger, Launch(mlflow=store, arguments=("--over", "blocks")), [])
    assert capsys.readouterr().err == ""
    (parent,) = runs_of(store, "study").values()
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["ablate.version.torch"].startswith("2.")
    assert parent.data.tags["ablate.command"] == "python -m ablate.run --over blocks"
    assert [data.dataset.name for data in parent.inputs.dataset_inputs] == [shapes]
    assert runs_of(store, "trial") == {}
    (one,) = runs_of(store, "search").values()
    assert (one.info.status, one.data.metrics) == ("FINISHED", {"val/coca": 3.5})


def test_a_store_that_lacks_a_walk_is_brought_up_to_date_by_the_same_command(
    shapes: str, store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, ledger = block_search(shapes, tmp_path)
    log_block_search(plan, ledger, Launch(mlflow=store), [tmp_path / "absent.html"])
    error = " ".join(capsys.readouterr().err.split())
    assert "the same command again brings MLflow up to date" in error
    assert "lacks part of this study; the same command again brings it up to date" in error
    assert "ablate sync" not in error


class Interrupted(Tracker):
    """A tracker whose user presses Ctrl-C while it waits for the store."""

    def open(self) -> None:
        super().open()
        join = self.writer.join

        def interrupted(timeout: float | None = None) -> None:
            self.writer.join = join  # type: ignore[method-assign]
            raise KeyboardInterrupt

        self.writer.join = interrupted  # type: ignore[method-assign]


def test_no_run_is_left_running_by_an_interrupt(
    shapes: str, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, ledger = block_search(shapes, tmp_path)
    monkeypatch.setattr("ablate.driver.run_search.Tracker", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        log_block_search(plan, ledger, Launch(mlflow=store), [])
    for role in ("study", "search"):
        assert {run.info.status for run in runs_of(store, role).values()} == {"FINISHED"}


def test_a_search_has_a_record_from_its_start_and_tells_what_it_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    searching = Searching(
        request=Request(over="blocks", budget=SearchSize()),
        ledger=Ledger(tmp_path),
        launch=Launch(memory=2**60, output="json"),
        registry=default_registry(),
        console=Console(quiet=True),
        settings={},
        replan=pytest.fail,
        confirms=False,
        confirming=str,
    )
    with running(searching, frozenset()):
        assert json.loads((tmp_path / "search.json").read_text()) == []
    error = " ".join(capsys.readouterr().err.split())
    assert "predicted to need 1.07e+09 GiB and this machine has" in error
    write_outcomes({"blocks": [OVER]}, tmp_path)
    with running(searching, frozenset()):
        assert read_outcomes(tmp_path) == {"blocks": [OVER]}
