"""All that a study has found, as numbers: what reports, tables and notebooks are made of."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

from ablate.doubts import copies, doubts, failed_seeds, ignorant, lost_pairs
from ablate.effects import Effect, Losses, Rule, effects
from ablate.example_effects import ExampleEffect, example_effects
from ablate.factorial import Attribution, attribute
from ablate.ledger import Ledger
from ablate.plan import Plan
from ablate.proof import prove_results
from ablate.race import Race, hold_race

# The metrics of arXiv 2507.18009, all losses: lower is better. The last one decides.
METRICS = {"contrastive": "contrastive loss", "perplexity": "perplexity", "coca": "CoCa loss"}
DECISIVE = "coca"
FINETUNED = "finetune/"  # before the name of a metric averaged over the fine-tunings


@dataclass(frozen=True, kw_only=True)
class Findings:
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


def make_findings(plan: Plan, ledger: Ledger) -> Findings:
    """Return what the ledger's finished trials show; raises where a swap did not happen."""
    unproven = prove_results(plan, ledger)
    rule, losses = rule_of(plan), stage_losses(plan, ledger)
    race = held_race(plan, ledger, losses) if plan.looks else None
    found: list[Effect] = []
    noise: list[Effect] = []
    for metric, sets in metric_sets(plan, losses).items():
        found += effects(plan.contrasts, metric, *sets, rule=rule)
        if plan.noise:
            noise += effects([plan.noise], metric, *sets, rule=rule)
    examples, unusable = example_effects(plan, ledger, rule)
    return Findings(
        effects=found,
        noise=noise,
        attributions=_attributions(plan, losses, rule),
        examples=examples,
        problems=[
            *lost_pairs(plan, losses, DECISIVE, race),
            *doubts(plan, losses[DECISIVE], rule),
            *copies(losses[DECISIVE]),
            *ignorant(plan, losses),
            *unproven,
            *unusable,
        ],
        failed=failed_seeds(plan, ledger, race),
        race=race,
    )


def rule_of(plan: Plan) -> Rule:
    """Return how the study's verdicts are reached, as it was declared."""
    return Rule(
        smallest_effect=plan.smallest_effect,
        looks=plan.looks,
        aim=plan.aim,
        exploratory=plan.exploratory,
    )


def held_race(plan: Plan, ledger: Ledger, losses: dict[str, Losses] | None = None) -> Race:
    """Return what the looks of a race decide, by the decisive metric, as far as the ledger goes."""
    losses = losses or stage_losses(plan, ledger)
    settled = {
        (trial.name, trial.pair)
        for trial in plan.trials
        if ledger.result(trial) is not None or ledger.failure(trial) is not None
    }
    families = [plan.contrasts, [plan.noise] if plan.noise else []]
    return hold_race(families, DECISIVE, losses[DECISIVE], rule_of(plan), plan.cells, settled)


def stage_losses(plan: Plan, ledger: Ledger) -> dict[str, Losses]:
    """Return test losses by metric, those of a fine-tuning with its name before it.

    Of every finished stage, whatever became of the trial's later ones: to leave a pretraining out
    because a fine-tuning failed would be to choose seeds by what came of them.
    """
    losses: dict[str, dict[tuple[str, int], float]] = {
        f"{stage.prefix}{metric}": {} for stage in plan.stages for metric in METRICS
    }
    for trial in plan.trials:
        for stage in trial.stages:
            found = (ledger.record(trial, stage) or {}).get("metrics", {})
            for metric in METRICS:
                if f"test/{metric}" in found:
                    place = trial.name, trial.pair
                    losses[f"{stage.prefix}{metric}"][place] = found[f"test/{metric}"]
    return dict(losses)


def metric_sets(plan: Plan, losses: dict[str, Losses]) -> dict[str, list[Losses]]:
    """Return the losses that each reported metric is made of: several for a mean over sets."""
    sets = {name: [found] for name, found in losses.items()}
    later = plan.stages[1:]
    if later:
        sets |= {f"{FINETUNED}{m}": [losses[s.prefix + m] for s in later] for m in METRICS}
    return sets


def _attributions(plan: Plan, losses: dict[str, Losses], rule: Rule) -> dict[str, Attribution]:
    """Return what each swap of a full factorial contributes, in pretraining."""
    if not plan.factorial:
        return {}
    cells = {frozenset(swaps): name for name, swaps in plan.factorial.items()}
    made = {metric: attribute(cells, losses[metric], rule) for metric in METRICS}
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
