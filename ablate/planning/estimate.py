"""What a trial should take, from FLOPs and parameters: where nothing can be measured."""

from __future__ import annotations

import time
from functools import cache

import torch
from torch import Tensor

from ablate.core.recipe import loss_weights
from ablate.core.trial import Trial
from assemblies import CoCa, Cost, contrastive_loss
from blocks import Registry

PROCESS = 600 * 2**20  # bytes of torch, Ray and everything else that any trial's process has
COPIES = 5  # of the parameters: weights, gradients, two moments, and the best weights so far
CHECKPOINT = 8  # more, while a checkpoint is written: weights, moments and best ones, twice
REACHED = 0.4  # of a large matmul's speed; what nano and tiny cells reach on a CPU core
SIDE, TRIALS = 1024, 5  # of the matmul


@cache
def machine_speed(threads: int) -> float:
    """Return the FLOPs per second that trials of ``threads`` threads should reach here."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    matrix = torch.randn(SIDE, SIDE, device=device, dtype=kind)
    before, seconds = torch.get_num_threads(), []
    torch.set_num_threads(threads)
    for _ in range(TRIALS):
        began = time.perf_counter()
        float((matrix @ matrix).sum())
        seconds.append(time.perf_counter() - began)
    torch.set_num_threads(before)
    return REACHED * 2 * SIDE**3 / min(seconds)


def estimate_seconds(trial: Trial, price: Cost, speed: float) -> dict[str, float]:
    """Return the seconds of each stage's optimiser steps, at a speed in FLOPs per second.

    Evaluation is not in it. ``price`` is that of a step of the first stage.
    """
    return {
        stage.name: stage.recipe.steps
        * price.step_flops
        * (stage.recipe.batch / trial.recipe.batch)
        * (4 / 3 if stage.recipe.accumulate > 1 else 1)  # every part goes forward once more
        / speed
        for stage in trial.stages
    }


def estimate_memory(trial: Trial, price: Cost, registry: Registry) -> tuple[int, int]:
    """Return the bytes that a trial's process needs, on the host and on the GPU, 0 without one."""
    weights = 4 * price.parameters
    kept = saved_bytes(trial, registry)
    if torch.cuda.is_available():  # whose libraries take as much again and more
        return 4 * PROCESS + weights * (1 + CHECKPOINT), weights * (COPIES - 1) + kept
    return PROCESS + weights * (COPIES + CHECKPOINT) + kept, 0


def saved_bytes(trial: Trial, registry: Registry) -> int:
    """Return the bytes that autograd keeps for a backward pass, counted on the meta device.

    In single precision, with captions as long as the context: an upper bound.
    """
    cell, recipe = trial.cell, trial.recipe
    batch = recipe.batch // recipe.accumulate
    wanted = loss_weights(cell, recipe)
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    with torch.device("meta"):
        model = CoCa(cell, registry=registry)
        images = torch.empty(batch, 3, cell.image.size, cell.image.size)
        tokens = torch.empty(batch, cell.context, dtype=torch.long)
        lengths = torch.empty(batch, dtype=torch.long)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = model(
                images,
                tokens,
                lengths,
                contrast=wanted["contrastive"] > 0,
                caption=wanted["caption"] > 0,
            )
            if out.embeddings is not None:
                contrastive_loss(out.embeddings, lengths)
    return sum(storage.nbytes() for storage in kept.values())
