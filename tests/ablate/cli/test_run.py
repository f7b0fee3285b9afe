"""The command as a user types it, on real Ray, real MLflow (sqlite) and real files."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from samples import SMALL
from studies import finish, planned

from ablate.cli.command import main
from ablate.cli.settings import parse_looks, parse_settings
from ablate.core.ledger import Ledger
from ablate.core.plan import Plan, read_plan, write_plan
from ablate.core.study_identity import keep_plan, outdated, refuse_other_study
from ablate.driver.console import make_console
from ablate.driver.run_study import Launch, tell_where
from ablate.planning.planner import make_plan
from blocks import UsageError, default_registry

DYT = str(Path(__file__).parents[3] / "plugins" / "dyt" / "dyt.py")
SETTINGS = {**SMALL, "steps": 6, "batch": 16, "evaluate": 2, "evaluation_batch": 16}


def arguments(shapes: str, tmp_path: Path, *more: str, grid: str = "paper") -> list[str]:
    settings = [f"--set={k}={v}" for k, v in {**SETTINGS, "data": shapes}.items()]
    where = ["--study", str(tmp_path / "study"), "--mlflow", f"sqlite:///{tmp_path}/mlflow.db"]
    stages = ["--stages", f"pretrain,finetune:{shapes}"] if grid == "paper" else []
    return ["--grid", grid, *where, *settings, *stages, *more]


def run(shapes: str, tmp_path: Path, *more: str, grid: str = "paper") -> tuple[int, str]:
    """Run the command in a process of its own, as its signal handlers and Ray deserve."""
    command = [sys.executable, "-m", "ablate.run", *arguments(shapes, tmp_path, *more, grid=grid)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=250)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.ray
def test_a_study_from_command_to_report(shapes: str, tmp_path: Path) -> None:
    code, shown = run(shapes, tmp_path, "--seeds", "2", "--plugin", DYT)
    assert code == 0, shown
    assert "[6/6]" in shown
    report = (tmp_path / "study/report.md").read_text()
    for words in ("baseline -> grr (primary)", "grr norm=dyt", "| chance |", "27.25"):
        assert words in report
    for name in ("effects.csv", "effects.png", "curves.png", "study.json"):
        assert (tmp_path / "study" / name).stat().st_size > 100
    check_mlflow(tmp_path, trials=6)
    results = {p: p.read_text() for p in (tmp_path / "study/trials").glob("*/result.json")}
    code, again = run(shapes, tmp_path, "--seeds", "3", "--plugin", DYT)
    assert code == 0, again
    assert "6 of 9 trials are already in the ledger" in again
    assert all(path.read_text() == text for path, text in results.items())
    check_mlflow(tmp_path, trials=9)


@pytest.mark.parametrize(("output", "expected"), [
    ("quiet", "a/report.html\n"),
    ("json", '{"event": "report", "path": "a/report.html"}\n'),
    ("auto", "\nreport: a/report.html\nMLflow: sqlite:///mlflow.db (ablate ui)\n"),
])  # fmt: skip
def test_every_output_tells_where_the_report_is(
    output: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tell_where(Path("a/report.html"), Launch(output=output), make_console(output))
    assert capsys.readouterr().out == expected


def check_mlflow(tmp_path: Path, trials: int) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("coca-blocks")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=100)
    (parent,) = (r for r in runs if r.data.tags["ablate.role"] == "study")
    children = [r for r in runs if r.data.tags["ablate.role"] == "trial"]
    assert len(children) == trials
    figures = ("effects", "effects-finetuned", "slopes", "curves", "cost")
    names = {f"{stem}{suffix}" for stem in figures for suffix in (".png", ".svg")}
    names |= {"report.html", "report.md", "effects.csv", "table.tex"}
    names |= {"captions.png", "captions-shapes.png"}
    assert {artifact.path for artifact in client.list_artifacts(parent.info.run_id, "report")} == {
        f"report/{name}" for name in names
    }
    for child in children:
        assert child.info.status == "FINISHED"
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.tags["block.image.norm"] == child.data.params["image.norm"]
        assert child.data.metrics["test/coca"] > 0
        assert child.data.metrics["shapes/test/coca"] > 0
        curve = client.get_metric_history(child.info.run_id, "train/loss")
        assert [point.step for point in curve] == [1, 2, 3, 4, 5, 6]
    effects = {r.data.tags["ablate.contrast"]: r for r in runs if "ablate.contrast" in r.data.tags}
    assert "coca/estimate" in effects["baseline -> grr"].data.metrics
    assert effects["baseline -> grr"].data.tags["ablate.verdict"]


@pytest.mark.ray
@pytest.mark.slow
def test_an_interrupted_study_goes_on(shapes: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ablate.run", *arguments(shapes, tmp_path, "--seeds", "2",
               "--set", "image.size=64")]  # fmt: skip
    command = [a.replace("steps=6", "steps=600") for a in command if "image.size=32" not in a]
    for number in (signal.SIGTERM, signal.SIGINT):
        began = time.time()
        running = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path
        )
        wait_for(tmp_path, "study/trials/*/checkpoint.pt", since=began)
        running.send_signal(number)
        shown, _ = running.communicate(timeout=60)
        assert running.returncode == 130, shown
        assert "stopping (some seconds" in shown
        assert "the same command goes on from here" in shown
        assert "report.html" in shown
        assert "Warning" not in shown
        assert "SIGTERM" not in shown  # Ray's handler would say so, and leave
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    check_curves_have_no_gap(tmp_path)


def wait_for(tmp_path: Path, pattern: str, since: float = 0.0) -> None:
    deadline = time.monotonic() + 120
    while not any(path.stat().st_mtime > since for path in tmp_path.glob(pattern)):
        assert time.monotonic() < deadline, f"no {pattern} appeared"
        time.sleep(0.1)


def check_curves_have_no_gap(tmp_path: Path) -> None:
    for path in (tmp_path / "study/trials").glob("*/curve.jsonl"):
        steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
        assert steps == list(range(12, 601, 12))


@pytest.mark.ray
@pytest.mark.slow
def test_a_trial_that_fails_is_named_and_the_others_finish(shapes: str, tmp_path: Path) -> None:
    plugin = tmp_path / "explode.py"
    plugin.write_text(
        Path(DYT).read_text().replace('"dyt"', '"explode"')
        .replace("torch.tanh(self.alpha * x.float())", "torch.tanh(self.alpha * x.float()) / 0")
    )  # fmt: skip
    code, shown = run(shapes, tmp_path, "--seeds", "1", "--plugin", str(plugin))
    assert code == 1, shown
    assert "Traceback" not in shown
    assert "grr norm=explode seed 0: FAILED: ablate.training.train.DivergedError: loss nan" in shown
    assert "1 trial failed" in shown
    assert "No result for grr norm=explode seed 0" in (tmp_path / "study/report.md").read_text()


@pytest.mark.ray
@pytest.mark.slow
def test_mlflow_out_of_reach_does_not_stop_a_study(shapes: str, tmp_path: Path) -> None:
    store = "http://127.0.0.1:9"  # nobody listens there
    code, shown = run(shapes, tmp_path, "--seeds", "1", "--mlflow", store)
    assert code == 0, shown
    assert shown.count("does not answer") == 1
    assert (tmp_path / "study/report.md").exists()
    code, shown = run(shapes, tmp_path, "--seeds", "1")
    assert code == 0, shown
    check_mlflow(tmp_path, trials=2)


def test_plan_prints_and_writes_nothing(
    shapes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *arguments(shapes, tmp_path, grid="swaps"), "--plan"]) == 0
    shown = capsys.readouterr().out
    assert "6 cells x 3 seeds = 18 trials" in shown
    assert not (tmp_path / "study").exists()
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize(("more", "message"), [
    (["--grid", "ful"], "no grid named 'ful'; did you mean 'full'"),
    (["--size", "big"], "no size named 'big'"),
    (["--set", "stpes=3"], "no field named 'stpes'; did you mean 'steps'"),
    (["--set", "text.norm=rmsnrm"], "no norm named 'rmsnrm'; did you mean 'rmsnorm'"),
    (["--set", "text.position=rope(thta=1.0)"], "no option named 'thta'; did you mean 'theta'"),
    (["--set", "lr"], "write FIELD=VALUE"),
    (["--set", "lr=fast"], "lr='fast' is str, must be float"),
    (["--plugin", "nowhere.py"], "plugin file '.*nowhere.py' does not exist"),
    (["--set", "clip=1", "--set", "clip=2"], "given twice"),
    (["--mlflow", "foo://bar"], "cannot log to --mlflow 'foo://bar'"),
    (["--mlflow", "sqlite:////nowhere/at/all.db"], "there is no folder '/nowhere/at'"),
    (["--study", ""], "--study is empty"),
    (["--study", __file__], "is a file; name a directory"),
    (["--plugin", str(Path(__file__).parent)], "is no Python file"),
    (["--set", "lr=nan"], "lr must be above 0 and finite, got nan"),
    (["--set", "temperature=inf"], "temperature must be above 0 and finite"),
    (["--set", "beta2=1.0"], "beta2 must be at least 0 and below 1"),
    (["--set", "stpes=3"], "no field named"),
    (["--set", "label_smoothing=0.1", "--set", "caption_weight=0"], "smoothing has no effect"),
    (["--set", "finetune.stpes=3"], "did you mean .steps."),
    (["--stages", "pretrain,finetune:icnos"], "did you mean .icons."),
    (["--set", "caption_weight=0", "--set", "contrastive_weight=0"], "nothing to learn"),
    (["--looks", "3,5"], "looks are for a race; add --race"),
    (["--gpus-per-trial", "99"], r"this machine has \d+ GPUs"),
])  # fmt: skip
def test_mistakes_exit_with_2_and_write_nothing(
    more: list[str], message: str, shapes: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert main(["run", *arguments(shapes, tmp_path), *more]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert re.search(message, error)
    assert not (tmp_path / "study").exists()
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize("name", ["missing.tar", "corrupt.tar", "empty.tar.gz"])
def test_bad_data_exits_with_2(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if name != "missing.tar":
        (tmp_path / name).write_bytes(b"" if name.startswith("empty") else b"noise" * 999)
    assert main(["run", *arguments(f"webdataset:{tmp_path / name}", tmp_path)]) == 2
    assert re_search(name, capsys.readouterr().err)
    assert not (tmp_path / "study").exists()


def re_search(name: str, text: str) -> bool:
    return name in text and ("is corrupt" in text or "no file matches" in text)


def test_a_study_in_use_names_its_owner(
    shapes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ablate.core.ledger import Ledger

    with Ledger(tmp_path / "study").locked():
        assert main(["run", *arguments(shapes, tmp_path)]) == 2
    assert f"is in use by process {os.getpid()}" in capsys.readouterr().err


def test_settings_are_literals_or_text() -> None:
    given = ["a=1", "b=1e-3", "c=rope(theta=2.0)", "d=embedded:icons", "e=x=y"]
    assert parse_settings(given) == {
        "a": 1, "b": 0.001, "c": "rope(theta=2.0)", "d": "embedded:icons", "e": "x=y",
    }  # fmt: skip
    with pytest.raises(UsageError):
        parse_settings(["=3"])
    with pytest.raises(UsageError, match="as in 3,5,8"):
        parse_looks(["3,five"])


@pytest.mark.parametrize(("change", "message"), [
    ({"image.depth": 2}, "baseline image.depth=1, now 2; "),
    ({"text.depth": 2}, "grr text.depth=1, now 2"),
])  # fmt: skip
def test_other_cells_are_another_study(
    shapes: str, tmp_path: Path, change: dict[str, int], message: str
) -> None:
    def plan(**more: object) -> Plan:
        own = {**SETTINGS, "data": shapes, **more}
        return make_plan("paper", "nano", 1, own, default_registry(), [])

    write_plan(plan(), tmp_path, {})
    (tmp_path / "trials").mkdir()
    refuse_other_study(plan(), Ledger(tmp_path))
    with pytest.raises(UsageError, match=re.escape(message)):
        refuse_other_study(plan(**change), Ledger(tmp_path))


def test_finished_trials_under_other_keys_are_counted(shapes: str, tmp_path: Path) -> None:
    plan, ledger = planned(tmp_path, shapes, grid="paper", seeds=2)
    finish(plan, ledger, but=plan.trials[-1:])
    assert outdated(plan, ledger) == 0
    trials = [
        dataclasses.replace(t, stages=(dataclasses.replace(t.stages[0], key="0" * 64),))
        for t in plan.trials  # as they would be under code of tomorrow
    ]
    assert outdated(dataclasses.replace(plan, trials=trials), ledger) == 3
    assert outdated(plan, Ledger(tmp_path / "new")) == 0


def test_the_plan_of_trials_of_other_code_is_kept(shapes: str, tmp_path: Path) -> None:
    plan, ledger = planned(tmp_path / "a", shapes, grid="paper", seeds=3)
    finish(plan, ledger)
    kept = keep_plan(ledger)
    assert (kept.name, keep_plan(ledger).name) == ("study-1.json", "study-2.json")
    settings = {**SETTINGS, "steps": 9, "data": shapes}
    later = make_plan("paper", "nano", 1, settings, default_registry(), [])
    write_plan(later, tmp_path / "a", {})
    assert not any(ledger.result(trial) for trial in read_plan(tmp_path / "a").trials)
    copy = shutil.copytree(tmp_path / "a", tmp_path / "copy")
    shutil.move(copy / kept.name, copy / "study.json")
    assert read_plan(copy) == plan
    assert all(Ledger(copy).result(trial) for trial in read_plan(copy).trials)


def test_another_study_in_the_directory_is_refused(
    shapes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**SETTINGS, "steps": 7, "data": shapes}
    plan = make_plan("paper", "nano", 1, settings, default_registry(), [])
    write_plan(plan, tmp_path / "study", {})
    (tmp_path / "study/trials").mkdir()
    assert main(["run", *arguments(shapes, tmp_path)]) == 2
    assert "was run with " in (error := capsys.readouterr().err)
    assert "steps=7, now 6" in error
    assert "--study" in error
