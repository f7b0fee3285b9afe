"""Proof that a swap happened: declared, built, trained, and of consequence.

Before a study: the cells of a contrast differ in the declared fields, their built modules in the
declared slots, and nowhere else. After it: so do the modules that were trained, the untrained
models say different things, and their curves are not the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from ablate.core.grid import Contrast
from ablate.core.ledger import Ledger
from ablate.core.plan import Plan
from ablate.core.trial import Trial
from assemblies import CoCaConfig, normalise
from assemblies.config import flatten
from assemblies.structure import Structure, changed_slots, structure
from blocks import Registry, UsageError


class NotSwappedError(UsageError):
    """Two cells of a contrast turn out to be one."""


def check_swaps(
    contrasts: Sequence[Contrast], cells: Mapping[str, CoCaConfig], registry: Registry
) -> None:
    """Raise `NotSwappedError` where the cells of a contrast do not differ as declared."""
    used = sorted({name for contrast in contrasts for name in contrast.cells})
    # Two spellings of one block, as rmsnorm and rmsnorm(eps=1e-06), are no difference.
    normal = {name: normalise(cells[name], registry) for name in used}
    built = {name: structure(cell, registry) for name, cell in normal.items()}
    for contrast in contrasts:
        for a, b in contrast.pairs:
            changed = _changed_fields(normal[a], normal[b])
            _require(changed, set(contrast.fields), contrast, f"cells {a!r} and {b!r}")
            if _is_of_blocks(contrast, normal[a]):
                _require_slots(contrast, built[a], built[b], f"models of {a!r} and {b!r}")


def _changed_fields(a: CoCaConfig, b: CoCaConfig) -> set[str]:
    before, after = flatten(a), flatten(b)
    return {name for name in before if before[name] != after[name]}


def _is_of_blocks(contrast: Contrast, cell: CoCaConfig) -> bool:
    """Return whether a contrast changes blocks only: a depth changes every slot of a tower."""
    return set(contrast.fields) <= cell.spellings().keys()


def _require_slots(contrast: Contrast, a: Structure, b: Structure, whose: str) -> None:
    """Raise where models differ in other slots than the declared ones that they have.

    A model with one objective lacks blocks of its cell: a contrastive one all of the decoder's.
    """
    present = set(contrast.fields) & (a.keys() | b.keys())
    _require(changed_slots(a, b), present, contrast, whose)


def _require(changed: set[str], declared: set[str], contrast: Contrast, whose: str) -> None:
    """Raise where two cells do not differ in what they are to differ in, or in nothing at all."""
    if changed != declared or not changed:
        raise NotSwappedError(
            f"contrast {contrast.name!r} is to change {_words(contrast.fields)}, but the {whose} "
            f"differ in {_words(changed)}"
        )


def _words(names: Collection[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"


def check_trained_swaps(plan: Plan, ledger: Ledger) -> list[str]:
    """Return in words which swaps changed nothing before training.

    Raises `NotSwappedError` where the models that two cells of a contrast have trained differ in
    other slots than declared, or have one and the same curve with a seed: no true swap does that,
    so one of them was not trained as it says.
    """
    notes: list[str] = []
    for contrast in plan.contrasts:
        for a, b in contrast.pairs:
            for one, other in zip(plan.of_cell(a), plan.of_cell(b), strict=True):
                first, second = (ledger.record(t, t.stages[0]) for t in (one, other))
                if first is None or second is None:
                    continue
                _require_trained(contrast, one, other, first.get("built"), second.get("built"))
                if ledger.losses(one) == ledger.losses(other):
                    raise NotSwappedError(
                        f"cells {a!r} and {b!r} have identical curves with seed {one.seed}: "
                        f"the swap of {contrast.name!r} does nothing"
                    )
                if first["outputs"] == second["outputs"]:
                    notes.append(
                        f"{a} and {b}, seed {one.seed}, are the same function before training"
                    )
    return notes


def _require_trained(
    contrast: Contrast, one: Trial, other: Trial, a: Structure | None, b: Structure | None
) -> None:
    """Raise where two trained models differ otherwise than declared, if their records tell."""
    if a and b and _is_of_blocks(contrast, one.cell):
        whose = f"models of {one.name!r} and {other.name!r} trained with seed {one.seed}"
        _require_slots(contrast, a, b, whose)
