from __future__ import annotations

import re
from pathlib import Path

import pytest
from studies import finish, planned

from ablate.findings import make_findings
from ablate.ledger import Ledger
from ablate.opening import NOT_YET, opening
from ablate.plan import Plan
from ablate.planner import Declared


def sentences(plan: Plan, ledger: Ledger) -> list[str]:
    """Return the opening; every part of it must be one sentence."""
    found = opening(plan, make_findings(plan, ledger))
    for part in found:
        assert len(re.findall(r"\.(?=\s|$)", part)) == 1, part
        assert part.endswith(".")
        assert part[0].isupper() or part.startswith(("baseline ->", "grr ->"))
    return found


CASES = [
    ("full", 6, 0.3, 0, ["improves", "Of the single swaps these are clear", "How sure"]),
    ("full", 6, 9.0, 0, ["inconclusive", "the swaps add up as far as can be told", "How sure"]),
    ("full", 1, 0.3, 0, ["too few seeds", "beyond the sum of the single", "One seed shows"]),
    ("swaps", 4, 0.3, 0, ["improves", "No single swap improves, the best", "four times"]),
    ("each", 3, 0.1, 0, ["improves", "clearly worsen, the best of them", "How sure"]),
    ("paper", 6, 0.3, 1, ["as the mean of 2 fine-tunings it changes by",
                          "Of its parts, the contrastive loss changes by +4", "How sure"]),
    ("smoke", 3, 0.3, 0, ["improves", "and the perplexity changes by", "How sure"]),
]  # fmt: skip


@pytest.mark.parametrize(("grid", "seeds", "noise", "later", "words"), CASES)
def test_a_report_opens_with_three_sentences(
    grid: str, seeds: int, noise: float, later: int, words: list[str], shapes: str, tmp_path: Path
) -> None:
    sources = ["embedded:icons", "embedded:stamps"] if later else []
    plan, ledger = planned(tmp_path, shapes, grid=grid, seeds=seeds, sources=sources)
    finish(plan, ledger, noise=noise)
    found = sentences(plan, ledger)
    assert len(found) == 3
    for sentence, part in zip(found, words, strict=True):
        assert part in sentence


def test_a_study_that_has_no_say_opens_with_one(shapes: str, tmp_path: Path) -> None:
    plan, ledger = planned(tmp_path / "empty", shapes, seeds=3)
    assert sentences(plan, ledger) == [NOT_YET]
    declared = Declared(exploratory=True)
    plan, ledger = planned(tmp_path / "asha", shapes, grid="paper", seeds=3, declared=declared)
    finish(plan, ledger)
    (only,) = sentences(plan, ledger)
    assert "exploratory, nothing can be said of it" in only
