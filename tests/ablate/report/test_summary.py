from __future__ import annotations

import re
from pathlib import Path

import pytest
from studies import finish, planned, write_result

from ablate.analysis.results import make_results
from ablate.core.ledger import Ledger
from ablate.core.plan import Plan
from ablate.planning.planner import StudyOptions
from ablate.report.summary import banner, opening


def sentences(plan: Plan, ledger: Ledger) -> list[str]:
    """Return the opening; every part of it must be one sentence."""
    found = opening(plan, make_results(plan, ledger))
    for part in found:
        assert len(re.findall(r"\.(?=\s|$)", part)) == 1, part
        assert part.endswith(".")
        assert part[0].isupper() or (plan.primary and part.startswith(plan.primary.name))
    return found


CASES = [
    ("full", 6, 0.3, 0, ["a clear improvement", "Of the single swaps these are clear", "of 1"]),
    ("full", 6, 9.0, 0, ["inconclusive", "whether the swaps add up cannot be told", "usual other"]),
    ("full", 1, 0.3, 0, ["too few seeds", "cannot be told", "not at all, 1 seed is too few"]),
    (
        "full",
        2,
        0.3,
        0,
        ["too few seeds", "No single swap is clear", "not at all, 2 seeds is too few"],
    ),
    (
        "swaps",
        4,
        0.3,
        0,
        ["a clear improvement", "No single swap is clear, the largest", "four times"],
    ),
    (
        "paper",
        6,
        0.3,
        2,
        ["as the mean of 2 fine-tunings it is +", "in contrastive loss", "How sure"],
    ),
    ("smoke", 3, 0.3, 0, ["a clear improvement", "in perplexity (", "How sure"]),
]


@pytest.mark.parametrize(("grid", "seeds", "noise", "later", "words"), CASES)
def test_a_report_opens_with_three_sentences(
    grid: str, seeds: int, noise: float, later: int, words: list[str], shapes: str, tmp_path: Path
) -> None:
    sources = ["embedded:icons", "embedded:stamps"][:later]
    plan, ledger = planned(tmp_path, shapes, grid=grid, seeds=seeds, sources=sources)
    finish(plan, ledger, noise=noise)
    found = sentences(plan, ledger)
    assert len(found) == 3
    for sentence, part in zip(found, words, strict=True):
        assert part in sentence


def test_a_study_that_has_no_say_opens_with_why(shapes: str, tmp_path: Path) -> None:
    plan, ledger = planned(tmp_path / "empty", shapes, seeds=3)
    assert sentences(plan, ledger) == ["baseline -> grr is complete with no seed yet."]
    declared = StudyOptions(exploratory=True)
    plan, ledger = planned(tmp_path / "asha", shapes, grid="paper", seeds=3, declared=declared)
    finish(plan, ledger)
    (only,) = sentences(plan, ledger)
    assert "exploratory: nothing can be said of it" in only


def test_failures_of_the_primary_contrasts_cells_stand_above_everything(
    shapes: str, tmp_path: Path
) -> None:
    plan, ledger = planned(tmp_path, shapes)
    lost = plan.of_cell("grr")[::2]
    finish(plan, ledger, but=lost)
    for trial in lost:
        ledger.record_failure(trial, "DivergedError: loss nan at step 3")
    words = banner(plan, make_results(plan, ledger))
    assert words.startswith("FAILED: grr with seeds 0, 2, 4; what is said of baseline -> grr is of")
    assert "over 3 seeds" in sentences(plan, ledger)[0]
    finish(plan, ledger)
    assert banner(plan, make_results(plan, ledger)) == ""  # mended since


def test_a_study_says_what_else_it_found_where_its_primary_contrast_is_lost(
    shapes: str, tmp_path: Path
) -> None:
    plan, ledger = planned(tmp_path / "lost", shapes)
    lost = plan.of_cell("grr")
    finish(plan, ledger, but=lost)
    for trial in lost:
        ledger.record_failure(trial, "DivergedError: loss nan at step 3")
    first, second = sentences(plan, ledger)
    assert first == "baseline -> grr cannot be told: grr failed each time."
    assert "baseline -> baseline+geglu +3.60%" in second
    declared = StudyOptions(cells=("baseline", "baseline+geglu", "baseline+rope"))
    plan, ledger = planned(tmp_path / "none", shapes, declared=declared)
    finish(plan, ledger)
    first, second = sentences(plan, ledger)
    assert first == "No contrast was declared as what the study is about."
    assert second.startswith("No single swap is clear, the largest improvement is -0")


def test_seeds_without_an_effect_make_no_finding(shapes: str, tmp_path: Path) -> None:
    plan, ledger = planned(tmp_path, shapes, grid="paper", seeds=4)
    for trial in plan.trials:  # every seed is a copy of the first
        scale = 0.9 if trial.name == "grr" else 1.0
        losses = {f"test/{name}": 12 * scale for name in ("coca", "contrastive", "perplexity")}
        write_result(plan, ledger, trial, trial.stages[0], 0.0, **losses)
    found = make_results(plan, ledger)
    assert {e.verdict for e in found.effects} == {"inconclusive"}
    assert {e.p for e in found.effects} == {1.0}
    assert "baseline -> grr shows the same improvement with every seed" in found.problems[0]
    assert "not at all, every seed shows the same" in sentences(plan, ledger)[2]


def test_a_main_effect_that_is_the_primary_is_not_one_of_the_others(
    shapes: str, tmp_path: Path
) -> None:
    declared = StudyOptions(primary="mlp -> geglu (main effect)")
    plan, ledger = planned(tmp_path, shapes, declared=declared)
    finish(plan, ledger)
    _, second, _ = sentences(plan, ledger)
    assert second.startswith(
        "Of the other single swaps these are clear: baseline -> baseline+geglu"
    )
