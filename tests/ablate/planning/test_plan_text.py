"""The plan's text and JSON, and the command line's budget."""

from __future__ import annotations

import dataclasses
import datetime
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from samples import SMALL

from ablate.cli.command import main
from ablate.cli.run_options import RunOptions
from ablate.core.grid import Contrast
from ablate.core.ledger import Ledger
from ablate.core.plan import Plan, write_plan
from ablate.core.resources import Node, ProbeConditions
from ablate.planning.budget import STARTUP, Proposal, Work, spell_duration, work_left
from ablate.planning.forecast import ESTIMATED, Forecast
from ablate.planning.plan_text import count_done, describe, describe_proposal, spell_time
from ablate.planning.planner import make_plan
from ablate.planning.prediction import (
    StudyPrediction,
    expected_deviation,
    predict_study,
    smallest_effects,
)
from ablate.stats.effects import FEWEST_SEEDS
from ablate.stats.tests_and_intervals import detectable_effect
from ablate.training.stages import run_trial
from blocks import UsageError, default_registry

REGISTRY = default_registry()
SETTINGS: dict[str, Any] = {**SMALL, "steps": 2, "batch": 16, "evaluate": 1, "evaluation_batch": 16}
NOON = datetime.datetime(2026, 3, 1, 12, 0)


def planned(shapes: str, seeds: int = 3, grid: str = "paper") -> Plan:
    return make_plan(grid, "nano", seeds, {**SETTINGS, "data": shapes}, REGISTRY, ())


def prediction(plan: Plan, **changes: Any) -> StudyPrediction:
    forecasts = {
        name: Forecast(stages={"pretrain": 100.0 + i}, memory=(300 + i) * 2**20)
        for i, name in enumerate(plan.cells)
    }
    given: dict[str, Any] = {
        "standard_deviation": 2.0,
        "source": "as stated",
        "work": [Work(trial=trial, stages=("pretrain",)) for trial in plan.trials],
        "forecasts": forecasts,
        "slots": 2,
        "measured": 2,
        "sharing": 2,
        "memory": 2**30,
        "began": NOON,
    }
    return StudyPrediction(**{**given, **changes})


def test_the_plan_tells_time_memory_and_evidence(shapes: str) -> None:
    text = describe(plan := planned(shapes), prediction(plan))
    assert "time/trial  MiB" in text
    assert "1 min 40 s  300" in text
    assert "1 min 41 s  301" in text
    # 100 101 | 100 101 | 100 101 on two slots: 300 and 303
    whole = spell_duration(STARTUP + 303)
    assert f"predicted: {whole} for 6 trials, 2 side by side; done by 12:05" in text
    assert "a few steps of each cell, measured 2 side by side, and from finished trials" in text
    assert "memory of trials side by side: 602 MiB of 1,024 MiB" in text
    assert "TOO MUCH" not in text
    assert "with 3 seeds no two-sided sign-flip p can be below 0.25; the t test" in text
    least = detectable_effect(3, 2.0, 0.05)
    assert f"an effect of {least:.2g}% for the primary (if improvements vary by 2%" in text
    assert "TOO MUCH" in describe(plan, prediction(plan, memory=2**29))
    assert "predicted" not in describe(plan, prediction(plan, forecasts={}))
    assert "time/trial" not in describe(plan)


def test_estimates_are_marked(shapes: str) -> None:
    plan = planned(shapes)
    guess = Forecast(stages={"pretrain": 7200.0}, memory=2**30, basis=ESTIMATED, reason="it is big")
    text = describe(plan, prediction(plan, forecasts=dict.fromkeys(plan.cells, guess)))
    assert "~2 h  ~1,024" in text
    assert "a few steps" not in text
    assert "baseline, as it is big (and 1 more cells likewise)" in text


def test_one_seed_promises_no_effect(shapes: str) -> None:
    text = describe(plan := planned(shapes, seeds=1), prediction(plan))
    assert "1 seed: fewer than 3 allow no verdict" in text
    assert "four times out of five" not in text


def test_the_family_of_contrasts_shares_alpha() -> None:
    one = Contrast(name="a", pairs=(("x", "y"),), primary=True)
    others = [Contrast(name=n, pairs=(("x", n),)) for n in "bcd"]
    assert smallest_effects(6, [one], 1.0) == {"primary": detectable_effect(6, 1.0, 0.05)}
    found = smallest_effects(6, [one, *others], 1.0)
    assert found["primary"] == pytest.approx(detectable_effect(6, 1.0, 0.04))
    assert found["other"] == pytest.approx(detectable_effect(6, 1.0, 0.01 / 3))
    undeclared = smallest_effects(6, others, 1.0)
    assert undeclared == {"other": pytest.approx(detectable_effect(6, 1.0, 0.05 / 3))}


def test_a_proposal_says_what_is_lost(shapes: str) -> None:
    plan = planned(shapes, seeds=5, grid="swaps")
    seen = prediction(plan)
    lost = ("baseline -> baseline+rope", "baseline -> baseline again (the noise floor)")
    smaller = Proposal(
        cells=("baseline", "grr"), seeds=3, seconds=100, dropped=("baseline+rope",), lost=lost
    )
    text = describe_proposal(plan, seen, 120.0, smaller)
    assert text.startswith("over budget: ")
    assert " predicted, 2 min given\nfits: 5 cells x 3 seeds, 1 min 40 s" in text
    assert "cells left out: baseline+rope\n" in text
    assert f"contrasts that go: {', '.join(lost)}\n" in text
    assert "smallest sign-flip p: 0.25 instead of 0.0625" in text
    before = smallest_effects(5, plan.contrasts, 2.0)["primary"]
    after = smallest_effects(3, plan.contrasts[:-1], 2.0)["primary"]
    assert f"the primary contrast: {after:.2g}% instead of {before:.2g}%" in text
    none = describe_proposal(plan, seen, 10.0, None)
    assert "nothing fits: the primary contrast with 3 seeds takes" in none


def test_times_of_another_day_have_their_date() -> None:
    assert spell_time(NOON, NOON + datetime.timedelta(hours=2)) == "14:00"
    assert spell_time(NOON, NOON + datetime.timedelta(hours=13)) == "Mon 02 Mar 2026, 01:00"


def test_deviations_come_from_a_number_or_a_study(shapes: str, tmp_path: Path) -> None:
    plan, ledger = planned(shapes), Ledger(tmp_path / "study")
    assert expected_deviation("", plan, ledger)[0] == 1.0
    assert expected_deviation("0.7", plan, ledger) == (0.7, "as stated")
    assert expected_deviation("0.7%", plan, ledger) == (0.7, "as stated")
    for mistake in ("0", "-1", "nan", "100"):
        with pytest.raises(UsageError, match="--deviation must be above 0 and below 100"):
            expected_deviation(mistake, plan, ledger)
    with pytest.raises(UsageError, match="is no study"):
        expected_deviation(str(tmp_path / "nowhere"), plan, ledger)
    write_plan(plan, ledger.directory, {})
    with pytest.raises(UsageError, match=f"fewer than {FEWEST_SEEDS} pairs"):
        expected_deviation(str(ledger.directory), plan, ledger)
    for trial in plan.trials:
        list(run_trial(trial, ledger.folder(trial), REGISTRY))
    found, source = expected_deviation(str(ledger.directory), plan, Ledger(tmp_path / "other"))
    assert 0 < found < 100
    assert source == str(ledger.directory)
    assert expected_deviation("", plan, ledger) == (found, "this study so far")
    seen = prediction(plan, work=work_left(plan, ledger))
    assert count_done(plan, seen) == (6, 0)
    assert "in the ledger: 6 of 6 trials" in describe(plan, seen)


def test_a_plan_tells_in_what_ffns_match_and_what_is_left_of_the_difference(shapes: str) -> None:
    def matched(**settings: str) -> Plan:
        given = {**SETTINGS, "data": shapes, **settings}
        return make_plan("paper", "nano", 1, given, REGISTRY, ())

    plan = matched()
    assert "FFNs are matched in parameters with a plain MLP" in describe(plan)
    assert abs(plan.beyond_reference("grr")[0]) < 2
    wide = matched(**{"*.ffn_match": "width"})
    more, flops = wide.beyond_reference("grr")
    assert "matched in inner width" in describe(wide)
    assert f"{more:+.2f}%" in describe(wide)
    assert f"{flops:+.2f}%" in describe(wide)
    assert min(more, flops) > 3  # GEGLU has three matrices
    mixed = matched(**{"text.ffn_match": "flops"})
    assert mixed.matching == "parameters (image), FLOPs (text), parameters (multimodal)"


def test_match_sets_a_field_of_every_tower() -> None:
    assert RunOptions(match="flops", set={"lr": 0.1}).settings == {
        "lr": 0.1,
        "*.ffn_match": "flops",
    }
    options = RunOptions(match="flops", set={"*.ffn_match": "width"})
    with pytest.raises(UsageError, match="given twice"):
        options.settings  # noqa: B018


def test_stages_that_are_done_are_told(shapes: str) -> None:
    plan = make_plan("paper", "nano", 1, {**SETTINGS, "data": shapes}, REGISTRY, [shapes])
    work = [Work(trial=plan.trials[1], stages=("finetune:shapes",))]
    assert count_done(plan, prediction(plan, work=work)) == (1, 1)
    stages = {"pretrain": 100.0, "finetune:shapes": 10.0}
    forecasts = dict.fromkeys(plan.cells, Forecast(stages=stages, memory=1))
    seen = prediction(plan, work=work, forecasts=forecasts)
    assert "1 of 2 trials, and 1 stages of others" in describe(plan, seen)
    assert seen.seconds == STARTUP + 10


@pytest.mark.parametrize(("node", "gibibytes", "slots", "sharing"), [
    (Node(name="little", cpus=4, memory=5 * 2**30), {"memory": 2}, 2, 2),
    (Node(name="large", cpus=4, memory=99 * 2**30), {"memory": 2}, 4, 4),
    (Node(name="box", cpus=8, gpus=1, gpu_memory=72 * 2**30), {"memory": 1, "gpu_memory": 30},
     2, 2),
])  # fmt: skip
def test_as_many_side_by_side_are_planned_as_their_memory_lets_run(
    node: Node, gibibytes: dict[str, int], slots: int, sharing: int, shapes: str, tmp_path: Path
) -> None:
    conditions = ProbeConditions(slots=4, per_gpu=1 if node.gpus else 0, nodes=[node])
    needs = {name: count * 2**30 for name, count in gibibytes.items()}
    one = Forecast(stages={"pretrain": 10.0}, **needs)
    plan = planned(shapes)
    found = predict_study(plan, Ledger(tmp_path), conditions, dict.fromkeys(plan.cells, one))
    assert (found.slots, found.sharing, found.measured) == (slots, sharing, 4)
    guessed = dataclasses.replace(one, basis=ESTIMATED)  # a run does not go by a guess either
    found = predict_study(plan, Ledger(tmp_path), conditions, dict.fromkeys(plan.cells, guessed))
    assert found.slots == (1 if node.gpus else 4)


def arguments(shapes: str, tmp_path: Path, *more: str) -> list[str]:
    settings = [f"--set={k}={v}" for k, v in {**SETTINGS, "data": shapes}.items()]
    where = ["--study", str(tmp_path / "study"), "--mlflow", f"sqlite:///{tmp_path}/mlflow.db"]
    return ["--grid", "paper", "--stages", "pretrain", *where, *settings, *more]


def test_the_plan_as_json(shapes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--plan", "--json", "--seeds", "4", "--budget", "1h", "--deviation", "0.5")
    assert main(["run", *arguments(shapes, tmp_path, *more)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["trials"]) == 8
    assert found["fits"] is True
    assert found["proposal"] is None
    assert found["cells"]["grr"]["basis"] == "measured"
    assert found["cells"]["grr"]["blocks"]["image.norm"] == "rmsnorm"
    assert found["seconds"] > 0
    assert found["smallest_effects"]["primary"] == detectable_effect(4, 0.5, 0.05)
    assert not (tmp_path / "study").exists()


def test_a_budget_refuses_and_proposes(
    shapes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(shapes, tmp_path, "--seeds", "9", "--set=steps=20000", "--plan", "--json")
    given = [word for word in given if word != "--set=steps=2"]
    assert main(["run", *given, "--budget", "1000h"]) == 0
    whole = json.loads(capsys.readouterr().out)
    budget = ["--budget", f"{0.7 * whole['seconds']:.0f}s"]
    assert main(["run", *given, *budget]) == 0
    proposal = json.loads(capsys.readouterr().out)["proposal"]
    assert 3 <= proposal["seeds"] < 9
    assert proposal["dropped"] == []
    command = shlex.split(proposal["command"])[3:]
    assert (
        main(["run", *command, "--plan"]) == 0
    )  # the measurements are cached: it fits as promised
    assert json.loads(capsys.readouterr().out)["fits"] is True
    run = [word for word in given if word not in ("--plan", "--json")]
    assert main(["run", *run, *budget]) == 2
    shown = capsys.readouterr()
    assert "over budget: " in shown.out
    assert shown.err.startswith("error: the study is predicted to exceed --budget")
    assert "this fits: python -m ablate.run --grid paper" in shown.err
    assert main(["run", *run, "--budget", "1s"]) == 2
    assert "no design of it fits" in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(("more", "message"), [
    (["--budget", "2"], "'2' is no time"),
    (["--cells", "baseline,gr"], "no cell named 'gr'; did you mean 'grr'"),
    (["--deviation", "much"], "'much' is no study"),
])  # fmt: skip
def test_mistakes_exit_with_2(
    more: list[str], message: str, shapes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *arguments(shapes, tmp_path), "--plan", "--no-measure", *more]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_without_measuring_times_are_estimated(
    shapes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(shapes, tmp_path, "--plan", "--no-measure", "--set=batch=20")
    assert main(["run", *(word for word in given if word != "--set=batch=16")]) == 0
    shown = capsys.readouterr()
    assert "measuring" not in shown.err
    assert "training only: baseline, as it was not measured (and 1 more" in shown.out


def test_equal_cells_and_lost_contrasts_are_named(shapes: str) -> None:
    plan = dataclasses.replace(
        planned(shapes), same={"twin": "grr"}, dropped={"a -> b": "needs b"}, skipped={"b": "why"}
    )
    text = describe(plan, prediction(plan))
    assert "skipped b: why" in text
    assert "same cell twin: equals grr" in text
    assert "contrasts that lack a cell: a -> b" in text
