"""Studies whose seeds do not begin with 0: new ones, after those of another study were seen."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from commands import options_in, options_of
from samples import SMALL
from studies import LAUNCH, finish, planned

from ablate.analysis.results import make_results
from ablate.cli.command import main
from ablate.cli.run import smaller
from ablate.core.ledger import Ledger
from ablate.core.plan import STUDY_FILE, Plan, read_plan, write_plan
from ablate.core.study_identity import refuse_other_study
from ablate.core.trial import MAX_SEEDS
from ablate.planning.budget import STARTUP, Work, propose, smallest_seconds
from ablate.planning.forecast import Forecast
from ablate.planning.plan_text import describe
from ablate.planning.planner import StudyOptions, make_plan
from ablate.planning.prediction import expected_deviation
from ablate.report.build import write_report
from blocks import UsageError, default_registry

SETTINGS = {**SMALL, "steps": 2, "batch": 16, "evaluate": 1, "evaluation_batch": 16}


def plan_of(shapes: str, seeds: int = 3, grid: str = "paper", **declared: object) -> Plan:
    settings = {**SETTINGS, "data": shapes}
    said = dataclasses.replace(StudyOptions(), **declared)  # type: ignore[arg-type]
    return make_plan(grid, "nano", seeds, settings, default_registry(), (), said)


def test_seeds_begin_where_they_are_told_to(shapes: str, tmp_path: Path) -> None:
    first, second = plan_of(shapes, noise=True), plan_of(shapes, noise=True, first_seed=3)
    by_cell = {name: [trial.stream for trial in second.of_cell(name)] for name in second.cells}
    again = [MAX_SEEDS + seed for seed in (3, 4, 5)]
    assert by_cell == {"baseline": [3, 4, 5], "grr": [3, 4, 5], "baseline again": again}
    assert {trial.seed for trial in second.trials} == {3, 4, 5}
    assert not {trial.key for trial in first.trials} & {trial.key for trial in second.trials}
    whole = plan_of(shapes, 6, noise=True)
    keys = [{trial.key for trial in plan.trials} for plan in (first, second, whole)]
    assert keys[0] | keys[1] == keys[2]
    write_plan(second, tmp_path, LAUNCH)
    assert read_plan(tmp_path).first_seed == 3
    assert "3 cells x 3 seeds = 9 trials, from seed 3 on" in describe(second)
    assert "= 9 trials\n" in describe(first)


def test_a_plan_of_before_begins_with_seed_0(shapes: str, tmp_path: Path) -> None:
    write_plan(plan_of(shapes), tmp_path, LAUNCH)
    data = json.loads((tmp_path / STUDY_FILE).read_text())
    del data["first_seed"]
    (tmp_path / STUDY_FILE).write_text(json.dumps(data))
    assert read_plan(tmp_path).first_seed == 0


@pytest.mark.parametrize(("declared", "words"), [
    ({"first_seed": -1}, "--first-seed must be from 0 to 997 with 3 seeds, got -1"),
    ({"first_seed": 998}, "--first-seed must be from 0 to 997 with 3 seeds, got 998"),
    ({"first_seed": 6, "looks": (3, 5)}, "--first-seed 6 and --race: the looks of a race count"),
])  # fmt: skip
def test_seeds_that_cannot_be_are_refused(
    declared: dict[str, object], words: str, shapes: str
) -> None:
    with pytest.raises(UsageError, match=words):
        plan_of(shapes, **declared)
    plan_of(shapes, first_seed=997)  # the last one is 999


def test_a_budget_counts_seeds_from_the_first(shapes: str) -> None:
    plan = plan_of(shapes, 5, first_seed=7)
    work = [Work(trial=trial, stages=("pretrain",)) for trial in plan.trials]
    even = {name: Forecast(stages={"pretrain": 10.0}, memory=1) for name in plan.cells}
    assert smallest_seconds(plan, work, even, 1) == STARTUP + 60
    found = propose(plan, work, even, 1, STARTUP + 85)
    assert found is not None
    assert (found.seeds, found.seconds) == (4, STARTUP + 80)
    given = ["--grid", "paper", "--seeds", "5", "--first-seed", "7", "--budget", "85s"]
    options = options_in(smaller(options_of(*given), found).command)
    assert (options.seeds, options.first_seed) == (4, 7)


def test_other_seeds_do_not_replace_those_of_a_study(shapes: str, tmp_path: Path) -> None:
    write_plan(plan_of(shapes), tmp_path, LAUNCH)
    (tmp_path / "trials").mkdir()
    refuse_other_study(plan_of(shapes, 6), Ledger(tmp_path))  # added ones are named in the report
    words = "was run with first_seed=0, now 3; give this one a directory of its own with --study"
    with pytest.raises(UsageError, match=words):
        refuse_other_study(plan_of(shapes, first_seed=3), Ledger(tmp_path))


def test_a_report_is_of_all_seeds(shapes: str, tmp_path: Path) -> None:
    declared = StudyOptions(first_seed=6)
    plan, ledger = planned(tmp_path, shapes, grid="swaps", seeds=4, declared=declared)
    finish(plan, ledger)
    found = make_results(plan, ledger)
    assert {effect.seeds for effect in (*found.effects, *found.noise)} == {(6, 7, 8, 9)}
    assert [effect.seeds for effect in found.examples] == [4, 4]
    assert expected_deviation("", plan, ledger)[1] == "this study so far"
    write_report(plan, ledger)
    assert "with 4 seeds each, from seed 6 on" in (tmp_path / "report.md").read_text()


def test_the_command_says_the_first_seed(
    shapes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"--set={name}={value}" for name, value in {**SETTINGS, "data": shapes}.items()]
    where = ["--study", str(tmp_path / "study"), "--mlflow", f"sqlite:///{tmp_path}/mlflow.db"]
    given = ["--grid", "paper", "--stages", "pretrain", *where, *settings]
    given += ["--first-seed", "6", "--plan", "--no-measure"]
    assert main(["run", *given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["seeds"], found["first_seed"]) == (3, 6)
    assert main(["run", *given, "--asha"]) == 0  # it compares whatever trials there are
    capsys.readouterr()
    assert main(["run", *given, "--race"]) == 2
    assert "the looks of a race count seeds from 0; leave one of them out" in (
        capsys.readouterr().err
    )
