"""What cells and trials cost, counted without training: parameters, FLOPs, seconds and memory."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

from ablate.core.recipe import Recipe, loss_weights
from ablate.core.trial import Trial
from ablate.training.optim import OPTIMIZER
from assemblies import CoCa, CoCaConfig, Cost, contrastive_loss, cost, normalise
from assemblies.cost import explain, require_backends
from blocks import Registry, Unsupported, UsageError

PROCESS = 600 * 2**20  # bytes of torch, Ray and everything else that any trial's process has
COPIES = 3 + OPTIMIZER.moments  # of the parameters: weights, gradients, moments, best weights
# More, while a checkpoint is written: weights, moments and best weights, twice.
CHECKPOINT = 2 * (2 + OPTIMIZER.moments)
REACHED = 0.4  # of a large matmul's speed; what nano and tiny cells reach on a CPU core
SIDE, TRIALS = 1024, 5  # of the matmul


def price(
    cells: Mapping[str, CoCaConfig], recipe: Recipe, tokens: int, registry: Registry
) -> tuple[dict[str, Cost], dict[str, str], dict[str, str]]:
    """Build every distinct cell on the meta device, and count captions of ``tokens`` tokens.

    Returns costs by name, the reason for each cell that cannot be built, and for each cell that
    equals an earlier one that one's name. Raises `UsageError` for a block that breaks, or if
    nothing can be built.
    """
    costs: dict[str, Cost] = {}
    skipped: dict[str, str] = {}
    same: dict[str, str] = {}
    first: dict[CoCaConfig, str] = {}
    for name, cell_as_written in cells.items():
        cell = normalise(cell_as_written, registry)
        require_backends(cell)
        loss_weights(cell, recipe)
        if cell in first:
            same[name] = first[cell]
            continue
        try:
            costs[name] = cost(cell, batch=recipe.batch, tokens=tokens, registry=registry)
            first[cell] = name
        except Unsupported as error:
            skipped[name] = str(error)
        except Exception as error:  # a plugin's code may raise anything
            raise explain(name, cell, error, registry) from error
    if not costs:
        reasons = "; ".join(dict.fromkeys(skipped.values()))
        raise UsageError(f"no cell of the grid can be built: {reasons}")
    return costs, skipped, same


@cache
def machine_speed(threads: int) -> float:
    """Return the FLOPs per second that trials of ``threads`` threads should reach here."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    # Large enough to be bound by arithmetic, small enough to take a few milliseconds.
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
    weights = loss_weights(cell, recipe)
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    # On the meta device nothing is allocated, and saved tensors still have their sizes.
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
                contrast=weights["contrastive"] > 0,
                caption=weights["caption"] > 0,
            )
            if out.embeddings is not None:
                contrastive_loss(out.embeddings, lengths)
    return sum(storage.nbytes() for storage in kept.values())
