"""How a recipe optimises: the optimisers, the learning rate by step, and mixed precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ablate.core.recipe import Recipe

Groups = list[dict[str, Any]]  # parameters with options of their own, as torch.optim takes them


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimizer:
    """A way to take steps; to add one is to enter it in `OPTIMIZERS`."""

    make: Callable[[Groups, Recipe, bool], torch.optim.Optimizer]
    """Returns the optimiser of some groups of parameters; the flag asks for a fused kernel."""

    moments: int
    """How many tensors of a parameter's own size it keeps, which is what its memory costs."""


def _adamw(groups: Groups, recipe: Recipe, fused: bool) -> torch.optim.Optimizer:
    """Return AdamW (arXiv 1711.05101)."""
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, recipe.beta2), fused=fused)


OPTIMIZERS = {"adamw": Optimizer(make=_adamw, moments=2)}
OPTIMIZER = OPTIMIZERS["adamw"]  # of every recipe


def build(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return a recipe's optimiser, which decays the matrices of linear maps and nothing else.

    Those are the weights of `nn.Linear`, and what a block names in ``matrices``. Tables, queries,
    frequencies, gains and biases are left alone: decay would pull them towards another block.
    """
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    matrices |= {id(getattr(m, n)) for m in model.modules() for n in getattr(m, "matrices", ())}
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups: Groups = [
        {
            "params": [p for p in parameters if id(p) in matrices],
            "weight_decay": recipe.weight_decay,
        },
        {"params": [p for p in parameters if id(p) not in matrices], "weight_decay": 0.0},
    ]
    fused = parameters[0].is_cuda  # one kernel; on the CPU it was measured to be slower
    optimizer = OPTIMIZER.make(groups, recipe, fused)
    for group in optimizer.param_groups:
        group["base_lr"] = group["lr"]  # groups may have rates of their own, as under Muon
    return optimizer


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to a factor of its own base rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def schedule(step: int, recipe: Recipe) -> float:
    """Return the learning rate's factor: linear warm-up, then half a cosine down to 0."""
    warmup = max(1, round(recipe.warmup * recipe.steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, recipe.steps - warmup)
    return (1 + math.cos(math.pi * progress)) / 2


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the mixed-precision context: ``auto`` is bf16 on a GPU and fp32 elsewhere."""
    bf16 = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)
