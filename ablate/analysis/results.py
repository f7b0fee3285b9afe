"""All that a study has found, as numbers: reports, figures, tables and notebooks draw from here."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ablate.analysis.cells import (
    CellMeans,
    CostTable,
    CurveLines,
    cell_means,
    cost_table,
    curve_lines,
    train_seconds,
)
from ablate.analysis.example_effects import ExampleEffect, example_effects
from ablate.analysis.losses import decision_rule, metric_sets, race_so_far, stage_losses
from ablate.analysis.primary import Certainty, both_ends, certainty
from ablate.analysis.warnings import (
    below_chance,
    duplicate_losses,
    effect_warnings,
    failed_seeds,
    lost_pairs,
)
from ablate.core.ledger import Ledger
from ablate.core.metrics import METRICS, Direction, compared
from ablate.core.plan import Plan
from ablate.core.swap_checks import check_trained_swaps
from ablate.stats.effects import DecisionRule, Effect, Losses, effects
from ablate.stats.factorial import Attribution, attribute
from ablate.stats.race import Race


@dataclass(frozen=True, kw_only=True)
class StudyResults:
    """What a study has found."""

    decides: str
    """The metric that verdicts go by."""

    effects: list[Effect]
    """Every contrast's, metric by metric."""

    noise: list[Effect]
    """The A/A contrast's: the study's own noise floor."""

    attributions: dict[str, Attribution]
    """How the gain of a full factorial divides among its swaps, by metric."""

    examples: list[ExampleEffect]
    """The primary contrast's effects with what the choice of held-out examples adds."""

    problems: list[str]
    """In words, every pair of trials that a contrast could not use, and what is doubtful."""

    failed: dict[str, list[int]] = field(default_factory=dict)
    """The seeds with which cells failed."""

    race: Race | None = None
    """What interim looks decided, where there are some."""

    certainty: Certainty | None = None
    """What the primary contrast's seeds detect; None where they do not tell."""

    pairs: dict[str, dict[int, tuple[float, float]]] = field(default_factory=dict)
    """The primary contrast's values by metric and seed: reference, candidate."""

    cells: dict[str, dict[str, CellMeans]] = field(default_factory=dict)
    """What cells reach, by stage and cell."""

    curves: dict[str, CurveLines] = field(default_factory=dict)
    """How cells learn, by validation metric."""

    costs: CostTable = field(default_factory=CostTable)
    """Cells by what they cost and reach."""

    seconds: dict[str, float] = field(default_factory=dict)
    """Each cell's mean training time."""

    def of(self, contrast: str, metric: str = "") -> Effect | None:
        """Return a contrast's effect, in the deciding metric by default; None without a seed."""
        name = metric or self.decides
        matches = [e for e in self.effects if (e.contrast, e.metric) == (contrast, name)]
        return matches[0] if matches and matches[0].seeds else None


def make_results(plan: Plan, ledger: Ledger) -> StudyResults:
    """Return what the ledger's finished trials show; raises where a swap did not happen."""
    # First of all: numbers of a swap that did not happen must not be computed at all.
    unproven = check_trained_swaps(plan, ledger)
    rule, losses = decision_rule(plan), stage_losses(plan, ledger)
    # Interim looks decide by the ledger alone, so a study that was stopped goes on as if not.
    race = race_so_far(plan, ledger, losses) if plan.looks else None
    of_contrasts = _effects(plan, losses, rule)
    of_noise = _noise(plan, losses, rule)
    examples, unusable = example_effects(plan, ledger, rule)
    return StudyResults(
        decides=plan.decides,
        effects=of_contrasts,
        noise=of_noise,
        attributions=_attributions(plan, losses, rule),
        examples=examples,
        problems=[
            *lost_pairs(plan, losses, plan.decides, race),
            *effect_warnings(plan, losses[plan.decides], rule),
            *duplicate_losses(losses[plan.decides]),
            *below_chance(plan, losses),
            *unproven,
            *unusable,
        ],
        failed=failed_seeds(plan, ledger, race),
        race=race,
        certainty=certainty(plan, of_contrasts),
        pairs=_pairs(plan, losses, of_contrasts),
        cells=cell_means(plan, ledger),
        curves=curve_lines(plan, ledger),
        costs=cost_table(plan, ledger),
        seconds=train_seconds(plan, ledger),
    )


def _effects(plan: Plan, losses: Mapping[str, Losses], rule: DecisionRule) -> list[Effect]:
    return [
        effect
        for name, sets in metric_sets(plan, losses).items()
        for effect in effects(plan.contrasts, name, *sets, rule=rule, direction=direction_of(name))
    ]


def _noise(plan: Plan, losses: Mapping[str, Losses], rule: DecisionRule) -> list[Effect]:
    if plan.noise is None:
        return []
    return [
        effect
        for name, sets in metric_sets(plan, losses).items()
        for effect in effects([plan.noise], name, *sets, rule=rule, direction=direction_of(name))
    ]


def direction_of(name: str) -> Direction:
    """Return which values of a metric are better, by a name that may have a stage before it."""
    return METRICS[name.rpartition("/")[2]].direction


def _pairs(
    plan: Plan, losses: Mapping[str, Losses], of_contrasts: Sequence[Effect]
) -> dict[str, dict[int, tuple[float, float]]]:
    """Return the primary contrast's values, of the seeds that its effects are made of."""
    if plan.primary is None:
        return {}
    seeds = {e.metric: e.seeds for e in of_contrasts if e.contrast == plan.primary.name}
    keys = [metric.key for metric in compared() if seeds.get(metric.key)]
    return {key: both_ends(plan.primary, losses[key], seeds[key]) for key in keys}


def _attributions(
    plan: Plan, losses: Mapping[str, Losses], rule: DecisionRule
) -> dict[str, Attribution]:
    """Return what each swap of a full factorial contributes, in pretraining."""
    if not plan.factorial:
        return {}
    cells = {frozenset(swaps): name for name, swaps in plan.factorial.items()}
    attributions = {}
    for metric in compared():
        attribution = attribute(cells, losses[metric.key], rule, metric.direction)
        if attribution is not None:
            attributions[metric.key] = attribution
    return attributions


def effects_csv(rows: Sequence[Effect]) -> str:
    """Return effects as CSV, the numbers with all their digits; what was not computed is empty."""
    buffer = io.StringIO()
    names = [field.name for field in dataclasses.fields(Effect)]
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(names)
    for effect in rows:
        values = {name: getattr(effect, name) for name in names}
        if math.isnan(effect.p_sign_flip):  # too many signs to go through
            values["p_sign_flip"] = ""
        writer.writerow(
            [" ".join(map(str, v)) if isinstance(v, tuple) else v for v in values.values()]
        )
    return buffer.getvalue()
