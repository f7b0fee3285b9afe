"""A trial in one process or on several ranks of this machine, without Ray, and their comparison."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file

from ablate.core.records import read_curve
from ablate.core.trial import Trial
from ablate.training.stages import run_trial
from blocks import default_registry


def run_alone(job: Trial, directory: Path) -> None:
    """Run a trial in this process."""
    for _ in run_trial(job, directory, default_registry()):
        pass


def learned(model: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights without the keys' biases.

    A softmax cancels those, so their gradient is rounding, which Adam scales up to full steps.
    """
    return {
        name: weight.chunk(2)[1] if name.endswith("key_value.bias") else weight
        for name, weight in model.items()
    }


def check_equal(job: Trial, one: Path, other: Path, tolerance: float = 1e-5) -> None:
    """Compare two runs of a trial: all losses by step, the weights, and the metrics."""
    for stage in job.stages:
        curves = [read_curve(where / stage.folder / "curve.jsonl") for where in (one, other)]
        assert [line["step"] for line in curves[0]] == [line["step"] for line in curves[1]]
        assert len(curves[0]) == stage.recipe.steps
        for first, second in zip(*curves, strict=True):
            assert first.keys() == second.keys()
            for name in first.keys() - {"seconds"}:
                ties = 0.05 if "recall" in name else tolerance  # a picture or two change places
                assert second[name] == pytest.approx(first[name], rel=tolerance, abs=ties), name
        models = [load_file(w / stage.folder / "model/model.safetensors") for w in (one, other)]
        for name, weight in learned(models[0]).items():
            torch.testing.assert_close(
                learned(models[1])[name], weight, atol=tolerance, rtol=tolerance
            )
        records = [json.loads((w / stage.folder / "result.json").read_text()) for w in (one, other)]
        assert records[0]["metrics"]["best_step"] == records[1]["metrics"]["best_step"]
        loss = records[0]["metrics"]["test/coca"]
        assert records[1]["metrics"]["test/coca"] == pytest.approx(loss, rel=tolerance)
        assert [record["workers"] for record in records] == [1, 2]


def run_on_ranks(job: Trial, directory: Path, world: int, steps: int | None = None) -> None:
    """Run a trial on ranks that talk through gloo; all of them die after some yields, if given."""
    directory.mkdir(parents=True, exist_ok=True)
    number = len(list(directory.glob("rendezvous*")))  # gloo wants a new file each time
    address = f"file://{directory}/rendezvous{number}"
    mp.spawn(_rank, args=(world, address, job, directory, steps), nprocs=world)


def _rank(
    rank: int, world: int, address: str, job: Trial, directory: Path, steps: int | None
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    running: Any = run_trial(job, directory, default_registry())
    for count, _ in enumerate(running, start=1):
        if count == steps:
            os._exit(0)  # as good as killed
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads may abort a process that ends in the usual way
