from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from studies import finish, planned

from ablate.analysis.comparison import StudySummary
from ablate.analysis.losses import stage_losses
from ablate.analysis.results import make_results
from ablate.core.ledger import Ledger
from ablate.core.plan import read_plan
from ablate.planning.planner import StudyOptions
from ablate.report.compare import compare_studies, pool
from ablate.report.document import Document
from ablate.report.effect_sections import effect_cell, percent
from ablate.stats.effects import improvements
from ablate.stats.tests_and_intervals import t_interval


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
    (StudyOptions(looks=(3, 6)),
     "races, whose seeds came by what was seen: looks at none and 3, 6"),
    (StudyOptions(exploratory=True),
     "exploratory, trials were stopped early: not and exploratory"),
])  # fmt: skip
def test_seeds_that_were_chosen_are_not_pooled(
    declared: StudyOptions, words: str, shapes: str, plain: Path, tmp_path: Path
) -> None:
    plan, ledger = planned(tmp_path / "other", shapes, grid="paper", seeds=6, declared=declared)
    finish(plan, ledger, noise=0.5)
    found = compare_studies(plain, tmp_path / "other")
    assert words in found.sections[0].items
    assert "are not pooled" in found.opening[0]
    row = row_of(found, "CoCa loss")
    assert row[4] == "-"
    assert "[" not in row[3], "no interval of a difference to seeds that were chosen"
    own = make_results(plan, ledger).of(plan.contrasts[0].name)
    assert row[2].startswith(percent(own).replace("%", ""))
    assert found.banner.startswith(f"{tmp_path / 'other'}: EXPLORATORY") == declared.exploratory


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
    both = make_results(read_plan(tmp_path / "more"), Ledger(tmp_path / "more"))
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


def sections_of(document: Document) -> dict[str, list[str]]:
    return {section.title: section.items for section in document.sections}


def spoil(study: Path, trial: str, **metrics: float) -> None:
    path = next((study / "trials").glob(f"{trial}-*")) / "result.json"
    record = json.loads(path.read_text())
    record["metrics"] |= {f"test/{name}": value for name, value in metrics.items()}
    path.write_text(json.dumps(record))


def test_other_seeds_of_one_experiment_are_pooled(shapes: str, plain: Path, tmp_path: Path) -> None:
    later = StudyOptions(first_seed=6)
    finish(*planned(tmp_path / "later", shapes, grid="paper", seeds=5, declared=later))
    finish(*planned(tmp_path / "whole", shapes, grid="paper", seeds=11))
    found = compare_studies(plain, tmp_path / "later")
    whole = make_results(read_plan(tmp_path / "whole"), Ledger(tmp_path / "whole"))
    both = whole.of("baseline -> grr")
    assert both is not None
    assert len(both.seeds) == 11
    assert found.opening == [
        f"The studies are one experiment: baseline -> grr, improvement in CoCa loss "
        f"{percent(both)} over 11 seeds together (6 of {plain}, 5 of {tmp_path / 'later'}): "
        "improved."
    ]
    assert found.sections[0].items == ["Nothing: they are one experiment."]
    assert row_of(found, "CoCa loss")[4] == effect_cell(both)
    verdicts = row_of(found, "Seeds and verdicts (CoCa loss)")
    assert verdicts[1:] == ("6 seeds: improved", "5 seeds: improved", "11 seeds: improved")
    (looked,) = [text for text in found.sections[1].paragraphs if "a look that p" in text]
    assert "about 9%" in looked
    assert "--race declares looks beforehand" in looked


def test_trials_that_came_out_otherwise_are_named_and_not_pooled(
    plain: Path, tmp_path: Path
) -> None:
    study = Path(shutil.copytree(plain, tmp_path / "copy"))
    assert "one experiment" in compare_studies(plain, study).opening[0]
    spoil(study, "grr-seed0", coca=1.0)
    for pair in ((plain, study), (study, plain)):
        found = compare_studies(*pair)
        assert found.sections[0].items == [
            "1 trial of the same key has other results: one of the ledgers was changed or the "
            "machines differ"
        ]
        assert "are not pooled" in found.opening[0]
        assert row_of(found, "CoCa loss")[3:] == ("-", "-")
        assert not any("a look that p" in text for text in found.sections[1].paragraphs)
    spoil(study, "grr-seed1", perplexity=2.0)
    items = compare_studies(plain, study).sections[0].items
    assert items[0].startswith("2 trials of the same key have other results: ")


def test_losses_that_are_no_numbers_are_no_other_results(plain: Path, tmp_path: Path) -> None:
    one = Path(shutil.copytree(plain, tmp_path / "one"))
    spoil(one, "grr-seed0", coca=float("nan"))
    other = Path(shutil.copytree(one, tmp_path / "other"))
    assert "one experiment" in compare_studies(one, other).opening[0]


def test_what_a_side_lost_is_seen(shapes: str, plain: Path, tmp_path: Path) -> None:
    directory = tmp_path / "broken"
    later = StudyOptions(first_seed=6)
    plan, ledger = planned(directory, shapes, grid="paper", seeds=6, declared=later)
    lost = [trial for trial in plan.of_cell("grr") if trial.seed > 8]
    finish(plan, ledger, but=lost)
    ledger.record_failure(lost[0], "Traceback\nRuntimeError: the loss is not finite")
    found = compare_studies(plain, directory)
    assert row_of(found, "Seeds and verdicts (CoCa loss)")[1:] == (
        "6 seeds: improved", "3 of 6 seeds: improved", "9 of 12 seeds: improved",
    )  # fmt: skip
    sections = sections_of(found)
    assert not any(title.endswith(str(plain)) for title in sections)
    items = sections[f"Left out, failed, or doubtful: {directory}"]
    assert "No result for grr seed 9: RuntimeError: the loss is not finite" in items
    assert "No result for grr seed 10: has not run yet" in items
    assert "Seed 9 is not in baseline -> grr: no usable loss of grr." in items
    nothing = compare_studies(plain, plan_only(shapes, tmp_path / "nothing"))
    assert row_of(nothing, "Seeds and verdicts (CoCa loss)")[2] == "0 of 3 seeds: -"


def plan_only(shapes: str, directory: Path) -> Path:
    planned(directory, shapes, grid="paper", seeds=3, changed={"lr": 1e-3})
    return directory


def test_effects_of_two_experiments_are_told_with_their_seeds(
    shapes: str, plain: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "longer"
    plan, ledger = planned(directory, shapes, grid="paper", seeds=4, changed={"lr": 1e-3})
    finish(plan, ledger)
    own = make_results(plan, ledger).of("baseline -> grr")
    assert own is not None
    words = compare_studies(plain, directory).opening
    assert "are not pooled" in words[0]
    assert words[1].startswith("baseline -> grr, improvement in CoCa loss +")
    assert f" over 6 seeds of {plain}: improved; " in words[1]
    assert words[1].endswith(
        f"improvement in CoCa loss {percent(own)} over 4 seeds of {directory}: improved."
    )
    empty = compare_studies(plain, plan_only(shapes, tmp_path / "nothing")).opening
    assert empty[1].endswith(f"; no seed of {tmp_path / 'nothing'} is complete yet.")


def test_pooled_verdicts_are_of_the_contrasts_of_both(shapes: str, tmp_path: Path) -> None:
    for name, cells, first in (("all", (), 0), ("few", ("baseline", "baseline+rmsnorm"), 6)):
        declared = StudyOptions(cells=cells, first_seed=first)
        finish(*planned(tmp_path / name, shapes, grid="swaps", seeds=6, declared=declared))
    name = "baseline -> baseline+rmsnorm"
    shown_of = {}
    for pair in (("all", "few"), ("few", "all")):
        found = compare_studies(*(tmp_path / study for study in pair))
        (table,) = (t for t in found.sections[1].tables if t.title == "CoCa loss")
        shown_of[pair] = {row[0]: row[4] for row in table.rows}[name]
    first = StudySummary.open(tmp_path / "all"), StudySummary.open(tmp_path / "few")
    (alone,) = first[1].plan.contrasts
    pooled = pool(*first, [alone])[name, "coca"]
    assert len(pooled.seeds) == 12
    assert pooled.p_adjusted > pooled.p, "the other contrasts were tested, too"
    assert shown_of["all", "few"] == effect_cell(pooled)


def test_declarations_that_differ_are_named(shapes: str, plain: Path, tmp_path: Path) -> None:
    other = StudyOptions(smallest_effect=2.0, first_seed=6)
    finish(*planned(tmp_path / "other", shapes, grid="paper", seeds=3, declared=other))
    found = compare_studies(plain, tmp_path / "other")
    assert found.sections[0].items == [
        "smallest effect of interest: 1% and 2%; pooled verdicts go by the first study's"
    ]
    assert "one experiment" in found.opening[0]
