from __future__ import annotations

import math
import shutil
from pathlib import Path

from studies import finish, planned, write_result

from ablate.analysis.losses import race_so_far, stage_losses
from ablate.analysis.results import make_results
from ablate.analysis.warnings import effect_warnings, lost_pairs
from ablate.core.metrics import DECIDES
from ablate.planning.planner import StudyOptions
from ablate.report.build import make_report
from ablate.stats.effects import DecisionRule


def test_a_pretraining_counts_whatever_became_of_its_finetuning(
    shapes: str, tmp_path: Path
) -> None:
    sources = ["embedded:icons"]
    plan, ledger = planned(tmp_path, shapes, grid="paper", seeds=4, sources=sources)
    lost = plan.of_cell("grr")[1]
    finish(plan, ledger, but=[lost])
    write_result(plan, ledger, lost, lost.stages[0], 0.3)
    ledger.record_failure(lost, "DivergedError: loss nan at step 3 of icons")
    found = make_results(plan, ledger)
    seeds = {e.metric: e.seeds for e in found.effects}
    assert seeds["coca"] == (0, 1, 2, 3)
    assert seeds["icons/coca"] == seeds["finetune/coca"] == (0, 2, 3)
    assert found.problems == [
        "seed 1 is not in baseline -> grr, finetune:icons: no usable loss of grr"
    ]
    assert found.failed == {"grr": [1]}
    (cells,) = [s for s in make_report(plan, ledger, found).sections if s.title == "Cells"]
    assert [[row[-1] for row in table.rows] for table in cells.tables[:2]] == [
        ["-", "4/4", "4/4"],
        ["-", "4/4", "3/4"],
    ]


def test_every_loss_that_cannot_be_used_is_named(shapes: str, tmp_path: Path) -> None:
    plan, ledger = planned(tmp_path, shapes, grid="paper", seeds=4)
    finish(plan, ledger)
    first, second = plan.of_cell("grr")[:2]
    write_result(plan, ledger, first, first.stages[0], 0.3, **{"test/contrastive": 0.0})
    write_result(plan, ledger, second, second.stages[0], 0.3, **{"test/cider": math.nan})
    found = make_results(plan, ledger)
    assert found.problems == ["grr, seed 0: contrastive is 0.0; the pair is left out"]
    assert [len(e.seeds) for e in found.effects] == [3, 4, 4]
    (cells,) = [s for s in make_report(plan, ledger, found).sections if s.title == "Cells"]
    assert cells.tables[0].rows[2][7] == "0.100 ± 0.000 (1 unusable)"


def test_a_cell_that_varies_more_than_its_reference_is_named(shapes: str, tmp_path: Path) -> None:
    plan, _ = planned(tmp_path, shapes, grid="paper", seeds=8)
    losses = {("baseline", seed): 12 + 0.1 * seed for seed in range(8)}
    steady = {("grr", seed): 11.9 + 0.1 * seed + 0.02 * (-1) ** seed for seed in range(8)}
    wild = {("grr", seed): 11 + 0.6 * (seed - 3) ** 2 % 5 for seed in range(8)}
    assert effect_warnings(plan, losses | steady, DecisionRule()) == []
    (words,) = effect_warnings(plan, losses | wild, DecisionRule())
    assert words.startswith("losses of grr vary 6")
    assert "times as much over seeds as those of baseline" in words
    assert lost_pairs(plan, {DECIDES: losses | wild}, DECIDES, None) == []


def test_copies_and_models_that_know_nothing_are_named(shapes: str, tmp_path: Path) -> None:
    plan, ledger = planned(tmp_path, shapes, grid="paper", seeds=3)
    finish(plan, ledger)
    same = {"test/coca": 12.5}
    for trial in plan.of_cell("grr")[:2]:
        write_result(plan, ledger, trial, trial.stages[0], 0.3, **same)
    for trial in plan.of_cell("baseline"):
        write_result(plan, ledger, trial, trial.stages[0], 0.3, **{"test/perplexity": 1000.0})
    found = make_results(plan, ledger).problems
    assert found == [
        "grr has the same loss to the last digit with seeds 0, 1: copies, or seeds without an "
        "effect",
        "baseline is no better than chance in perplexity (1000; chance, the perplexity of the "
        "training captions' token frequencies, is 999): it is undertrained, and the swap cannot be "
        "assessed",
    ]


def test_a_damaged_result_is_none_and_named(shapes: str, tmp_path: Path) -> None:
    plan, ledger = planned(tmp_path, shapes, grid="paper", seeds=4)
    finish(plan, ledger)
    one, two, three, _ = plan.of_cell("grr")
    write_result(plan, ledger, one, one.stages[0], 0.3, **{"test/coca": "good"})  # type: ignore[arg-type]
    path = ledger.folder(two) / "result.json"
    path.write_text(path.read_text().replace("test/coca", "test/cocoa"))
    shutil.copy(path, ledger.folder(three) / "result.json")
    found = make_results(plan, ledger)
    assert found.effects[-1].seeds == (3,)
    (lost,) = [s for s in make_report(plan, ledger, found).sections if "Left out" in s.title]
    for seed in range(3):
        words = "its result.json is damaged, or of another trial"
        assert any(f"No result for grr seed {seed}: {words}" in item for item in lost.items)


def test_pairs_that_no_look_of_a_race_uses_are_named(shapes: str, tmp_path: Path) -> None:
    declared = StudyOptions(looks=(3, 5, 8))
    plan, ledger = planned(tmp_path, shapes, grid="paper", declared=declared)
    lost = plan.of_cell("grr")[3]
    finish(plan, ledger, but=[lost], noise=9.0)
    ledger.record_failure(lost, "DivergedError: loss nan at step 3")
    assert not race_so_far(plan, ledger).running
    words = "seeds 6, 7 of baseline -> grr are beyond its last look: not used"
    assert words in effect_warnings(
        plan, stage_losses(plan, ledger)[DECIDES], DecisionRule(looks=plan.looks)
    )
    assert make_results(plan, ledger).effects[-1].seeds == (0, 1, 2, 4, 5)
