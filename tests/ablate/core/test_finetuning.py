from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from samples import SMALL, shapes_rows, small, write_shard

from ablate.analysis.results import make_results
from ablate.cli.command import main
from ablate.cli.stages import parse_stages
from ablate.core.finetuning import finetunings, stage_name
from ablate.core.ledger import Ledger
from ablate.core.plan import write_plan
from ablate.core.recipe import Recipe, with_fields
from ablate.core.study_identity import refuse_other_study
from ablate.core.trial import Trial, from_dict, make_trial, to_dict
from ablate.data import open_pairs
from ablate.planning.plan_text import describe
from ablate.planning.planner import make_plan
from ablate.report.build import make_report
from ablate.training.stages import run_trial
from ablate.training.train import Training
from assemblies import load
from blocks import UsageError, default_registry

REGISTRY = default_registry()
SHORT = {"steps": 12, "batch": 16, "evaluate": 3, "evaluation_batch": 16, "lr": 0.003}


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return two sets to fine-tune on: halves of the drawn shapes."""
    folder, rows = tmp_path_factory.mktemp("sets"), shapes_rows(400)
    parts = {"early": rows[400:600], "late": rows[600:]}
    return [f"webdataset:{write_shard(folder / f'{n}.tar', m)}" for n, m in parts.items()]


def trial(shapes: str, others: list[str], seed: int = 0, **changes: object) -> Trial:
    recipe = with_fields(Recipe(), {"data": shapes, **SHORT})
    later = [
        (name, own, open_pairs(own.data, 32).fingerprint)
        for name, own in finetunings(others, recipe, {"steps": 6, **changes}).items()
    ]
    fingerprint = open_pairs(shapes, 32).fingerprint
    return make_trial("cell", small(dropout=0.1), recipe, seed, fingerprint, REGISTRY, later)


def finish(job: Trial, directory: Path) -> dict[str, float]:
    """Run a trial; returns its metrics without those of time."""
    ledger = Ledger(directory)
    for _ in run_trial(job, ledger.folder(job), REGISTRY):
        pass
    found = ledger.metrics(job)
    assert found is not None
    return {name: value for name, value in found.items() if name != "train_seconds"}


def test_stages_follow_one_another(shapes: str, others: list[str], tmp_path: Path) -> None:
    job, ledger = trial(shapes, others), Ledger(tmp_path)
    yielded = list(run_trial(job, ledger.folder(job), REGISTRY))
    metrics = ledger.metrics(job)
    assert [line["step"] for line in ledger.curve(job)] == list(range(1, 25))
    assert yielded[-1]["step"] == job.steps == 24
    for prefix in ("", "early/", "late/"):
        for name in ("test/coca", "last/coca", "test/cider", "test/text_to_image_recall@1"):
            assert prefix + name in metrics
    folder = ledger.folder(job)
    for stage in job.stages:
        assert (folder / stage.folder / "model/config.json").exists()
    origins = [ledger.record(job, stage)["origin"] for stage in job.stages]
    assert origins[0] == "random weights"
    assert all(str(folder / "model") in origin for origin in origins[1:])


def test_finetunings_start_from_the_pretrained_best(
    shapes: str, others: list[str], tmp_path: Path
) -> None:
    job, ledger = trial(shapes, others), Ledger(tmp_path)
    finish(job, tmp_path)
    source = load(ledger.folder(job) / "model").state_dict()
    for stage in job.stages[1:]:
        training = Training(job, stage, REGISTRY, ledger.folder(job))
        for name, tensor in training.model.state_dict().items():
            assert torch.equal(tensor, source[name])
        tokenizer = (ledger.folder(job) / "model/tokenizer.json").read_text()
        assert json.loads(training.data.tokenizer.to_str()) == json.loads(tokenizer)


@pytest.mark.parametrize("killed_after", [3, 12, 14, 20, 22])
def test_a_trial_killed_in_any_stage_goes_on_bit_identically(
    shapes: str, others: list[str], tmp_path: Path, killed_after: int
) -> None:
    job = trial(shapes, others)
    expected = finish(job, tmp_path / "whole")
    running = run_trial(job, Ledger(tmp_path / "cut").folder(job), REGISTRY)
    for _ in itertools.islice(running, killed_after):
        pass  # the process dies here
    running.close()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "cut").rglob("result.json")}
    assert finish(job, tmp_path / "cut") == expected
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    assert bool(before) == (killed_after > 12)


def test_a_damaged_checkpoint_costs_time_only(
    shapes: str, others: list[str], tmp_path: Path
) -> None:
    job = trial(shapes, [])
    expected = finish(job, tmp_path / "whole")
    folder = Ledger(tmp_path / "cut").folder(job)
    running = run_trial(job, folder, REGISTRY)
    for _ in itertools.islice(running, 6):
        pass
    running.close()
    content = bytearray((folder / "checkpoint.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "checkpoint.pt").write_bytes(content)
    assert finish(job, tmp_path / "cut") == expected


def test_adding_a_set_repeats_no_pretraining(
    shapes: str, others: list[str], tmp_path: Path
) -> None:
    first = trial(shapes, others[:1])
    finish(first, tmp_path)
    ledger = Ledger(tmp_path)
    records = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("result.json")}
    assert len(records) == 2
    more = trial(shapes, others)
    assert ledger.folder(more) == ledger.folder(first)
    assert ledger.result(more) is None
    finish(more, tmp_path)
    assert all(path.stat().st_mtime_ns == when for path, when in records.items())
    changed = trial(shapes, others, lr=0.01)
    assert changed.stages[0] == more.stages[0]
    assert changed.stages[1].key != more.stages[1].key
    assert changed.stages[1].folder != more.stages[1].folder


def test_keys_of_finetunings_hold_the_pretraining(shapes: str, others: list[str]) -> None:
    one, two = trial(shapes, others), trial(shapes, others, seed=1)
    keys = [stage.key for job in (one, two) for stage in job.stages]
    assert len(set(keys)) == len(keys)
    assert from_dict(json.loads(json.dumps(to_dict(one)))) == one


def test_what_is_damaged_or_lost_is_done_again(
    shapes: str, others: list[str], tmp_path: Path
) -> None:
    job, ledger = trial(shapes, others[:1]), Ledger(tmp_path)
    expected = finish(job, tmp_path)
    (ledger.folder(job) / job.stages[1].folder / "result.json").write_text("{bad")
    shutil.rmtree(ledger.folder(job) / "model")
    assert ledger.result(job) is None
    assert finish(job, tmp_path) == expected


def test_patience_stops_a_run_that_gets_no_better(shapes: str, tmp_path: Path) -> None:
    recipe = with_fields(
        Recipe(), {"data": shapes, **SHORT, "steps": 40, "evaluate": 20, "patience": 2, "lr": 30.0}
    )
    fingerprint = open_pairs(shapes, 32).fingerprint
    job = make_trial("cell", small(), recipe, 0, fingerprint, REGISTRY)
    found = finish(job, tmp_path)
    assert found["last_step"] < 40
    assert found["last_step"] == found["best_step"] + 4  # two looks, two steps apart
    assert found["last/coca"] > found["test/coca"]


@pytest.mark.parametrize(("text", "sources"), [
    ("pretrain", ()),
    ("pretrain,finetune:icons", ("embedded:icons",)),
    ("pretrain, finetune:icons, tiles,figures",
     ("embedded:icons", "embedded:tiles", "embedded:figures")),
    ("pretrain,finetune:coco:/x/images,/x/captions.json,icons",
     ("coco:/x/images,/x/captions.json", "embedded:icons")),
    ("pretrain,finetune:folder:/a,webdataset:/b/*.tar", ("folder:/a", "webdataset:/b/*.tar")),
])  # fmt: skip
def test_stages_are_parsed(text: str, sources: tuple[str, ...]) -> None:
    assert parse_stages(text) == sources


@pytest.mark.parametrize(("text", "message"), [
    ("finetune:icons", "must begin with pretrain"),
    ("pretrain,icons", "after pretrain comes finetune:SET"),
    ("pretrain,finetune:icnos", "did you mean 'icons'"),
    ("", "must begin with pretrain"),
])  # fmt: skip
def test_mistakes_in_stages_are_named(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_stages(text)


def test_sources_get_short_names_that_differ() -> None:
    assert stage_name("embedded:icons") == "finetune:icons"
    assert stage_name("coco:/x/images,/x/captions_val.json") == "finetune:captions_val"
    assert stage_name("csv:/r/a.csv?image=i&caption=c") == "finetune:a"
    assert stage_name("webdataset:/data/{0..9}.tar").startswith("finetune:0")
    with pytest.raises(UsageError, match="two fine-tunings are named 'finetune:icons'"):
        finetunings(["embedded:icons", "folder:/x/icons"], Recipe(), {})


def planned(shapes: str, others: list[str], **settings: object):  # type: ignore[no-untyped-def]
    own = {**SMALL, **SHORT, "data": shapes, "steps": 4, "evaluate": 1, **settings}
    return make_plan("paper", "nano", 2, own, REGISTRY, others)


def test_a_plan_tells_its_stages_and_refuses_what_cannot_be(shapes: str, others: list[str]) -> None:
    plan = planned(shapes, others, **{"finetune.lr": 0.5, "finetune.steps": 3})
    text = describe(plan)
    assert "then finetune:early" in text
    assert "3 steps of 16 pairs, lr 0.5" in text
    assert {stage.recipe.lr for stage in plan.trials[0].stages[1:]} == {0.5}
    with pytest.raises(UsageError, match="name the sets in --stages"):
        planned(shapes, others, **{"finetune.data": "embedded:icons"})
    with pytest.raises(UsageError, match="nothing is fine-tuned"):
        planned(shapes, [], **{"finetune.lr": 0.5})
    with pytest.raises(UsageError, match="did you mean 'lr'"):
        planned(shapes, others, **{"finetune.lrr": 0.5})
    with pytest.raises(UsageError, match="finetune:late: the training split has"):
        planned(shapes, others[1:], **{"finetune.batch": 5000})


def test_the_paper_grid_has_the_papers_workflow(shapes: str) -> None:
    plan = make_plan("paper", "nano", 1, {**SMALL, "steps": 2, "evaluate": 1}, REGISTRY)
    names = [stage.name for stage in plan.trials[0].stages]
    assert names == ["pretrain", "finetune:icons", "finetune:tiles", "finetune:figures"]


def test_the_report_has_the_papers_table(
    shapes: str, others: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, ledger = planned(shapes, others), Ledger(tmp_path)
    write_plan(plan, tmp_path, {})
    for job in plan.trials[:-1]:
        finish(job, tmp_path)
    assert main(["status", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [s["done"] for t in found["trials"] for s in t["stages"].values()] == 9 * [True] + 3 * [
        False
    ]
    finish(plan.trials[-1], tmp_path)
    found = make_results(plan, ledger)
    report = make_report(plan, ledger, found)
    rows = [row[0].removeprefix("measured: ") for row in report.sections[0].tables[0].rows]
    assert [row.split(":")[0] for row in rows if "claimed" not in row] == [
        "pretrain webdataset", "finetune", "finetune", "mean of 2 fine-tunings",
    ]  # fmt: skip
    assert rows.count("claimed (arXiv 2507.18009)") == 2
    by_metric = {e.metric: e for e in found.effects if e.contrast == "baseline -> grr"}
    mean = (by_metric["early/coca"].estimate + by_metric["late/coca"].estimate) / 2
    assert by_metric["finetune/coca"].estimate == pytest.approx(mean)
    assert "as the mean of 2 fine-tunings it is -0.75%" in report.opening[0]
    assert main(["status", str(tmp_path)]) == 0
    assert "4 of 4 trials done, 0 failed; no process is running it" in capsys.readouterr().out
    refuse_other_study(planned(shapes, others[:1]), ledger)  # a set less is the same study
    with pytest.raises(UsageError, match="finetune:early lr="):
        refuse_other_study(planned(shapes, others, **{"finetune.lr": 0.5}), ledger)


def test_a_study_stopped_before_its_first_trial_binds_nobody(
    shapes: str, others: list[str], tmp_path: Path
) -> None:
    plan, ledger = planned(shapes, others), Ledger(tmp_path)
    write_plan(plan, tmp_path, {})
    other = planned(shapes, others, **{"finetune.lr": 0.5})
    refuse_other_study(other, ledger)
    ledger.folder(plan.trials[0]).mkdir(parents=True)
    with pytest.raises(UsageError, match="finetune:early lr="):
        refuse_other_study(other, ledger)


def test_status_tells_failures_and_half_done_stages(
    shapes: str, others: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, ledger = planned(shapes, others), Ledger(tmp_path)
    write_plan(plan, tmp_path, {})
    running = run_trial(plan.trials[0], ledger.folder(plan.trials[0]), REGISTRY)
    next(running), next(running)
    ledger.folder(plan.trials[1]).mkdir(parents=True)
    ledger.record_failure(plan.trials[1], "Traceback\nDivergedError: loss nan at step 3\n")
    with ledger.locked():
        assert main(["status", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "step 2 of 4" in shown
    assert "DivergedError: loss nan at step 3" in shown
    assert "0 of 4 trials done, 1 failed; a process is running it" in shown
    assert main(["status", str(tmp_path / "nowhere")]) == 2
    assert "is no study" in capsys.readouterr().err
    shutil.copy(tmp_path / "study.json", tmp_path / "old.json")
    for path in (tmp_path / "study.json", ""):
        assert main(["status", str(path)]) == 2
        assert "is no study" in capsys.readouterr().err
    (tmp_path / "study.json").write_text("{bad")
    assert main(["status", str(tmp_path)]) == 2
    assert "study.json': " in capsys.readouterr().err
    (tmp_path / "study.json").write_text('{"grid": "paper", "trials": {"a": "key"}}')
    assert main(["status", str(tmp_path)]) == 2
    assert "another version" in capsys.readouterr().err
