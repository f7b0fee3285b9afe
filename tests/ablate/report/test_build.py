from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image
from studies import HOSTILE, finish, planned

from ablate.analysis.losses import stage_losses
from ablate.analysis.results import effects_csv, make_results
from ablate.cli.command import main
from ablate.core.ledger import Ledger
from ablate.core.plan import Plan, read_plan
from ablate.core.records import read_examples
from ablate.planning.planner import StudyOptions
from ablate.report.build import make_report, texts, write_report
from ablate.stats.effects import DecisionRule
from ablate.stats.factorial import attribute
from ablate.stats.sequential import level
from ablate.stats.tests_and_intervals import t_quantile
from ablate.training.example_losses import write_examples


@pytest.fixture(scope="module")
def reported(shapes: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a full study with its report."""
    directory = tmp_path_factory.mktemp("studies") / "full"
    plan, ledger = planned(directory, shapes)
    finish(plan, ledger)
    write_report(plan, ledger)
    return directory


def copied(study: Path, to: Path) -> tuple[Path, Plan, Ledger]:
    shutil.copytree(study, to)
    return to, read_plan(to), Ledger(to)


def test_a_report_opens_with_what_was_found_then_claims_then_evidence(reported: Path) -> None:
    plan, ledger = read_plan(reported), Ledger(reported)
    document = make_report(plan, ledger, make_results(plan, ledger))
    assert [section.title for section in document.sections] == [
        "The paper's contrast", "Effects", "What each swap contributes", "Cells",
        "Other test examples", "Methods", "Provenance",
    ]  # fmt: skip
    assert [s.folded for s in document.sections] == [False] * 5 + [True] * 2
    assert len(document.opening) == 3
    assert document.opening[0].startswith("baseline -> grr improves the CoCa loss by +4.")
    assert document.title == "Study full: grid full"
    assert document.banner == ""
    html = (reported / "report.html").read_text(encoding="utf-8")
    order = ["improves the CoCa loss", "<h2>The paper", "claimed (arXiv 2507.18009)",
             "Effects: pretrain", "Shapley values", ">chance<", "<h2>Methods",
             "source hash"]  # fmt: skip
    places = [html.index(words) for words in order]
    assert places == sorted(places)


def test_a_report_is_remade_from_the_ledger_alone_byte_by_byte(
    reported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("report.md", "report.html", "effects.csv", "table.tex")
    before = {name: (reported / name).read_bytes() for name in names}
    study, _, _ = copied(reported, tmp_path / "full")
    for name in names:
        (study / name).unlink()
    assert main(["report", str(study)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("baseline -> grr improves")
    assert f"report: {study / 'report.html'}" in shown
    assert {name: (study / name).read_bytes() for name in names} == before


def test_texts_are_the_files_that_a_bundle_is_checked_by(reported: Path) -> None:
    plan, ledger = read_plan(reported), Ledger(reported)
    found = make_results(plan, ledger)
    made = texts(make_report(plan, ledger, found), found)
    assert list(made) == ["report.md", "effects.csv", "table.tex"]
    for name, text in made.items():
        assert (reported / name).read_text(encoding="utf-8") == text
    assert made["table.tex"].count(r"\toprule") == 2
    rows = list(csv.DictReader(made["effects.csv"].splitlines()))
    assert len(rows) == len(found.effects) + len(found.noise)
    assert float(rows[0]["estimate"]) == found.effects[0].estimate


@pytest.mark.slow
def test_a_bundle_of_a_study_holds(
    reported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study, _, _ = copied(reported, tmp_path / "full")
    assert main(["bundle", str(study), str(tmp_path / "full.zip")]) == 0
    assert main(["verify", str(tmp_path / "full.zip")]) == 0
    assert "holds" in capsys.readouterr().out


def test_pictures_that_are_not_there_are_not_spoken_of(reported: Path, tmp_path: Path) -> None:
    study, plan, ledger = copied(reported, tmp_path / "full")
    found = make_results(plan, ledger)
    Image.new("RGB", (3, 2)).save(study / "captions.png")
    (study / "shapley.png").unlink()
    made = texts(make_report(plan, ledger, found), found)["report.md"]
    assert "(shapley.png)" not in made
    assert "(interactions.png)" in made
    assert "## What a model says" in made
    assert "(captions.png)" in made
    assert "## What a model says" not in (reported / "report.md").read_text(encoding="utf-8")


def test_a_study_with_nothing_finished_has_a_readable_report(
    shapes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, ledger = planned(tmp_path / "empty", shapes, seeds=2)
    ledger.record_failure(plan.trials[0], "Traceback\nDivergedError: loss <nan> at step 3\n")
    assert main(["report", str(tmp_path / "empty")]) == 0
    assert capsys.readouterr().out.startswith("WARNING FAILED: baseline with seed 0;")
    text = (tmp_path / "empty/report.md").read_text(encoding="utf-8")
    assert "No result for baseline seed 0: DivergedError: loss &lt;nan> at step 3" in text
    assert text.count("has not run yet") == len(plan.trials) - 1
    assert "![" not in text
    assert not re.search(r"\bnan\b", text.replace("&lt;nan>", ""))


def test_half_a_study_says_what_is_missing(shapes: str, tmp_path: Path) -> None:
    plan, ledger = planned(tmp_path, shapes, seeds=4)
    left_out = [t for t in plan.trials if t.seed == 3] + plan.of_cell("original")
    finish(plan, ledger, but=left_out)
    found = make_results(plan, ledger)
    document = make_report(plan, ledger, found)
    assert "over 3 seeds" in document.opening[0]
    assert found.of("baseline -> original") is None
    text = texts(document, found)["report.md"]
    assert "No result for original seed 0: has not run yet" in text
    assert "| baseline -> original | - | - | - | - | 0 | - |" in text


def test_the_papers_table_has_the_finetunings_and_their_mean(shapes: str, tmp_path: Path) -> None:
    plan, ledger = planned(tmp_path, shapes, grid="paper", seeds=3, sources=(shapes,))
    finish(plan, ledger)
    document, found, paths = write_report(plan, ledger)
    (table,) = document.sections[0].tables
    assert [row[0].partition(":")[0] for row in table.rows] == [
        "measured", "claimed (arXiv 2507.18009)", "measured", "measured",
        "claimed (arXiv 2507.18009)",
    ]  # fmt: skip
    assert table.rows[1][1:4] == ("+27.25", "+3.71", "+7.15")
    assert table.rows[4][1:4] == ("+13.66", "+5.18", "+5.55")
    mean = found.of("baseline -> grr", "finetune/coca")
    assert table.rows[3][3].startswith(f"{mean.estimate:+.2f} ")
    assert "; after fine-tuning it is +4.39%" in document.opening[0]
    assert {"effects-finetuned.png", "effects-finetuned.svg"} <= {path.name for path in paths}


def test_noise_that_is_found_stamps_the_report(shapes: str, tmp_path: Path) -> None:
    declared = StudyOptions(noise=True)
    plan, ledger = planned(tmp_path, shapes, grid="paper", declared=declared)
    finish(plan, ledger)
    for trial in plan.of_cell("baseline again"):  # as if it were another cell
        path = ledger.folder(trial) / "result.json"
        record = json.loads(path.read_text())
        record["metrics"]["test/coca"] *= 0.8
        path.write_text(json.dumps(record))
    document, _, _ = write_report(plan, ledger)
    assert document.banner.startswith("NOISE: baseline -> baseline again")
    assert "Warning." in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_an_exploratory_study_is_stamped(shapes: str, tmp_path: Path) -> None:
    declared = StudyOptions(exploratory=True)
    plan, ledger = planned(tmp_path, shapes, grid="paper", seeds=3, declared=declared)
    finish(plan, ledger)
    assert write_report(plan, ledger)[0].banner.startswith("EXPLORATORY")


def test_hostile_cell_names_are_text_everywhere(shapes: str, tmp_path: Path) -> None:
    plan, ledger = planned(tmp_path, shapes, grid="paper", seeds=3, rename={"grr": HOSTILE})
    finish(plan, ledger)
    write_report(plan, ledger)
    assert "<b>x" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<b>x" not in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "$\\alpha$" not in (tmp_path / "table.tex").read_text(encoding="utf-8")
    rows = list(csv.reader((tmp_path / "effects.csv").read_text(encoding="utf-8").splitlines()))
    assert {len(row) for row in rows} == {len(rows[0])}


def test_effects_as_json_are_json(reported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in reported.iterdir()}
    assert main(["report", str(reported), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["effects"][0]["contrast"] == "baseline -> grr"
    assert found["noise"][0]["contrast"] == "baseline -> baseline again"
    coca = found["attributions"]["coca"]
    total = sum(part["estimate"] for part in coca["shapley"])
    assert math.isclose(total, coca["gain"]["estimate"])
    assert {path: path.stat().st_mtime_ns for path in reported.iterdir()} == before


def test_numbers_that_are_not_finite_are_null(
    shapes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, ledger = planned(tmp_path, shapes, grid="paper", seeds=1)
    finish(plan, ledger)
    assert main(["report", str(tmp_path), "--json"]) == 0
    effect = json.loads(capsys.readouterr().out)["effects"][0]
    assert effect["low"] is None
    assert "-inf" in effects_csv(make_results(plan, ledger).effects)


def test_two_studies_side_by_side(
    shapes: str, reported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, ledger = planned(tmp_path / "more", shapes, seeds=8)
    finish(plan, ledger)
    both = [str(reported), str(tmp_path / "more")]
    assert main(["compare", *both]) == 0
    assert "over 8 seeds together" in capsys.readouterr().out
    assert main(["compare", *both, "--out", str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.html", "report.md"}
    assert "one experiment" in (tmp_path / "out/report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("arguments", "message"), [
    (["report", "nowhere"], "'nowhere' is no study"),
    (["report", "STUDY", "--out", "x"], "no option named '--out'"),
    (["report", "STUDY", "STUDY"], "unexpected"),
    (["compare", "STUDY", "STUDY"], "is given twice"),
    (["compare", "STUDY", "nowhere"], "'nowhere' is no study"),
    (["compare", "STUDY", "nowhere", "--json"], "no option named '--json'"),
])  # fmt: skip
def test_bad_usage_exits_with_2(
    arguments: list[str], message: str, reported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(reported) if word == "STUDY" else word for word in arguments]
    assert main(given) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


def test_a_directory_that_cannot_be_written_is_named(
    reported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied(reported, tmp_path / "other")
    (tmp_path / "file").write_text("")
    both = [str(reported), str(tmp_path / "other")]
    assert main(["compare", *both, "--out", str(tmp_path / "file")]) == 2
    assert "cannot write into" in capsys.readouterr().err


def test_many_clear_swaps_are_summed_up_in_one_sentence(shapes: str, tmp_path: Path) -> None:
    plan, ledger = planned(tmp_path, shapes, grid="each", seeds=3)
    finish(plan, ledger, noise=0.1)
    sentence = make_report(plan, ledger, make_results(plan, ledger)).opening[1]
    singles = len(plan.contrasts) - 1
    assert sentence.startswith(f"Of the single swaps 0 clearly improve and {singles} clearly")
    assert sentence.count(" -> ") == 2


def test_a_race_tells_its_looks(shapes: str, tmp_path: Path) -> None:
    plan, ledger = planned(tmp_path, shapes, grid="paper", declared=StudyOptions(looks=(3, 6)))
    finish(plan, ledger)
    titles = [s.title for s in make_report(plan, ledger, make_results(plan, ledger)).sections]
    assert titles[1:4] == ["Effects", "The race", "Cells"]


def test_losses_by_example_are_those_of_all_pairs_of_the_primary_contrast(
    shapes: str, tmp_path: Path
) -> None:
    primary = "mlp -> geglu (main effect)"
    plan, ledger = planned(tmp_path, shapes, seeds=4, declared=StudyOptions(primary=primary))
    finish(plan, ledger)
    found = make_results(plan, ledger)
    assert plan.primary is not None
    assert len(plan.primary.pairs) == 4
    effect = found.of(primary, "contrastive")
    assert effect is not None
    for by_example in found.examples:  # both losses are made of one here
        assert by_example.estimate == pytest.approx(effect.estimate, rel=1e-4)


def test_in_a_race_every_interval_holds_at_every_look(shapes: str, tmp_path: Path) -> None:
    plan, ledger = planned(tmp_path, shapes, declared=StudyOptions(looks=(3, 6)))
    finish(plan, ledger, but=[trial for trial in plan.trials if trial.seed == 5])
    found = make_results(plan, ledger)
    whole = found.attributions["coca"]
    assert whole.seeds == (0, 1, 2)  # what came after the look waits for the next one
    plain = attribute({frozenset(s): n for n, s in plan.factorial.items()},
                      {k: v for k, v in stage_losses(plan, ledger)["coca"].items() if k[1] < 3},
                      DecisionRule())  # fmt: skip
    assert plain is not None
    wider = t_quantile(2, 1 - level((3, 6), 3)) / t_quantile(2)
    assert wider > 2
    every, others = ([*a.shapley, *a.terms, a.additive_gap] for a in (whole, plain))
    for ours, theirs in zip(every, others, strict=True):
        assert ours.estimate == theirs.estimate
        assert ours.high - ours.low == pytest.approx(wider * (theirs.high - theirs.low))
        assert ours.p >= theirs.p
    for by_example in found.examples:
        assert by_example.seeds == 3
        assert (by_example.high - by_example.low) / by_example.error > 2 * t_quantile(100)


@pytest.mark.parametrize("which", ["caption", "contrastive"])
def test_a_loss_by_example_that_is_no_number_costs_its_pair_only(
    which: str, shapes: str, tmp_path: Path
) -> None:
    plan, ledger = planned(tmp_path, shapes, grid="paper", seeds=4)
    finish(plan, ledger)
    whole = {e.metric: e for e in make_results(plan, ledger).examples}
    folder = ledger.folder(plan.of_cell("grr")[1])
    losses = read_examples(folder) or {}
    losses[which][3] = math.nan
    write_examples(losses, folder)
    found = make_results(plan, ledger)
    left = {e.metric: e for e in found.examples}
    assert {metric: e.seeds for metric, e in left.items()} == {
        metric: 3 if metric == which else 4 for metric in whole
    }
    assert {e.examples for e in left.values()} == {40}
    (problem,) = found.problems
    assert f"seed 1 of baseline -> grr has a {which} loss by example that is not" in problem


@pytest.mark.parametrize(("field", "value"), [
    ("name", "finetune:../../../../home/x"),
    ("name", "finetune:a\\b"),
    ("name", "finetune:a\0b"),
    ("key", "/../../.."),
])  # fmt: skip
def test_a_plan_cannot_name_files_outside_of_its_study(
    field: str, value: str, shapes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planned(tmp_path, shapes, grid="paper", seeds=2, sources=(shapes,))
    data = json.loads((tmp_path / "study.json").read_text())
    data["trials"][0]["stages"][1][field] = value
    (tmp_path / "study.json").write_text(json.dumps(data))
    assert main(["report", str(tmp_path)]) == 2
    assert "has a stage with a folder outside of it" in capsys.readouterr().err


def test_a_trials_folder_lies_in_its_study(reported: Path) -> None:
    trial = read_plan(reported).trials[0]
    inside = reported / "trials"
    for name in ("../../x", "/etc/x", "..\\x", "a\0b"):
        assert Ledger(reported).folder(dataclasses.replace(trial, name=name)).parent == inside


def test_figures_that_cannot_be_written_are_no_traceback(
    reported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study, _, _ = copied(reported, tmp_path / "full")
    (study / "effects.png").unlink()
    (study / "effects.png").mkdir()  # stands in for a disk that is full or read-only
    (study / "effects.png/in the way").write_text("")
    assert main(["report", str(study)]) == 2
    assert "cannot write into" in capsys.readouterr().err
    assert main(["bundle", str(study), str(tmp_path / "full.zip")]) == 2
    assert "cannot write into" in capsys.readouterr().err


def test_a_comparison_overwrites_no_study(
    reported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study, _, _ = copied(reported, tmp_path / "other")
    before = (study / "report.md").read_bytes()
    assert main(["compare", str(reported), str(study), "--out", str(study)]) == 2
    assert "holds a study" in capsys.readouterr().err
    assert (study / "report.md").read_bytes() == before
