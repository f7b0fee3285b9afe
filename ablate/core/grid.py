"""Grid algebra: how sets of cells are written down, and which cells are compared with which."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from assemblies import CoCaConfig, with_field
from assemblies.config import flatten
from blocks import Registry, UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Contrast:
    """What a change does: candidate against reference, averaged over one or more such pairs."""

    name: str
    """What tables and figures call it."""

    pairs: tuple[tuple[str, str], ...]
    """Reference and candidate; a main effect has a pair for each setting of the other swaps."""

    primary: bool = False
    """Whether the study is about it; it then has its own share of alpha."""

    fields: tuple[str, ...] = ()
    """What the change is declared to change, in every pair and nothing else."""

    @property
    def cells(self) -> set[str]:
        """Return the cells that are compared."""
        return set(itertools.chain.from_iterable(self.pairs))


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """A named set of cells and the contrasts that it is for, at most one of them primary."""

    name: str
    """What ``--grid`` calls it."""

    summary: str
    """What it compares, in a line."""

    cells: Mapping[str, CoCaConfig]
    """The architectures, by name."""

    contrasts: tuple[Contrast, ...] = ()
    """What is compared with what."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """Changes to the size's recipe, unless the command sets the same fields."""

    seeds: int = 3
    """How many, unless asked for otherwise."""

    finetune: tuple[str, ...] = ()
    """The sources that trials are fine-tuned on, unless asked for otherwise."""

    factorial: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The swaps in each cell of a full factorial, if the grid holds one."""

    def __post_init__(self) -> None:
        """Check that contrasts speak of cells that exist."""
        for contrast in self.contrasts:
            assert contrast.cells <= set(self.cells), f"contrast {contrast.name}: no cell for it"
        assert sum(contrast.primary for contrast in self.contrasts) <= 1, self.name


def swap(cell: CoCaConfig, changes: Mapping[str, Any]) -> CoCaConfig:
    """Return the cell with some fields changed; ``*.norm`` means that of all towers."""
    for path, value in changes.items():
        cell = with_field(cell, path, value)
    return cell


def each(base: CoCaConfig, axes: Mapping[str, Sequence[str]]) -> dict[str, CoCaConfig]:
    """Return one cell per value and axis, each one change away from the base."""
    return {
        f"{path}={value}": with_field(base, path, value)
        for path, values in axes.items()
        for value in values
    }


def product(
    base: CoCaConfig, axes: Mapping[str, Sequence[str]]
) -> dict[tuple[str, ...], CoCaConfig]:
    """Return the cell of every combination of the axes' values, by the values chosen."""
    return {
        values: swap(base, dict(zip(axes, values, strict=True)))
        for values in itertools.product(*axes.values())
    }


def merge(*parts: Mapping[str, CoCaConfig]) -> dict[str, CoCaConfig]:
    """Return the cells of all parts; one name for two different cells is an error."""
    merged: dict[str, CoCaConfig] = {}
    for name, cell in itertools.chain.from_iterable(part.items() for part in parts):
        if merged.setdefault(name, cell) != cell:
            raise UsageError(f"two different cells are named {name!r}")
    return merged


Design = Callable[[Mapping[str, CoCaConfig], Registry], Grid]  # of the presets, by name


def against(reference: str, candidate: str, cells: Mapping[str, CoCaConfig]) -> Contrast:
    """Return the plain contrast of two cells."""
    before, after = flatten(cells[reference]), flatten(cells[candidate])
    changed = tuple(name for name in {**before, **after} if before.get(name) != after.get(name))
    pair = (reference, candidate)
    return Contrast(name=f"{reference} -> {candidate}", pairs=(pair,), fields=changed)
