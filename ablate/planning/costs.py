"""Builds every cell of a grid without memory: what it costs, or why it cannot be built."""

from __future__ import annotations

from collections.abc import Mapping

from ablate.core.recipe import Recipe, loss_weights
from assemblies import CoCaConfig, Cost, cost, normalise
from assemblies.cost import explain, require_backends
from blocks import Registry, Unsupported, UsageError


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
