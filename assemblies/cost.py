"""What a cell costs: parameters and floating-point operations, counted on the meta device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from assemblies.coca import CoCa
from assemblies.config import CoCaConfig
from assemblies.construct import count_parameters
from assemblies.losses import contrastive_loss
from blocks import Registry


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Trainable parameters in all and in the image tower; FLOPs of one training step."""

    parameters: int
    image_parameters: int
    step_flops: int


def cost(cell: CoCaConfig, *, batch: int, tokens: int, registry: Registry) -> Cost:
    """Count forward and backward of a batch with captions of ``tokens`` tokens; allocates nothing.

    Raises `Unsupported` where a block cannot serve its site.
    """
    with torch.device("meta"):
        model = CoCa(cell, registry=registry)
        images = torch.empty(batch, 3, cell.image.size, cell.image.size)
        ids = torch.empty(batch, tokens, dtype=torch.long)
        lengths = torch.empty(batch, dtype=torch.long)
        groups = torch.empty(batch, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            out = model(images, ids, lengths)
            terms = []
            if out.states is not None:
                terms.append((out.states @ model.head.T).sum())
            if out.embeddings is not None:
                terms.append(contrastive_loss(out.embeddings, groups))
            torch.stack(terms).sum().backward()  # type: ignore[no-untyped-call]
    return Cost(
        parameters=count_parameters(model),
        image_parameters=count_parameters(model.image),
        step_flops=counter.get_total_flops(),
    )
