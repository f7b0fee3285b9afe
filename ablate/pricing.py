"""Builds every cell of a grid without memory: what it costs, or why it cannot be built."""

from __future__ import annotations

import traceback
from collections.abc import Mapping

import torch

from ablate.recipe import Recipe
from ablate.train import loss_weights
from assemblies import CoCaConfig, Cost, cost, normalise
from blocks import Registry, Unsupported, UsageError, parse
from blocks.kernels import CUDA_BACKENDS, require_cuda


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
    for name, given in cells.items():
        cell = normalise(given, registry)
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
