"""What a model consists of, slot by slot: the proof that a swap is what it says."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from assemblies.coca import CoCa
from assemblies.config import CoCaConfig
from blocks import Registry

HASH_DIGITS = 16  # enough to tell models apart; a record of every trial has a dozen of them
WIRING = "wiring"  # the slot of modules that are no block's: embeddings, projections, residuals

Structure = dict[str, dict[str, str]]


def structure(cell: CoCaConfig, registry: Registry) -> Structure:
    """Return what a cell's model would consist of, built on the meta device.

    Raises `Unsupported` where a block cannot serve its site.
    """
    with torch.device("meta"):
        return structure_of(CoCa(cell, registry=registry))


def structure_of(model: CoCa) -> Structure:
    """Return each slot of a model: its block's ``spelling``, and a hash of its ``modules``.

    A slot is the field that a block was built for (``image.norm``) and covers what is inside of the
    block. What a module is: its path, its class, its block's spelling, and the shapes of its own
    parameters.
    """
    slots: dict[str, str] = {}
    spellings: dict[str, str] = {}
    modules: dict[str, list[str]] = {}
    for path, module in model.named_modules():
        parent = slots.get(path.rpartition(".")[0], WIRING)
        slot, spelling = module.__dict__.get("slot", (parent, ""))
        slots[path] = slot
        spellings[slot] = spelling or spellings.get(slot, "")
        line = f"{path} {_class_of(module)} {spelling} {_shapes(module)}"
        modules.setdefault(slot, []).append(line)
    return {s: {"spelling": spellings[s], "modules": _hash(modules[s])} for s in sorted(modules)}


def changed_slots(a: Structure, b: Structure) -> set[str]:
    """Return the slots in which two models differ: those of modules changed, added or left out."""
    return {slot for slot in a.keys() | b.keys() if a.get(slot) != b.get(slot)}


def _hash(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:HASH_DIGITS]


def _class_of(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _shapes(module: nn.Module) -> str:
    own = module.named_parameters(recurse=False)
    return ", ".join(f"{name}{tuple(p.shape)}" for name, p in own)
