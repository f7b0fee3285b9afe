"""How a recipe optimises: AdamW, its learning rate by step, and mixed precision."""

from __future__ import annotations

import math

import torch
from torch import nn

from ablate.core.recipe import Recipe


def schedule(step: int, recipe: Recipe) -> float:
    """Return the learning rate's factor: linear warm-up, then half a cosine down to 0."""
    warmup = max(1, round(recipe.warmup * recipe.steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, recipe.steps - warmup)
    return (1 + math.cos(math.pi * progress)) / 2


def adamw(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """Return AdamW (arXiv 1711.05101) that decays the matrices of linear maps and nothing else.

    Those are the weights of `nn.Linear`, and what a block names in ``matrices``. Tables, queries,
    frequencies, gains and biases are left alone: decay would pull them towards another block.
    """
    linear = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    linear |= {id(getattr(m, n)) for m in model.modules() for n in getattr(m, "matrices", ())}
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {
            "params": [p for p in parameters if id(p) in linear],
            "weight_decay": recipe.weight_decay,
        },
        {"params": [p for p in parameters if id(p) not in linear], "weight_decay": 0.0},
    ]
    fused = parameters[0].is_cuda  # one kernel; on the CPU it was measured to be slower
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, recipe.beta2), fused=fused)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the mixed-precision context: ``auto`` is bf16 on a GPU and fp32 elsewhere."""
    bf16 = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)
