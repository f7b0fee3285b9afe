from __future__ import annotations

from pathlib import Path

import pytest
import torch
from samples import small

from ablate.core.recipe import Recipe, with_fields
from ablate.core.records import read_examples
from ablate.data.batches import evaluation_batches
from ablate.data.dataset import open_dataset
from ablate.training.evaluate import evaluate
from ablate.training.example_losses import ExampleLosses, outputs_digest, write_examples
from ablate.training.train import autocast
from assemblies import CoCa
from blocks import default_registry

CPU = torch.device("cpu")
FULL = autocast("fp32", CPU)


@pytest.mark.parametrize("batch", [7, 20])
def test_losses_by_example_average_to_those_of_the_split(shapes: str, batch: int) -> None:
    recipe = with_fields(Recipe(), {"data": shapes, "evaluation_batch": batch})
    cell = small()
    data = open_dataset(recipe, cell).splits["test"]
    model = CoCa(cell, seed=0, registry=default_registry())
    examples = ExampleLosses()
    means = evaluate(model, data, recipe, CPU, FULL, examples=examples)
    found = examples.tensors()
    assert means == evaluate(model, data, recipe, CPU, FULL)
    per_token = found["caption"].sum() / found["tokens"].sum()
    assert float(per_token) == pytest.approx(means["caption"], rel=1e-5)
    contrastive = found["contrastive"]
    assert float(contrastive.nanmean()) == pytest.approx(means["contrastive"], rel=1e-5)
    assert int(contrastive.isnan().sum()) == len(data) % batch
    assert len(found["group"]) == len(data)
    assert model.training


def test_losses_by_example_are_those_of_each_pair_alone(shapes: str) -> None:
    recipe = with_fields(Recipe(), {"data": shapes, "evaluation_batch": 20})
    data = open_dataset(recipe, small()).splits["test"]
    model = CoCa(small(), seed=0, registry=default_registry())
    examples = ExampleLosses()
    evaluate(model, data, recipe, CPU, FULL, examples=examples)
    collected = examples.tensors()
    model.eval()
    batch, full = next(iter(evaluation_batches(data, 20)))
    assert full
    with torch.no_grad():
        out = model(*batch[:3])
    assert out.embeddings is not None
    assert out.states is not None
    logits = out.embeddings.scale * out.embeddings.image @ out.embeddings.text.T
    same = batch.groups[:, None] == batch.groups  # pairs of one caption are no negatives
    logits = logits.masked_fill(same & ~torch.eye(20, dtype=torch.bool), -torch.inf)
    nats = -(logits.log_softmax(1).diag() + logits.log_softmax(0).diag()) / 2
    torch.testing.assert_close(collected["contrastive"][:20], nats)
    for row in range(20):
        length = int(batch.lengths[row])
        likely = (out.states[row] @ model.head.T).log_softmax(-1)[: length - 1]
        nats = -likely.gather(1, batch.tokens[row, 1:length, None]).sum()
        torch.testing.assert_close(collected["caption"][row], nats, rtol=1e-5, atol=1e-5)


def test_examples_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    assert read_examples(tmp_path) is None
    write_examples({"caption": torch.arange(3.0)}, tmp_path)
    assert torch.equal((read_examples(tmp_path) or {})["caption"], torch.arange(3.0))
    (tmp_path / "examples.safetensors").write_bytes(b"damaged")
    assert read_examples(tmp_path) is None


def test_outputs_tell_one_untrained_model_from_another(shapes: str) -> None:
    data = open_dataset(with_fields(Recipe(), {"data": shapes}), small()).splits["val"]

    def told(name: str, seed: int) -> str:
        model = CoCa(small(name), seed=seed, registry=default_registry())
        return outputs_digest(model, data, CPU, FULL)

    assert told("grr", 0) == told("grr", 0)
    assert len({told("grr", 0), told("grr", 1), told("baseline", 0)}) == 3
