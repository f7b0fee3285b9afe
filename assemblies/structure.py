"""What a model consists of, module by module: the proof that a swap is what it says."""

from __future__ import annotations

import torch
from torch import nn

from assemblies.coca import CoCa
from assemblies.config import CoCaConfig
from blocks import Registry

WIRING = "wiring"  # the slot of modules that are no block's: embeddings, projections, residuals

Structure = dict[str, tuple[str, str]]


def structure(cell: CoCaConfig, registry: Registry) -> Structure:
    """Return each module of a cell by its path: the slot it belongs to, and what it is.

    A slot is the field that a block was built for (``image.norm``) and covers what is inside of the
    block. What a module is: its class, its block's spelling, and the shapes of its own parameters.
    Built on the meta device. Raises `Unsupported` where a block cannot serve its site.
    """
    with torch.device("meta"):
        model = CoCa(cell, registry=registry)
    found: Structure = {}
    for path, module in model.named_modules():
        parent = found.get(path.rpartition(".")[0], (WIRING, ""))[0]
        slot, spelling = module.__dict__.get("slot", (parent, ""))
        found[path] = (slot, f"{_class_of(module)} {spelling} {_shapes(module)}")
    return found


def changed_slots(a: Structure, b: Structure) -> set[str]:
    """Return the slots in which two cells differ: those of modules changed, added or left out."""
    paths = [path for path in a.keys() | b.keys() if a.get(path) != b.get(path)]
    return {side[path][0] for path in paths for side in (a, b) if path in side}


def _class_of(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _shapes(module: nn.Module) -> str:
    own = module.named_parameters(recurse=False)
    return ", ".join(f"{name}{tuple(p.shape)}" for name, p in own)
