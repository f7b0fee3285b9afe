from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from studies import finish, planned

from ablate.compare import compare_studies
from ablate.document import Document
from ablate.effects import improvements
from ablate.findings import make_findings, stage_losses
from ablate.ledger import Ledger
from ablate.plan import read_plan
from ablate.planner import Declared
from ablate.sections import percent
from ablate.statistics import t_interval


def row_of(document: Document, title: str) -> tuple[str, ...]:
    (effects,) = (s for s in document.sections if s.title == "Effects")
    (table,) = (t for t in effects.tables if t.title == title)
    return table.rows[0]


@pytest.fixture(scope="module")
def plain(shapes: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("studies") / "plain"
    finish(*planned(directory, shapes, grid="paper", seeds=6))
    return directory


@pytest.mark.parametrize(("declared", "words"), [
    (Declared(looks=(3, 6)), "races, whose seeds came by what was seen: looks at none and 3, 6"),
    (Declared(exploratory=True), "exploratory, trials were stopped early: not and exploratory"),
])  # fmt: skip
def test_seeds_that_were_chosen_are_not_pooled(
    declared: Declared, words: str, shapes: str, plain: Path, tmp_path: Path
) -> None:
    plan, ledger = planned(tmp_path / "other", shapes, grid="paper", seeds=6, declared=declared)
    finish(plan, ledger, noise=0.5)
    found = compare_studies(plain, tmp_path / "other")
    assert words in found.sections[0].items
    assert "are not pooled" in found.opening[0]
    row = row_of(found, "CoCa loss")
    assert row[4] == "-"
    assert "[" not in row[3], "no interval of a difference to seeds that were chosen"
    own = make_findings(plan, ledger).of(plan.contrasts[0].name)
    assert row[2].startswith(percent(own).replace("%", ""))
    assert found.stamp.startswith(f"{tmp_path / 'other'}: EXPLORATORY") == declared.exploratory


def test_a_study_does_not_differ_from_its_copy(plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain, tmp_path / "copy")
    assert row_of(compare_studies(plain, tmp_path / "copy"), "CoCa loss")[3] == "-"


def test_trials_in_common_are_no_difference(plain: Path, tmp_path: Path) -> None:
    study = Path(shutil.copytree(plain, tmp_path / "copy"))
    data = json.loads((study / "study.json").read_text())
    data["code"] = "another"  # not one experiment, and yet the same trials
    (study / "study.json").write_text(json.dumps(data))
    assert row_of(compare_studies(plain, study), "CoCa loss")[3:] == ("-", "-")


def test_studies_of_the_same_data_are_paired_by_seed(
    shapes: str, plain: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "longer"
    finish(*planned(directory, shapes, grid="paper", seeds=6, changed={"lr": 1e-3}), noise=0.3)
    path = next((directory / "trials").glob("grr-seed0-*")) / "result.json"
    record = json.loads(path.read_text())
    record["metrics"]["test/coca"] *= 1.02
    path.write_text(json.dumps(record))
    row = row_of(compare_studies(plain, directory), "CoCa loss")
    sides = [
        improvements(read_plan(d).contrasts[0], stage_losses(read_plan(d), Ledger(d))["coca"])
        for d in (plain, directory)
    ]
    gaps = np.array([sides[1][seed] - sides[0][seed] for seed in range(6)])
    low, high = t_interval(gaps)
    assert row[3] == f"{gaps.mean():+.2f} [{low:+.2f}, {high:+.2f}]"
    assert row[4] == "-"


def test_finetunings_are_compared_each_and_in_the_mean(shapes: str, tmp_path: Path) -> None:
    sources = (shapes, "embedded:icons")
    for name in ("one", "more"):
        seeds = 3 if name == "one" else 5
        finish(*planned(tmp_path / name, shapes, grid="paper", seeds=seeds, sources=sources))
    finish(*planned(tmp_path / "less", shapes, grid="paper", seeds=3, sources=sources[1:]))
    found = compare_studies(tmp_path / "one", tmp_path / "more")
    both = make_findings(read_plan(tmp_path / "more"), Ledger(tmp_path / "more"))
    mean = both.of("baseline -> grr", "finetune/coca")
    assert mean is not None
    assert row_of(found, "CoCa loss, mean of the fine-tunings")[4].startswith(
        percent(mean).replace("%", "")
    )
    assert row_of(found, "CoCa loss, finetune:icons")[4].startswith("+")
    found = compare_studies(tmp_path / "one", tmp_path / "less")
    assert "finetune:shapes: only one of the studies has it" in found.sections[0].items
    titles = [table.title for table in found.sections[1].tables]
    assert "CoCa loss, finetune:icons" in titles
    assert not any("mean" in title for title in titles)
