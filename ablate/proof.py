"""Proof that a swap happened: declared, built, and of consequence.

Before a study: the built modules of the two cells differ in the declared slots and nowhere else.
After it: their untrained models say different things, and their curves are not the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ablate.grid import Contrast
from ablate.ledger import Ledger
from ablate.plan import Plan
from assemblies import CoCaConfig
from assemblies.structure import changed_slots, structure
from blocks import Registry, UsageError


class NotSwappedError(UsageError):
    """Two cells of a contrast turn out to be one."""


def prove_swaps(
    contrasts: Sequence[Contrast], cells: Mapping[str, CoCaConfig], registry: Registry
) -> None:
    """Raise `NotSwappedError` where the built cells of a contrast do not differ as declared.

    Of contrasts that change blocks only: depth or width would change every slot of a tower.
    """
    used = {name for contrast in contrasts for name in contrast.cells}
    built = {name: structure(cells[name], registry) for name in sorted(used)}
    for contrast in contrasts:
        for a, b in contrast.pairs:
            found, declared = changed_slots(built[a], built[b]), set(contrast.fields)
            if declared <= cells[a].spellings().keys() and found != declared:
                raise NotSwappedError(
                    f"contrast {contrast.name!r} is to change {_words(declared)}, but the models "
                    f"of {a!r} and {b!r} differ in {_words(found)}"
                )


def _words(slots: set[str]) -> str:
    return ", ".join(sorted(slots)) or "nothing"


def prove_results(plan: Plan, ledger: Ledger) -> list[str]:
    """Return in words which swaps changed nothing before training.

    Raises `NotSwappedError` where two cells of a contrast have one and the same curve with a seed:
    no true swap does that, so one of them was not trained as it says.
    """
    notes: list[str] = []
    for contrast in plan.contrasts:
        for a, b in contrast.pairs:
            for one, other in zip(plan.of_cell(a), plan.of_cell(b), strict=True):
                records = [ledger.record(trial, trial.stages[0]) for trial in (one, other)]
                if None in records:
                    continue
                first, second = (ledger.losses(trial) for trial in (one, other))
                if first == second:
                    raise NotSwappedError(
                        f"cells {a!r} and {b!r} have identical curves with seed {one.seed}: "
                        f"the swap of {contrast.name!r} does nothing"
                    )
                if records[0]["outputs"] == records[1]["outputs"]:  # type: ignore[index]
                    notes.append(
                        f"{a} and {b}, seed {one.seed}, are the same function before training"
                    )
    return notes
