from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from samples import SMALL
from studies import LAUNCH, finish, planned

from ablate.core.ledger import Ledger
from ablate.core.plan import read_plan, write_plan
from ablate.planning.plan_text import describe
from ablate.planning.planner import StudyOptions, make_plan
from ablate.report.build import write_report
from ablate.report.exploratory import exploratory_section
from blocks import UsageError, default_registry

REGISTRY = default_registry()
SETTINGS = {**SMALL, "steps": 16, "batch": 16, "evaluate": 4, "evaluation_batch": 16}


def test_what_asha_stopped_is_neither_failed_nor_finished(shapes: str, tmp_path: Path) -> None:
    plan, ledger = planned(
        tmp_path, shapes, grid="paper", seeds=3, declared=StudyOptions(exploratory=True)
    )
    stopped = [trial for trial in plan.trials if trial.name == "grr"][1:]
    finish(plan, ledger, but=stopped)
    for trial in stopped:
        curve = ledger.folder(trial) / "curve.jsonl"
        curve.parent.mkdir(parents=True)
        curve.write_text(json.dumps({"step": 5, "val/coca": 13.0}) + "\n")
        assert ledger.record_stop(trial) == 5
    assert [ledger.stopped(trial) for trial in plan.trials if trial not in stopped] == [None] * 4
    document, found, _ = write_report(plan, ledger)
    assert document.banner.startswith("EXPLORATORY")
    assert {e.verdict for e in found.effects} == {"exploratory"}
    (section,) = exploratory_section(plan, ledger)
    rows = {row[0]: row for row in section.tables[0].rows}
    assert rows["grr"][-1] == "1 / 2"
    assert rows["grr"][1].endswith("(3)")
    assert rows["grr"][2].endswith("(1)")
    assert "No result" not in (tmp_path / "report.md").read_text()
    other = make_plan("paper", "nano", 3, {**SETTINGS, "data": shapes}, REGISTRY, [])
    assert exploratory_section(other, ledger) == []


def test_a_stop_is_that_of_the_trial_with_its_key(shapes: str, tmp_path: Path) -> None:
    plan, ledger = planned(tmp_path, shapes, grid="paper", seeds=1)
    trial = plan.trials[0]
    ledger.folder(trial).mkdir(parents=True)
    (ledger.folder(trial) / "stopped.json").write_text('{"key": "of another code", "step": 5}')
    assert ledger.stopped(trial) is None


def test_asha_needs_one_stage_and_no_race(shapes: str) -> None:
    own = {**SETTINGS, "data": shapes}
    with pytest.raises(UsageError, match="add --stages pretrain"):
        make_plan("paper", "nano", 3, own, REGISTRY, [shapes], StudyOptions(exploratory=True))
    both = StudyOptions(exploratory=True, looks=(3, 5))
    with pytest.raises(UsageError, match="--race and --asha"):
        make_plan("paper", "nano", 5, own, REGISTRY, [], both)
    plan = make_plan("paper", "nano", 5, own, REGISTRY, [], StudyOptions(looks=(3, 5)))
    assert "looks at 3, 5 seeds" in describe(plan)


def test_seeds_and_cells_of_earlier_runs_are_named(shapes: str, tmp_path: Path) -> None:
    def report(seeds: int, *cells: str) -> str:
        declared = StudyOptions(cells=cells)
        plan = make_plan(
            "swaps", "nano", seeds, {**SETTINGS, "data": shapes}, REGISTRY, [], declared
        )
        write_plan(plan, tmp_path, LAUNCH)
        write_report(plan, Ledger(tmp_path))
        return (tmp_path / "report.md").read_text()

    assert "was run with" not in report(3)
    assert "was run with" not in report(3)
    assert "The study was run with 3, then 6 seeds" in (text := report(6))
    assert "Cells that were in the study before" not in text
    left = report(3, "baseline", "grr")
    assert "The study was run with 3, then 6 seeds" in left
    (line,) = [line for line in left.splitlines() if "Cells that were in the study before" in line]
    for name in ("baseline+rope", "baseline+geglu", "baseline+rmsnorm", "baseline again"):
        assert name in line


@pytest.mark.slow
@pytest.mark.ray
def test_asha_stops_trials_and_the_same_command_has_nothing_left(
    shapes: str, tmp_path: Path
) -> None:
    settings = [f"--set={k}={v}" for k, v in {**SETTINGS, "data": shapes}.items()]
    command = [sys.executable, "-m", "ablate.run", "--grid", "paper", "--stages", "pretrain",
               "--seeds", "4", "--asha", "--study", str(tmp_path / "study"),
               "--mlflow", f"sqlite:///{tmp_path}/mlflow.db", *settings]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    plan, ledger = read_plan(tmp_path / "study"), Ledger(tmp_path / "study")
    stopped = [t for t in plan.trials if ledger.stopped(t) is not None]
    finished = [t for t in plan.trials if ledger.result(t) is not None]
    assert len(stopped) + len(finished) == 8
    assert not set(stopped) & set(finished)
    assert stopped
    assert "stopped at step" in done.stdout
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "study/trials").rglob("curve.jsonl")}
    again = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=250)
    assert again.returncode == 0, again.stdout + again.stderr
    assert {p: p.stat().st_mtime_ns for p in before} == before
    ordinary = subprocess.run(
        [word for word in command if word != "--asha"], capture_output=True, text=True,
        cwd=tmp_path, timeout=250,
    )  # fmt: skip
    assert ordinary.returncode == 2
    assert "exploratory=True, now False" in ordinary.stderr
