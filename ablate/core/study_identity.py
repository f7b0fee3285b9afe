"""What makes two plans one study, and what a rerun would leave out or train again."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ablate.core.ledger import Ledger
from ablate.core.plan import STUDY_FILE, Plan, read_plan
from assemblies.config import flatten
from blocks import UsageError

MOST_NAMED = 4  # changes of a study's settings that an error names


def keep_plan(ledger: Ledger) -> Path:
    """Copy a plan, before it is replaced, to a name of its own: else no report has its trials."""
    numbers = itertools.count(1)
    kept = next(p for n in numbers if not (p := ledger.directory / f"study-{n}.json").exists())
    shutil.copyfile(ledger.directory / STUDY_FILE, kept)
    return kept


def refuse_other_study(plan: Plan, ledger: Ledger) -> None:
    """Refuse a directory that holds another study, whose report would be overwritten.

    One that was stopped before its first trial has nothing to lose.
    """
    if not (ledger.directory / STUDY_FILE).exists() or not (ledger.directory / "trials").exists():
        return
    before, now = _identity(read_plan(ledger.directory)), _identity(plan)
    # Another set to fine-tune on may be added, or left out, any time: only shared stages count.
    shared = before.keys() & now.keys()
    changed = sorted(f"{k}={before[k]!r}, now {now[k]!r}" for k in shared if before[k] != now[k])
    if changed:
        more = f"; and {len(changed) - MOST_NAMED} others" * (len(changed) > MOST_NAMED)
        named = "; ".join(changed[:MOST_NAMED])
        raise UsageError(
            f"study {str(ledger.directory)!r} was run with {named}{more}; "
            "give this one a directory of its own with --study"
        )


def _identity(plan: Plan) -> dict[str, Any]:
    """Return what makes a study another one, by name."""
    identity: dict[str, Any] = {"grid": plan.grid, "size": plan.size}
    declared = plan.primary.name if plan.primary else ""
    identity |= {"primary": declared, "exploratory": plan.exploratory, "looks": plan.looks}
    identity["aim"] = plan.aim
    # Other seeds would leave the trials of those before out of the report.
    identity |= {"smallest_effect": plan.smallest_effect, "first_seed": plan.first_seed}
    identity |= {"search": plan.search.get("over", "no"), **_prefixed("search ", plan.search)}
    for stage in plan.stages:
        fields = dataclasses.asdict(stage.recipe)
        shared = {name: value for name, value in fields.items() if name not in plan.searched}
        identity |= _prefixed(f"{stage.name} " if stage.is_finetuning else "", shared)
        identity[f"{stage.name} data"] = stage.data_fingerprint[:16]
    for name, cell in plan.cells.items():
        identity |= _prefixed(f"{name} ", flatten(cell))
    return identity


def _prefixed(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}{name}": value for name, value in values.items()}


def left_out(plan: Plan, ledger: Ledger) -> list[str]:
    """Return the cells, fine-tunings and seeds that the study had when it last ran, and has not."""
    if not (ledger.directory / STUDY_FILE).exists():
        return []
    before = read_plan(ledger.directory)
    now = {*plan.cells, *(stage.name for stage in plan.stages)}
    missing = [n for n in (*before.cells, *(s.name for s in before.stages)) if n not in now]
    seeds = sorted({t.seed for t in before.trials} - {t.seed for t in plan.trials})
    return missing + [f"seed {seed}" for seed in seeds]


def outdated(plan: Plan, ledger: Ledger) -> int:
    """Return how many finished trials of the study's last run have other keys now."""
    if not (ledger.directory / STUDY_FILE).exists():
        return 0
    now = {(t.name, t.seed): t.stages[0].key for t in plan.trials}
    before = [t for t in read_plan(ledger.directory).trials if (t.name, t.seed) in now]
    other = [t for t in before if t.stages[0].key != now[t.name, t.seed]]
    return sum(ledger.record(t, t.stages[0]) is not None for t in other)
