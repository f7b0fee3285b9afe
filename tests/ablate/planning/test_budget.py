"""Durations, list scheduling by hand, and which design a budget leaves."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from commands import options_in, options_of
from samples import SMALL

from ablate.cli.run import smaller
from ablate.core.ledger import Ledger
from ablate.core.plan import Plan, write_plan
from ablate.core.study_identity import left_out, refuse_other_study
from ablate.planning.budget import (
    STARTUP,
    Proposal,
    Work,
    drop_order,
    parse_duration,
    propose,
    smallest_seconds,
    spell_duration,
    total_seconds,
    work_left,
)
from ablate.planning.forecast import Forecast
from ablate.planning.planner import StudyOptions, make_plan
from ablate.stats.sequential import choose_looks
from ablate.training.stages import run_trial
from blocks import UsageError, default_registry

REGISTRY = default_registry()
STEPS = {**SMALL, "steps": 2, "batch": 16, "evaluate": 1, "evaluation_batch": 16}


@pytest.mark.parametrize(("text", "seconds"), [
    ("2h", 7200), ("90m", 5400), ("1h30m", 5400), ("45s", 45), ("1.5h", 5400), (" 1H 5M ", 3900),
    ("1d", 86400), ("1d2h3m4s", 93784),
])  # fmt: skip
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["2", "", "h", "2x", "30m1h", "-1h", "0s", "0h0m", "1h30", "2 hours"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no time; write 2h, 90m, 1h30m, 45s or 1d"):
        parse_duration(text)


@pytest.mark.parametrize(("seconds", "words"), [
    (0.4, "0 s"), (45, "45 s"), (59.6, "1 min"), (60, "1 min"), (200, "3 min 20 s"),
    (3599.7, "1 h"), (5400, "1 h 30 min"), (7170, "2 h"), (86399, "1 d"), (93784, "1 d 2 h"),
])  # fmt: skip
def test_durations_are_spelt(seconds: float, words: str) -> None:
    assert spell_duration(seconds) == words


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, shapes: str) -> Plan:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COCA_BLOCKS_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        return make_plan("full", "nano", 5, {**STEPS, "data": shapes}, REGISTRY)


def even(plan: Plan, seconds: float = 10.0) -> dict[str, Forecast]:
    return {name: Forecast(stages={"pretrain": seconds}, memory=1) for name in plan.cells}


def all_of(plan: Plan) -> list[Work]:
    return [Work(trial=trial, stages=("pretrain",)) for trial in plan.trials]


@pytest.mark.parametrize(("seconds", "slots", "expected"), [
    ([10, 10, 10], 1, 30),
    ([10, 10, 10], 2, 20),
    ([10, 10, 10], 5, 10),
    # 2: 7 then 3 (9..12), 4 then 5 (4..9): the fourth starts at 7 where the first ended
    ([7, 4, 5, 3], 2, 10),
    ([1, 1, 1, 9], 2, 10),
])  # fmt: skip
def test_trials_are_scheduled_on_the_slot_that_is_free_first(
    plan: Plan, seconds: list[float], slots: int, expected: float
) -> None:
    forecasts = {str(i): Forecast(stages={"pretrain": s}, memory=1) for i, s in enumerate(seconds)}
    jobs = [dataclasses.replace(plan.trials[0], name=name) for name in forecasts]
    work = [Work(trial=trial, stages=("pretrain",)) for trial in jobs]
    assert total_seconds(work, forecasts, slots) == pytest.approx(STARTUP + expected)


def test_only_the_stages_that_are_left_count(plan: Plan) -> None:
    forecasts = {"baseline": Forecast(stages={"pretrain": 100, "finetune:x": 7}, memory=1)}
    work = [Work(trial=plan.of_cell("baseline")[0], stages=("finetune:x",))]
    assert total_seconds(work, forecasts, 1) == STARTUP + 7
    assert total_seconds([], forecasts, 1) == 0


def test_finished_trials_are_free(shapes: str, tmp_path: Path) -> None:
    plan = make_plan("paper", "nano", 2, {**STEPS, "data": shapes}, REGISTRY, ())
    ledger = Ledger(tmp_path)
    assert [w.trial for w in work_left(plan, ledger)] == plan.trials
    list(run_trial(plan.trials[2], ledger.folder(plan.trials[2]), REGISTRY))
    left = work_left(plan, ledger)
    assert [w.trial for w in left] == [plan.trials[i] for i in (0, 1, 3)]
    assert total_seconds(left, even(plan), 1) == STARTUP + 30
    found = propose(plan, left, even(plan), 1, STARTUP + 30)
    assert found is not None
    assert (found.seeds, found.dropped) == (2, ())


def test_cells_go_in_the_declared_order(plan: Plan) -> None:
    order = drop_order(plan)
    assert order[:2] == ["baseline again", "original"]
    assert set(order[2:5]) == {"grr-rmsnorm", "grr-geglu", "grr-rope"}
    assert set(order[5:]) == {"baseline+rmsnorm", "baseline+geglu", "baseline+rope"}


def test_seeds_go_before_cells(plan: Plan) -> None:
    work, forecasts = all_of(plan), even(plan)  # 10 cells x 5 seeds of 10 s

    def fit(seconds: float) -> Proposal | None:
        return propose(plan, work, forecasts, 1, STARTUP + seconds)

    whole, fewer, smallest = fit(500), fit(499), fit(300)
    assert whole is not None
    assert fewer is not None
    assert smallest is not None
    assert (whole.seeds, whole.dropped, whole.lost) == (5, (), ())
    assert (fewer.seeds, fewer.dropped, fewer.seconds) == (4, (), STARTUP + 400)
    assert (smallest.seeds, smallest.dropped) == (3, ())


def test_then_cells_go_and_the_factorial_last(plan: Plan) -> None:
    work, forecasts = all_of(plan), even(plan)
    without_noise = propose(plan, work, forecasts, 1, STARTUP + 299)
    assert without_noise is not None
    assert (without_noise.seeds, without_noise.dropped) == (3, ("baseline again",))
    assert without_noise.lost == ("baseline -> baseline again (the noise floor)",)
    factorial = propose(plan, work, forecasts, 1, STARTUP + 250)
    assert factorial is not None
    assert factorial.dropped == ("baseline again", "original")
    assert set(factorial.cells) == set(plan.factorial)
    assert "the attribution to single swaps" not in factorial.lost
    broken = propose(plan, work, forecasts, 1, STARTUP + 239)
    assert broken is not None
    assert "the attribution to single swaps" in broken.lost
    assert "mlp -> geglu (main effect)" in broken.lost
    assert "baseline -> grr" not in broken.lost


def test_seeds_come_back_where_there_is_room(plan: Plan) -> None:
    # One dear cell outside the primary contrast: without it, all seeds fit again.
    forecasts = {**even(plan), "original": Forecast(stages={"pretrain": 1000.0}, memory=1)}
    found = propose(plan, all_of(plan), forecasts, 1, STARTUP + 400)
    assert found is not None
    assert found.dropped == ("baseline again", "original")
    assert found.seeds == 5


def test_nothing_fits_below_the_primary_contrast(plan: Plan) -> None:
    work, forecasts = all_of(plan), even(plan)
    assert smallest_seconds(plan, work, forecasts, 1) == STARTUP + 60
    assert propose(plan, work, forecasts, 1, STARTUP + 59) is None
    least = propose(plan, work, forecasts, 1, STARTUP + 60)
    assert least is not None
    assert (least.cells, least.seeds) == (("baseline", "grr"), 3)


def test_a_proposal_is_a_command_that_means_it(plan: Plan) -> None:
    given = ["--grid", "full", "--pla", "--seeds=9", "--see", "5", "--noise-floor", "--budget",
             "1h", "--cells", "a,b", "--set", "lr=0.1"]  # fmt: skip
    one = Proposal(cells=("baseline", "grr norm=x(a=1,b=2)"), seeds=3, seconds=1, dropped=("c",))
    options = options_in(smaller(options_of(*given), one).command)
    assert (options.seeds, options.plan, options.noise_floor) == (3, False, False)
    assert (options.budget, options.set) == ("1h", {"lr": 0.1})
    assert options.cells == one.cells
    fewer = dataclasses.replace(one, dropped=())
    options = options_in(smaller(options_of(*given), fewer).command)
    assert (options.seeds, options.noise_floor, options.cells) == (3, True, ("a", "b"))


@pytest.mark.parametrize("looks", [["--looks", "3,5,8"], ["--loo=3,5,8"]])
def test_a_proposal_for_a_race_runs(plan: Plan, looks: list[str]) -> None:
    given = ["--grid", "full", "--race", *looks, "--budget", "1h"]
    fewer = Proposal(cells=(), seeds=5, seconds=1, dropped=())
    options = options_in(smaller(options_of(*given), fewer).command)
    assert choose_looks(bool(options.race), options.looks, options.seeds) == (3, 5)


@pytest.mark.parametrize("race", [["--race"], ["--race", "verdicts"], ["--race=verdicts"]])
def test_a_proposal_of_the_fewest_seeds_is_no_race(race: list[str]) -> None:
    fewest = Proposal(cells=(), seeds=3, seconds=1, dropped=())
    for given in ([*race, "--grid", "full"], ["--grid", "full", *race]):
        options = options_in(smaller(options_of(*given), fewest).command)
        assert choose_looks(bool(options.race), options.looks, options.seeds) == ()
        assert options.grid == "full"


def test_cells_of_a_grid_can_be_chosen(shapes: str) -> None:
    settings = {**STEPS, "data": shapes}
    chosen = StudyOptions(cells=("original", "baseline", "grr"))
    plan = make_plan("full", "nano", 3, settings, REGISTRY, declared=chosen)
    assert list(plan.cells) == ["baseline", "grr", "original"]
    assert [c.name for c in plan.contrasts] == ["baseline -> grr", "baseline -> original"]
    assert plan.dropped["baseline -> grr-rope"] == "needs grr-rope"
    assert "baseline+geglu" in plan.dropped["mlp -> geglu (main effect)"]
    assert plan.factorial == {}
    with pytest.raises(UsageError, match="no cell named 'orignal'; did you mean 'original'"):
        make_plan("full", "nano", 3, settings, REGISTRY, declared=StudyOptions(cells=("orignal",)))


def test_the_same_trials_are_chosen_as_without(plan: Plan, shapes: str, tmp_path: Path) -> None:
    chosen = StudyOptions(cells=("baseline", "grr"))
    fewer = make_plan("full", "nano", 5, {**STEPS, "data": shapes}, REGISTRY, declared=chosen)
    assert {t.key for t in fewer.trials} < {t.key for t in plan.trials}
    write_plan(plan, tmp_path, {})
    refuse_other_study(fewer, Ledger(tmp_path))  # fewer cells are the same study
    assert left_out(fewer, Ledger(tmp_path)) == [n for n in plan.cells if n not in fewer.cells]
