"""All that a study has found, as numbers: what reports, tables and notebooks are made of."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

from ablate.analysis.example_effects import ExampleEffect, example_effects
from ablate.analysis.losses import decision_rule, metric_sets, race_so_far, stage_losses
from ablate.analysis.warnings import (
    below_chance,
    duplicate_losses,
    effect_warnings,
    failed_seeds,
    lost_pairs,
)
from ablate.core.ledger import Ledger
from ablate.core.metrics import DECISIVE, LABELS
from ablate.core.plan import Plan
from ablate.core.swap_checks import check_trained_swaps
from ablate.stats.effects import DecisionRule, Effect, Losses, effects
from ablate.stats.factorial import Attribution, attribute
from ablate.stats.race import Race


@dataclass(frozen=True, kw_only=True)
class StudyResults:
    """What a study has found; ``noise`` are the A/A contrast's effects, ``attributions`` by metric.

    ``problems`` names, in words, every pair of trials that a contrast could not use, and why;
    ``failed`` are the seeds with which cells failed. ``race`` is what the looks decided, where
    cells were dropped on the way.
    """

    effects: list[Effect]
    noise: list[Effect]
    attributions: dict[str, Attribution]
    examples: list[ExampleEffect]
    problems: list[str]
    failed: dict[str, list[int]] = field(default_factory=dict)
    race: Race | None = None

    def of(self, contrast: str, metric: str = DECISIVE) -> Effect | None:
        """Return a contrast's effect, or None where no seed has it."""
        found = [e for e in self.effects if (e.contrast, e.metric) == (contrast, metric)]
        return found[0] if found and found[0].seeds else None


def make_results(plan: Plan, ledger: Ledger) -> StudyResults:
    """Return what the ledger's finished trials show; raises where a swap did not happen."""
    unproven = check_trained_swaps(plan, ledger)
    rule, losses = decision_rule(plan), stage_losses(plan, ledger)
    race = race_so_far(plan, ledger, losses) if plan.looks else None
    found: list[Effect] = []
    noise: list[Effect] = []
    for metric, sets in metric_sets(plan, losses).items():
        found += effects(plan.contrasts, metric, *sets, rule=rule)
        if plan.noise:
            noise += effects([plan.noise], metric, *sets, rule=rule)
    examples, unusable = example_effects(plan, ledger, rule)
    return StudyResults(
        effects=found,
        noise=noise,
        attributions=_attributions(plan, losses, rule),
        examples=examples,
        problems=[
            *lost_pairs(plan, losses, DECISIVE, race),
            *effect_warnings(plan, losses[DECISIVE], rule),
            *duplicate_losses(losses[DECISIVE]),
            *below_chance(plan, losses),
            *unproven,
            *unusable,
        ],
        failed=failed_seeds(plan, ledger, race),
        race=race,
    )


def _attributions(
    plan: Plan, losses: dict[str, Losses], rule: DecisionRule
) -> dict[str, Attribution]:
    """Return what each swap of a full factorial contributes, in pretraining."""
    if not plan.factorial:
        return {}
    cells = {frozenset(swaps): name for name, swaps in plan.factorial.items()}
    made = {metric: attribute(cells, losses[metric], rule) for metric in LABELS}
    return {metric: found for metric, found in made.items() if found is not None}


def effects_csv(found: Sequence[Effect]) -> str:
    """Return effects as CSV, the numbers with all their digits."""
    buffer = io.StringIO()
    names = [field.name for field in dataclasses.fields(Effect)]
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(names)
    for effect in found:
        values = [getattr(effect, name) for name in names]
        writer.writerow([" ".join(map(str, v)) if isinstance(v, tuple) else v for v in values])
    return buffer.getvalue()
