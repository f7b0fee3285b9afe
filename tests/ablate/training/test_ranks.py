"""A trial trained by several processes has the numbers of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ranks import check_equal, run_alone, run_on_ranks
from safetensors.torch import load_file
from samples import small

from ablate.core.finetuning import finetunings
from ablate.core.recipe import Recipe, with_fields
from ablate.core.records import read_curve
from ablate.core.trial import Trial, make_trial
from ablate.data import open_pairs
from blocks import default_registry

REGISTRY = default_registry()


def trial(shapes: str, *, dropout: float = 0.0, later: bool = False, **changes: object) -> Trial:
    recipe = with_fields(
        Recipe(), {"data": shapes, "steps": 20, "batch": 16, "evaluate": 2,
                   "evaluation_batch": 16, "lr": 0.001, **changes}
    )  # fmt: skip
    fingerprint = open_pairs(shapes, 32).fingerprint
    own = finetunings([shapes], recipe, {"steps": 6}) if later else {}
    stages = [(name, how, fingerprint) for name, how in own.items()]
    return make_trial("cell", small(dropout=dropout), recipe, 0, fingerprint, REGISTRY, stages)


def test_two_ranks_equal_one_process(shapes: str, tmp_path: Path) -> None:
    job = trial(shapes)
    run_alone(job, tmp_path / "one")
    run_on_ranks(job, tmp_path / "two", world=2)
    check_equal(job, tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize(("dropout", "changes"), [
    (0.1, {"accumulate": 2}),  # the parts of one process, and their masks, over two
    (0.1, {"accumulate": 4}),
    (0.0, {"accumulate": 1, "contrastive_weight": 0.0, "patience": 1}),
    (0.0, {"accumulate": 4, "caption_weight": 0.0}),
], ids=str)  # fmt: skip
def test_two_ranks_equal_one_process_in_parts(
    dropout: float, changes: dict[str, object], shapes: str, tmp_path: Path
) -> None:
    job = trial(shapes, dropout=dropout, later=True, **changes)
    run_alone(job, tmp_path / "one")
    run_on_ranks(job, tmp_path / "two", world=2)
    check_equal(job, tmp_path / "one", tmp_path / "two", tolerance=1e-4)


@pytest.mark.slow
def test_ranks_killed_midway_go_on_bit_identically(shapes: str, tmp_path: Path) -> None:
    job = trial(shapes, dropout=0.1, accumulate=2, later=True)
    run_on_ranks(job, tmp_path / "whole", world=2)
    for steps in (13, 12):  # in pretraining, and in the fine-tuning
        run_on_ranks(job, tmp_path / "cut", world=2, steps=steps)
    run_on_ranks(job, tmp_path / "cut", world=2)
    for stage in job.stages:
        whole, cut = (tmp_path / way / stage.folder / "curve.jsonl" for way in ("whole", "cut"))
        lines = [[{**line, "seconds": 0} for line in read_curve(p)] for p in (whole, cut)]
        assert lines[0] == lines[1]
        models = [load_file(p.parent / "model/model.safetensors") for p in (whole, cut)]
        assert all(torch.equal(models[1][name], weight) for name, weight in models[0].items())


@pytest.mark.slow
@pytest.mark.parametrize(("dropout", "changes", "message"), [
    (0.1, {}, "dropout depends on the parts of a batch, and 2 workers .* set accumulate=2"),
    (0.0, {"batch": 15}, "a batch of 15 pairs cannot be shared by 2 workers in 2 equal parts"),
], ids=str)  # fmt: skip
def test_what_ranks_would_change_is_refused(
    dropout: float, changes: dict[str, object], message: str, shapes: str, tmp_path: Path
) -> None:
    with pytest.raises(Exception, match=message):
        run_on_ranks(trial(shapes, dropout=dropout, **changes), tmp_path, world=2)
