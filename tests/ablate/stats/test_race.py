from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Container, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from samples import SMALL

from ablate.analysis.losses import needed_trials, race_so_far, stage_losses
from ablate.analysis.results import StudyResults
from ablate.core.files import write_json
from ablate.core.grid import Contrast
from ablate.core.ledger import Ledger
from ablate.core.metrics import DECIDES
from ablate.core.plan import Plan, read_plan
from ablate.core.trial import Trial
from ablate.driver.run_study import run_looks
from ablate.planning.planner import StudyOptions, make_plan
from ablate.report.race import race_section
from ablate.stats.effects import DecisionRule, Effect, effects
from ablate.stats.race import Chances, Race, chances, hold_looks, multiplicity
from ablate.stats.sequential import choose_looks
from blocks import UsageError, default_registry

LOOKS = (3, 5, 8)
RULE = DecisionRule(looks=LOOKS)
GOOD = Contrast(name="good", pairs=(("a", "b"),), primary=True)
HOPELESS = Contrast(name="hopeless", pairs=(("a", "c"),))
UNSURE = Contrast(name="unsure", pairs=(("a", "d"),))
FAMILY = [GOOD, HOPELESS, UNSURE]
SHAPE = np.array([-1.0, 1.0, 0.3, 0.2, -0.4, 0.5, -0.7, 0.1])
Drawn = dict[tuple[str, int], float]


def drawn(good: float = 3.0, unsure: float = 2.0) -> Drawn:
    """Return losses of eight seeds in which improvements are about as given, in percent."""
    gains = {"a": 0.01 * SHAPE[::-1], "b": good + 0.05 * SHAPE, "c": SHAPE - 1, "d": unsure + SHAPE}
    return {(c, s): 10 * (1 - gain[s] / 100) for c, gain in gains.items() for s in range(8)}


def raced(losses: Drawn, settled: Container[tuple[str, int]] | None = None) -> Race:
    return hold_looks(
        [FAMILY], "coca", losses, RULE, "abcd", losses if settled is None else settled
    )


def decided(race: Race) -> list[dict[str, str]]:
    return [{d.effect.contrast: d.why for d in look.decisions} for look in race.looks]


def test_cells_run_on_while_an_undecided_contrast_needs_them() -> None:
    race = raced(drawn())
    assert [look.seeds for look in race.looks] == [3, 5, 8]
    assert decided(race)[0] == {"good": "improved", "hopeless": "futile"}
    assert race.looks[0].dropped == ("b", "c")
    assert decided(race)[1:] == [{}, {"unsure": "improved"}]
    assert race.looks[2].dropped == ("a", "d")  # the reference runs as long as the last of them
    assert race.seeds == {"a": 8, "b": 3, "c": 3, "d": 8}
    assert not race.running


def test_a_race_for_verdicts_goes_on_where_improvements_are_out_of_reach() -> None:
    worse = drawn(good=3.0, unsure=-1.7)
    assert decided(raced(worse))[0]["unsure"] == "futile"
    rule = replace(RULE, aim="verdicts")
    race = hold_looks([FAMILY], "coca", worse, rule, "abcd", worse)
    assert "unsure" not in decided(race)[0]
    assert decided(race)[-1]["unsure"] == "worse"


def test_a_primary_contrast_does_not_stop_at_equivalent() -> None:
    losses = drawn(good=0.3)
    race = raced(losses)
    (then, *_) = effects(FAMILY, "coca", {k: v for k, v in losses.items() if k[1] < 3}, rule=RULE)
    assert then.verdict == "equivalent"
    assert race.seeds["b"] > 3
    assert effects(FAMILY, "coca", losses, rule=RULE)[0].verdict == "improved"


def test_a_race_is_over_when_all_is_decided() -> None:
    race = raced(drawn(unsure=-2.0))
    assert len(race.looks) == 1
    assert race.seeds == dict.fromkeys("abcd", 3)


def test_looks_wait_for_all_that_they_need() -> None:
    losses = drawn()
    assert not raced(losses, {k for k in losses if k != ("c", 2)}).looks
    # What was dropped is not waited for; the other cells are.
    here = {k for k in losses if k[0] in "ad" or k[1] < 3}
    assert len(raced(losses, here).looks) == 3
    assert len(raced(losses, here - {("a", 4)}).looks) == 1


def test_a_missing_pair_decides_nothing() -> None:
    whole = drawn()
    losses = {key: loss for key, loss in whole.items() if key not in {("b", 1), ("c", 2)}}
    race = raced(losses, whole)  # these two have failed
    assert decided(race)[0] == {}
    assert race.looks[0].dropped == ()
    # At the next look there are four pairs: the first three are a look's worth, but none is
    # dropped by fewer seeds than the others have.
    assert "hopeless" not in decided(race)[1]
    assert race.seeds["c"] == 8
    assert {"good", "hopeless"} <= {e.contrast for e in effects(FAMILY, "coca", losses, rule=RULE)}


def test_a_contrast_keeps_the_verdict_that_decided_it() -> None:
    losses = drawn()
    before = {k: loss for k, loss in losses.items() if k[1] < 3}
    for seed in range(3, 8):  # what comes later says the opposite
        losses["b", seed] = 11.0
    (then, *_), (now, *_) = (effects(FAMILY, "coca", x, rule=RULE) for x in (before, losses))
    assert then.verdict == now.verdict == "improved"
    assert now.estimate < 0
    assert now.p_adjusted <= then.p_adjusted


def test_numbers_are_those_of_the_last_look_reached() -> None:
    losses = drawn()
    at = {n: effects([GOOD], "coca", {k: v for k, v in losses.items() if k[1] < n}, rule=RULE)[0]
          for n in (3, 4, 5)}  # fmt: skip
    assert at[4] == at[3]
    assert at[5].seeds == (0, 1, 2, 3, 4)


def _effects(**p_adjusted: float) -> list[Effect]:
    found = effects(FAMILY, "coca", drawn(), rule=DecisionRule())
    return [replace(e, p_adjusted=p_adjusted[e.contrast]) for e in found]


@pytest.mark.parametrize(("contrast", "found", "factor"), [
    (GOOD, {"good": 0.5, "hopeless": 0.5, "unsure": 0.5}, 1 / 0.8),
    (GOOD, {"good": 0.5, "hopeless": 0.01, "unsure": 0.01}, 1),  # the others hand over their part
    (UNSURE, {"good": 0.5, "hopeless": 0.5, "unsure": 0.5}, 2 / 0.2),
    (UNSURE, {"good": 0.5, "hopeless": 0.01, "unsure": 0.5}, 1 / 0.2),
    (UNSURE, {"good": 0.01, "hopeless": 0.5, "unsure": 0.5}, 2),
    (UNSURE, {"good": 0.01, "hopeless": 0.01, "unsure": 0.5}, 1),
])  # fmt: skip
def test_what_the_next_rejection_costs(
    contrast: Contrast, found: dict[str, float], factor: float
) -> None:
    assert multiplicity(contrast, FAMILY, _effects(**found), RULE) == pytest.approx(factor)
    assert multiplicity(GOOD, [GOOD], _effects(good=0.5, hopeless=1, unsure=1)[:1], RULE) == 1


@pytest.mark.parametrize("shift", [0.0, 0.6, 1.5])
def test_chances_are_those_of_imagined_futures(shift: float) -> None:
    values, random, improved, decided = shift + SHAPE[:3], np.random.default_rng(2), 0, 0
    for _ in range(1500):
        sigma = values.std(ddof=1) * np.sqrt(2 / random.chisquare(2))
        true = random.normal(values.mean(), sigma / np.sqrt(3))
        whole = np.concatenate((values, random.normal(true, sigma, 5)))
        losses = {("a", s): 10.0 for s in range(8)}
        losses |= {("b", s): 10 * (1 - gain / 100) for s, gain in enumerate(whole)}
        (found,) = effects([replace(GOOD, primary=False)], "coca", losses, rule=RULE)
        improved += found.verdict == "improved"
        decided += found.verdict != "inconclusive"
    found_now = chances(values, RULE, 0.05)
    assert found_now.improved == pytest.approx(improved / 1500, abs=0.04)
    assert found_now.any == pytest.approx(decided / 1500, abs=0.04)


def test_nothing_comes_after_the_last_look() -> None:
    assert chances(np.full(8, 3.0), RULE, 0.05) == Chances(improved=0.0, clear=0.0, any=0.0)
    assert chances(np.full(5, 3.0), RULE, 0.05) == Chances(improved=1.0, clear=1.0, any=1.0)
    assert chances(-SHAPE[:5] - 3, RULE, 0.05).improved < 0.01


def test_looks_of_a_command() -> None:
    assert choose_looks(False, None, 6) == ()
    assert choose_looks(True, None, None) == (3, 5, 8)
    assert choose_looks(True, None, 12) == (3, 5, 8, 12)
    assert choose_looks(True, (4, 9), None) == choose_looks(True, (4, 9), 9) == (4, 9)


@pytest.mark.parametrize(("race", "looks", "seeds", "message"), [
    (False, (3, 5), None, "add --race"),
    (True, (3, 5), 8, "ends with 5 seeds, but --seeds is 8"),
    (True, (5, 3), None, "looks must be"),
    (True, None, 3, "looks must be"),
])  # fmt: skip
def test_looks_at_odds_are_refused(
    race: bool, looks: tuple[int, ...] | None, seeds: int | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        choose_looks(race, looks, seeds)


@pytest.fixture(scope="module")
def plan(shapes: str) -> Plan:
    settings = {**SMALL, "data": shapes, "steps": 6, "batch": 16, "evaluate": 2,
                "evaluation_batch": 16}  # fmt: skip
    declared = StudyOptions(looks=LOOKS, noise=False)
    return make_plan("swaps", "nano", None, settings, default_registry(), [], declared)


TRUE = {"baseline": 0.0, "baseline+rmsnorm": -1.0, "baseline+rope": 0.0, "baseline+geglu": 2.0,
        "grr": 3.0}  # fmt: skip


class Trainer:
    """Writes results as training would, seed by seed and cell by cell, until it is stopped."""

    def __init__(self, ledger: Ledger, stop_after: int = 10**9, failing: Sequence[str] = ()):
        self.ledger, self.left, self.failing = ledger, stop_after, failing
        self.trained: list[tuple[str, int]] = []

    def __call__(self, trials: Sequence[Trial]) -> None:
        for trial in trials:
            self.ledger.forget_failure(trial)
        for trial in trials:
            if not self.left:
                return
            self.left -= 1
            if f"{trial.name} {trial.seed}" in self.failing:
                self.ledger.record_failure(trial, "DivergedError: loss nan")
                continue
            self.trained.append((trial.name, trial.seed))
            wobble = SHAPE[(trial.seed + len(trial.name)) % 8]
            varied = 0.8 if trial.name != "baseline" else 0.01
            loss = 10 * (1 - (TRUE[trial.name] + varied * wobble) / 100)
            folder = self.ledger.folder(trial)
            names = ("contrastive", "perplexity", "coca")
            metrics = {f"test/{name}": loss for name in names} | {"train_seconds": 1.0}
            write_json(folder / "model/config.json", {})
            write_json(folder / "result.json", {"key": trial.stages[0].key, "metrics": metrics})


def go(plan: Plan, trainer: Trainer) -> str:
    console = Console(file=io.StringIO(), width=200)
    run_looks(plan, trainer.ledger, trainer, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def found_of(plan: Plan, ledger: Ledger) -> StudyResults:
    race, losses = race_so_far(plan, ledger), stage_losses(plan, ledger)[DECIDES]
    rule = DecisionRule(looks=plan.looks)
    found = effects(plan.contrasts, DECIDES, losses, rule=rule)
    return StudyResults(decides=DECIDES, effects=found, noise=[], attributions={}, examples=[],
                        problems=[], race=race)  # fmt: skip


def test_a_race_trains_what_its_looks_ask_for(plan: Plan, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert plan.seeds == 8
    assert len(plan.trials) == 40
    trainer = Trainer(ledger)
    shown = go(plan, trainer)
    race = race_so_far(plan, ledger)
    assert {c: 1 + max(s for n, s in trainer.trained if n == c) for c in TRUE} == race.seeds
    assert len(trainer.trained) == len(needed_trials(plan, race)) < 40
    assert race.seeds["baseline+rmsnorm"] == 3
    assert "look at 3 seeds: " in shown
    assert "baseline -> baseline+rmsnorm futile" in shown
    (section,) = race_section(plan, ledger, found_of(plan, ledger))
    saved = 40 - len(trainer.trained)
    assert f"{saved} of 40 trials ({saved / 40:.0%}) were not needed." in section.paragraphs[1]
    looks, decisions = section.tables
    assert [row[0] for row in looks.rows] == [str(look.seeds) for look in race.looks]
    assert "baseline+rmsnorm" in looks.rows[0][2]
    assert [row[0] for row in decisions.rows] == [
        d.effect.contrast for look in race.looks for d in look.decisions
    ]
    assert not section.items
    assert go(plan, Trainer(ledger, stop_after=0)) == ""  # nothing is left to do


@pytest.mark.parametrize("stop_after", [1, 14, 15, 16, 20])
def test_a_race_that_was_stopped_goes_on_to_the_same_end(
    plan: Plan, tmp_path: Path, stop_after: int
) -> None:
    whole, first = (
        Trainer(Ledger(tmp_path / "whole")),
        Trainer(Ledger(tmp_path / "cut"), stop_after),
    )
    go(plan, whole)
    go(plan, first)
    assert first.trained == whole.trained[:stop_after]
    rest = Trainer(Ledger(tmp_path / "cut"))
    go(plan, rest)
    assert first.trained + rest.trained == whole.trained
    assert race_so_far(plan, whole.ledger) == race_so_far(plan, rest.ledger)


def test_a_failed_trial_is_named_and_tried_again(plan: Plan, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    go(plan, Trainer(ledger, failing=["baseline+rmsnorm 1"]))
    broken = race_so_far(plan, ledger)
    assert broken.seeds["baseline+rmsnorm"] == 8  # a pair is missing: not dropped at three
    (section,) = race_section(plan, ledger, found_of(plan, ledger))
    assert section.items[0].startswith("Failed: baseline+rmsnorm seed 1.")
    again = Trainer(ledger)
    go(plan, again)
    assert again.trained == [("baseline+rmsnorm", 1)]
    mended = race_so_far(plan, ledger)
    assert mended.seeds["baseline+rmsnorm"] == 3
    (section,) = race_section(plan, ledger, found_of(plan, ledger))
    assert section.items[0].startswith("Trained, though by now no look asks for them: baseline+rms")


def test_a_study_without_looks_has_no_race(plan: Plan, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert needed_trials(plan, None) == plan.trials
    assert race_section(plan, ledger, replace(found_of(plan, ledger), race=None)) == []


@pytest.mark.ray
@pytest.mark.slow
def test_a_race_on_real_trials_ends_with_what_its_looks_need(shapes: str, tmp_path: Path) -> None:
    settings = {**SMALL, "data": shapes, "steps": 4, "batch": 16, "evaluate": 1,
                "evaluation_batch": 16}  # fmt: skip
    command = [sys.executable, "-m", "ablate.run", "--grid", "swaps", "--race", "--looks", "3,4",
               "--smallest-effect", "50",  # everything is within 50%
               "--study", str(tmp_path / "study"), "--mlflow", f"sqlite:///{tmp_path}/mlflow.db",
               *(f"--set={k}={v}" for k, v in settings.items())]  # fmt: skip
    # A process of its own: Ray reads how it is to authenticate once in a process.
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=250)
    shown = done.stdout
    assert done.returncode == 0, shown + done.stderr
    plan, ledger = read_plan(tmp_path / "study"), Ledger(tmp_path / "study")
    race = race_so_far(plan, ledger)
    assert [look.seeds for look in race.looks] == [3, 4]
    assert {d.why for d in race.looks[0].decisions} <= {"equivalent", "improved", "worse"}
    trained = [trial for trial in plan.trials if ledger.result(trial) is not None]
    assert trained == needed_trials(plan, race)
    # Only the primary contrast goes on: it does not stop at equivalent.
    assert [t.name for t in trained if t.seed == 3] == ["baseline", "grr"]
    assert "trials left" not in shown
    report = (ledger.directory / "report.md").read_text()
    assert "No result" not in report
    assert "4 of 24 trials (17%) were not needed." in report
