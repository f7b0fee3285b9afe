"""What a cell costs: parameters and floating-point operations, counted on the meta device."""

from __future__ import annotations

import traceback
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from assemblies.coca import CoCa
from assemblies.config import CoCaConfig
from assemblies.construct import count_parameters
from assemblies.losses import contrastive_loss
from blocks import Registry, Unsupported, UsageError, parse
from blocks.kernels import CUDA_BACKENDS, require_cuda


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


def require_backends(cell: CoCaConfig) -> None:
    """Refuse an attention backend that the trials' device lacks; meta, used by plans, has all."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for path, (_, spelling) in cell.spellings().items():
        backend = parse(spelling)[1].get("backend")
        if backend in CUDA_BACKENDS:
            try:
                require_cuda(str(backend), device)
            except Unsupported as error:
                raise UsageError(f"{path}: {error}") from None


def explain(name: str, cell: CoCaConfig, error: Exception, registry: Registry) -> UsageError:
    """Say which cell cannot take a training step, which plugins it uses, and where it broke."""
    used = {
        f"{kind}/{registry.get(kind, spelling).name}": registry.get(kind, spelling)
        for kind, spelling in cell.spellings().values()
    }
    foreign = [b for b, spec in used.items() if spec in registry.third_party()] or list(used)
    last = traceback.extract_tb(error.__traceback__)[-1]
    reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return UsageError(
        f"cell {name!r} cannot take a training step ({last.filename}:{last.lineno}: {reason}); "
        f"look at {', '.join(foreign)}: python -m blocks check"
    )
