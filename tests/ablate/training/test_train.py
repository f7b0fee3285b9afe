from __future__ import annotations

import dataclasses
import itertools
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from samples import small
from torch import nn

from ablate.core.recipe import Recipe, from_dict, with_fields
from ablate.core.records import read_curve
from ablate.core.trial import Trial, make_trial, to_dict
from ablate.core.trial import from_dict as trial_from_dict
from ablate.data import encode_split, open_pairs, open_tokenizer
from ablate.data.batches import Batch, further_captions
from ablate.training.evaluate import recalls, references
from ablate.training.optim import OPTIMIZER, autocast, build, schedule, set_rates
from ablate.training.stages import run_trial
from ablate.training.train import DivergedError, Training
from assemblies import CoCa, CoCaConfig
from blocks import UsageError, default_registry

REGISTRY = default_registry()


def trial(shapes: str, seed: int = 0, cell: CoCaConfig | None = None, **changes: object) -> Trial:
    recipe = with_fields(
        Recipe(), {"data": shapes, "steps": 12, "batch": 16, "evaluate": 3,
                   "evaluation_batch": 16, "lr": 0.003, **changes}
    )  # fmt: skip
    cell = cell or small()
    pairs = open_pairs(shapes, cell.image.size)
    return make_trial("cell", cell, recipe, seed, pairs.fingerprint, REGISTRY)


def train(job: Trial) -> Training:
    return Training(job, job.stages[0], REGISTRY)


def curve(path: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_curve(path)]


def finish(job: Trial, directory: Path) -> dict[str, float]:
    *_, last = run_trial(job, directory, REGISTRY)
    return {k: v for k, v in last.items() if k != "train_seconds"}


def test_training_learns_and_writes_its_result(shapes: str, tmp_path: Path) -> None:
    job = trial(shapes, steps=40)
    last = finish(job, tmp_path)
    lines = curve(tmp_path / "curve.jsonl")
    assert lines[-1]["train/loss"] < lines[0]["train/loss"] - 1
    record = json.loads((tmp_path / "result.json").read_text())
    assert record["key"] == job.key
    assert record["metrics"]["test/coca"] == last["test/coca"]
    assert last["test/coca"] == pytest.approx(last["test/contrastive"] + 2 * last["test/caption"])
    assert last["test/perplexity"] == pytest.approx(math.exp(last["test/caption"]))
    assert not (tmp_path / "checkpoint.pt").exists()
    assert (tmp_path / "model" / "model.safetensors").exists()


def test_the_same_seed_twice_gives_bit_identical_losses(shapes: str, tmp_path: Path) -> None:
    cell = small(dropout=0.1)
    first = finish(trial(shapes, cell=cell), tmp_path / "a")
    torch.randn(100)
    second = finish(trial(shapes, cell=cell), tmp_path / "b")
    assert first == second
    assert curve(tmp_path / "a/curve.jsonl") == curve(tmp_path / "b/curve.jsonl")
    assert finish(trial(shapes, seed=1, cell=cell), tmp_path / "c") != first


@pytest.mark.parametrize("killed_after", [1, 5, 9, 12])
def test_a_killed_trial_goes_on_bit_identically(
    shapes: str, tmp_path: Path, killed_after: int
) -> None:
    job = trial(shapes, cell=small(dropout=0.1))
    expected = finish(job, tmp_path / "whole")
    running = run_trial(job, tmp_path / "cut", REGISTRY)
    for _ in itertools.islice(running, killed_after):
        pass  # the process dies here
    running.close()
    with (tmp_path / "cut/curve.jsonl").open("a") as file:
        file.write('{"step": 99, "tra')  # in the middle of a line
    assert finish(job, tmp_path / "cut") == expected
    assert curve(tmp_path / "cut/curve.jsonl") == curve(tmp_path / "whole/curve.jsonl")


def test_a_finished_trial_is_not_trained_again(shapes: str, tmp_path: Path) -> None:
    job = trial(shapes)
    first = finish(job, tmp_path)
    assert len(list(run_trial(job, tmp_path, REGISTRY))) == 1
    assert finish(job, tmp_path) == first


def test_two_cells_see_the_same_batches(shapes: str) -> None:
    grr, baseline = (train(trial(shapes, cell=small(n))) for n in ("grr", "baseline"))
    for step in (0, 7, 30):
        for a, b in zip(grr.batches[step], baseline.batches[step], strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("weights", [
    {}, {"contrastive_weight": 0.0}, {"caption_weight": 0.0}, {"label_smoothing": 0.1},
], ids=str)  # fmt: skip
def test_accumulation_equals_the_large_batch(shapes: str, weights: dict[str, float]) -> None:
    gradients, losses = [], []
    for accumulate in (1, 4, 16):
        training = train(trial(shapes, accumulate=accumulate, **weights))
        losses.append(training.backward(training.batches[0]))
        gradients.append({n: p.grad.clone() for n, p in training.model.named_parameters()
                          if p.grad is not None})  # fmt: skip
    for parts in (1, 2):
        assert losses[parts] == pytest.approx(losses[0], abs=1e-5)
        assert gradients[parts].keys() == gradients[0].keys()
        for name, whole in gradients[0].items():
            torch.testing.assert_close(gradients[parts][name], whole, atol=1e-5, rtol=1e-4)


def test_accumulation_draws_the_same_dropout_twice(shapes: str) -> None:
    """The two passes of a part must agree, or the contrastive gradient is that of nothing."""
    training = train(trial(shapes, cell=small(dropout=0.3), accumulate=2))
    part = Batch(*(t[:8] for t in training.batches[0]))
    first = training.embed(0, part)
    training.seed_dropout(0)
    out = training.model(*part[:3]).embeddings
    assert torch.equal(first.image, out.image)
    assert torch.equal(first.text, out.text)


def test_a_loss_of_weight_0_is_not_computed(shapes: str) -> None:
    for weight, missing in (("caption_weight", "caption"), ("contrastive_weight", "contrastive")):
        training = train(trial(shapes, **{weight: 0.0}))
        assert missing not in training.step()
        assert missing in training.evaluate_split(
            "val"
        )  # what a model can do is measured all the same


@pytest.mark.parametrize(("name", "has", "lacks"), [
    ("clip", "test/contrastive", "test/perplexity"),
    ("captioner", "test/perplexity", "test/contrastive"),
])  # fmt: skip
def test_one_sided_models_train(
    name: str, has: str, lacks: str, shapes: str, tmp_path: Path
) -> None:
    last = finish(trial(shapes, cell=small(name)), tmp_path)
    assert has in last
    assert lacks not in last
    assert ("test/cider" in last) == (name == "captioner")
    weight = "contrastive_weight" if name == "clip" else "caption_weight"
    nothing = trial(shapes, cell=small(name), **{weight: 0.0})
    with pytest.raises(UsageError, match=f"objective is {small(name).objective}"):
        train(nothing)


def test_a_trial_can_start_from_another_ones_checkpoint(shapes: str, tmp_path: Path) -> None:
    first = trial(shapes, cell=small("baseline"), steps=40)
    finish(first, tmp_path / "first")
    initial = str(tmp_path / "first/model")
    second = trial(shapes, cell=small("baseline"), initial=initial)
    training = train(second)
    before = training.evaluate_split("test")
    expected = json.loads((tmp_path / "first/result.json").read_text())["metrics"]
    assert before["coca"] == pytest.approx(expected["test/coca"], abs=1e-5)

    swapped = trial(shapes, cell=small("grr"), initial=initial)
    last = finish(swapped, tmp_path / "second")
    origin = json.loads((tmp_path / "second/result.json").read_text())["origin"]
    assert "LayerNorms of the image tower folded" in origin
    assert "image.stack.positions.table" in origin
    assert last["test/coca"] < finish(trial(shapes), tmp_path / "scratch")["test/coca"]

    other = tmp_path / "other"
    shutil.copytree(initial, other)
    assert trial(shapes, initial=str(other), cell=small()).key == swapped.key
    (other / "tokenizer.json").write_text("{}")
    assert trial(shapes, initial=f"{other}/", cell=small()).key != swapped.key
    with pytest.raises(UsageError, match="cannot read tokenizer"):
        train(trial(shapes, initial=str(other), cell=small()))


def test_the_temperature_is_bounded(shapes: str) -> None:
    training = train(trial(shapes, max_scale=5.0))
    metrics = training.step()
    assert metrics["scale"] == pytest.approx(5.0)


def test_divergence_is_an_error_that_says_where(shapes: str, tmp_path: Path) -> None:
    job = trial(shapes)
    training = train(job)
    with torch.no_grad():
        training.model.image_projection.weight.fill_(float("nan"))
    with pytest.raises(DivergedError, match="at step 0"):
        training.step()


def test_only_the_matrices_of_linear_maps_decay() -> None:
    model = CoCa(small(**{"image.position": "rope_mixed", "text.position": "learned"}))
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, others = (
        {names[id(p)] for p in group["params"]} for group in build(model, Recipe()).param_groups
    )
    assert decayed | others == set(names.values())
    assert decayed & others == set()
    assert all(name.endswith(".weight") for name in decayed)
    for part in ("gain", "bias", "table", "queries", "frequencies", "tokens", "cls", "log_scale"):
        assert any(part in name for name in others), part
        assert not any(part in name.split(".") for name in decayed), part
    weights = [group["weight_decay"] for group in build(model, Recipe()).param_groups]
    assert weights == [Recipe().weight_decay, 0.0]


def test_every_group_keeps_its_own_base_rate() -> None:
    optimizer = build(nn.Linear(2, 2), Recipe(lr=0.5))
    assert [group["base_lr"] for group in optimizer.param_groups] == [0.5, 0.5]
    optimizer.param_groups[1]["base_lr"] = 0.1
    set_rates(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.025]


def test_an_optimiser_keeps_as_many_moments_as_it_says() -> None:
    linear = nn.Linear(30, 20)
    optimizer = build(linear, Recipe())
    linear(torch.ones(30)).sum().backward()
    optimizer.step()
    state = optimizer.state[linear.weight].values()
    kept = sum(value.numel() for value in state if value.ndim > 0)
    assert kept == OPTIMIZER.moments * linear.weight.numel()


def test_schedule_warms_up_and_falls_to_zero() -> None:
    recipe = Recipe(steps=100, warmup=0.1)
    factors = [schedule(step, recipe) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == pytest.approx(1.0)
    assert factors[55] == pytest.approx(0.5)
    assert 0 < factors[99] < 0.001


@pytest.mark.parametrize(("precision", "device", "enabled"), [
    ("auto", "cpu", False), ("auto", "cuda", True), ("fp32", "cpu", False), ("bf16", "cpu", True),
])  # fmt: skip
def test_precision_follows_the_device(precision: str, device: str, enabled: bool) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch warns about CUDA autocast where there is none")
    assert autocast(precision, torch.device(device))._enabled is enabled


def test_bf16_trains_close_to_fp32(shapes: str) -> None:
    losses = [
        train(trial(shapes, precision=precision)).step()["loss"] for precision in ("fp32", "bf16")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]


def test_recall_counts_any_pair_of_the_group() -> None:
    images = torch.eye(4)
    texts = torch.eye(4)[[1, 0, 2, 3]]  # captions 0 and 1 are swapped
    different = recalls(images, texts, torch.arange(4), torch.arange(4))
    assert different["image_to_text_recall@1"] == 0.5
    assert different["text_to_image_recall@1"] == 0.5
    assert different["image_to_text_recall@5"] == 1.0
    groups = torch.tensor([0, 0, 1, 2])
    same = recalls(images, texts, groups, groups)
    assert same["image_to_text_recall@1"] == 1.0


def test_recall_looks_for_any_of_an_images_captions() -> None:
    images = torch.eye(3)
    bad = torch.tensor([[-0.1, 0.5, 0.5]])  # image 0's first caption; its second one is good
    texts = torch.cat([bad, torch.eye(3)[[1, 2, 0]]])
    found = recalls(images, texts, torch.arange(3), torch.tensor([0, 1, 2, 0]))
    assert found["image_to_text_recall@1"] == 1
    assert found["text_to_image_recall@1"] == pytest.approx(3 / 4)
    alone = recalls(images, texts[:3], torch.arange(3), torch.arange(3))
    assert alone["image_to_text_recall@1"] == pytest.approx(2 / 3)


def test_all_captions_are_looked_at_for_recall(shapes: str) -> None:
    training = train(trial(shapes))
    split = training.data.splits["test"]
    rows = list(further_captions(split, 7))
    assert sum(len(lengths) for _, lengths, _ in rows) == sum(len(ids) - 1 for ids in split.ids) > 0
    before = training.evaluate_split("test")
    for several in split.ids:
        several[1] = several[0]
    after = training.evaluate_split("test")
    assert after["caption"] == before["caption"]
    assert after != before


def test_references_are_what_knowing_nothing_gives(shapes: str) -> None:
    pairs = open_pairs(shapes, 32)
    tokenizer = open_tokenizer(pairs, 400)
    train, test = (encode_split(pairs, s, tokenizer, 24) for s in ("train", "test"))
    known = references(train, test, Recipe(evaluation_batch=10))
    assert known["contrastive"] == pytest.approx(math.log(10))
    assert 1 < known["perplexity"] < tokenizer.get_vocab_size()


def test_keys_change_with_everything_that_matters(shapes: str) -> None:
    base = trial(shapes)
    others = [trial(shapes, seed=1), trial(shapes, lr=0.001), trial(shapes, cell=small("baseline"))]
    assert len({base.key, *(other.key for other in others)}) == 4
    assert trial(shapes).key == base.key
    assert trial_from_dict(json.loads(json.dumps(to_dict(base)))) == base


@pytest.mark.parametrize(("changes", "message"), [
    ({"stepz": 1}, "no field of a recipe named 'stepz'; did you mean 'steps'"),
    ({"steps": 1.5}, "steps=1.5 is float, must be int"),
    ({"steps": 0}, "steps must be at least 1, got 0"),
    ({"lr": -1}, "lr must be above 0 and finite, got -1"),
    ({"lr": math.nan}, "lr must be above 0 and finite, got nan"),
    ({"batch": 10, "accumulate": 3}, r"batch \(10\) must be a multiple of accumulate \(3\)"),
    ({"evaluate": 500}, r"evaluate \(500\) must be at most steps \(240\)"),
    ({"evaluation_batch": 1}, "evaluation_batch must be at least 2"),
    ({"precision": "fp8"}, "no precision named 'fp8'"),
    ({"crop": 0.0}, "crop must be above 0 and at most 1"),
])  # fmt: skip
def test_bad_recipes_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        with_fields(Recipe(), changes)


def test_recipe_round_trip() -> None:
    recipe = Recipe(lr=0.01, data="embedded:icons")
    assert from_dict(dataclasses.asdict(recipe)) == recipe
