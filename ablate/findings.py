"""All that a study has found, as numbers: what reports, tables and notebooks are made of."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ablate.effects import Effect, Losses, Rule, confidence, effects, missing, up_to_look
from ablate.examples import read_examples
from ablate.factorial import Attribution, attribute
from ablate.grid import Contrast
from ablate.ledger import Ledger
from ablate.plan import Plan
from ablate.proof import prove_results
from ablate.race import Race, hold_race
from ablate.statistics import Values, clustered_interval
from ablate.trial import Trial

# The metrics of arXiv 2507.18009, all losses: lower is better. The last one decides.
METRICS = {"contrastive": "contrastive loss", "perplexity": "perplexity", "coca": "CoCa loss"}
DECISIVE = "coca"
FINETUNED = "finetune/"  # before the name of a metric averaged over the fine-tunings


@dataclass(frozen=True, kw_only=True)
class ExampleEffect:
    """A contrast's improvement in percent, with what held-out examples add to its uncertainty.

    ``seed_error`` is the standard error over seeds, ``example_error`` that over examples, clustered
    by caption (or by batch, for contrastive losses), ``error`` the two-way clustered one, and the
    interval is made of that: it is for other seeds and other examples.
    """

    contrast: str
    metric: str
    seeds: int
    examples: int
    clusters: int
    estimate: float
    seed_error: float
    example_error: float
    error: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a study has found; ``noise`` are the A/A contrast's effects, ``attributions`` by metric.

    ``race`` is what the looks decided, where cells were dropped on the way; ``problems`` names, in
    words, every pair of trials that a contrast could not use, and why.
    """

    effects: list[Effect]
    noise: list[Effect]
    attributions: dict[str, Attribution]
    examples: list[ExampleEffect]
    problems: list[str]
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
    examples, unusable = _example_effects(plan, ledger, rule)
    return Findings(
        effects=found,
        noise=noise,
        attributions=_attributions(plan, losses, rule),
        examples=examples,
        problems=[*_lost_pairs(plan, losses, race), *unproven, *unusable],
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
    """Return test losses by metric, those of a fine-tuning with its name before it."""
    results = [(t, found) for t in plan.trials if (found := ledger.metrics(t)) is not None]
    return {
        f"{stage.prefix}{metric}": {
            (t.name, t.pair): found[name]
            for t, found in results
            if (name := f"{stage.prefix}test/{metric}") in found
        }
        for stage in plan.stages
        for metric in METRICS
    }


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


def _lost_pairs(plan: Plan, losses: dict[str, Losses], race: Race | None) -> list[str]:
    """Return in words which pairs no contrast can use, each once."""
    reasons: dict[str, None] = {}
    wanted = {(t.name, t.pair) for t in plan.trials}
    for metric, found in losses.items():
        for cell, pair in sorted(wanted):
            value = found.get((cell, pair))
            if value is not None and not math.isfinite(value):
                reasons[f"{cell}, seed {pair}: {metric} is {value}; the pair is left out"] = None
    for contrast in plan.contrasts:
        ours = losses[DECISIVE]
        if race:  # a cell that was dropped is not missing where others went on
            ours = {k: loss for k, loss in ours.items() if k[1] < race.reach(contrast.cells)}
        for pair, why in missing(contrast, ours).items():
            reasons[f"seed {pair} is not in {contrast.name}: {why}"] = None
    return list(reasons)


def _example_effects(
    plan: Plan, ledger: Ledger, rule: Rule
) -> tuple[list[ExampleEffect], list[str]]:
    """Return the primary contrast's effects with errors over seeds and examples, and problems."""
    effects: list[ExampleEffect] = []
    problems: list[str] = []
    for metric in ("contrastive", "caption") if plan.primary else ():
        assert plan.primary is not None
        gains, clusters, lost = _example_gains(plan, ledger, plan.primary, metric)
        problems += lost
        seeds = up_to_look(sorted(gains), rule)
        if len(seeds) > 1:
            values = np.stack([gains[seed] for seed in seeds])
            effects.append(_example_effect(plan.primary, metric, values, clusters, rule))
    return effects, problems


def _example_effect(
    contrast: Contrast, metric: str, values: Values, clusters: Values, rule: Rule
) -> ExampleEffect:
    found = clustered_interval(values, clusters, confidence(rule, len(values)))
    return ExampleEffect(
        contrast=contrast.name,
        metric=metric,
        seeds=len(values),
        examples=values.shape[1],
        clusters=len(set(clusters.tolist())),
        estimate=found.estimate,
        seed_error=found.seed_error,
        example_error=found.example_error,
        error=found.error,
        low=found.low,
        high=found.high,
    )


def _example_gains(
    plan: Plan, ledger: Ledger, contrast: Contrast, metric: str
) -> tuple[dict[int, Values], Values, list[str]]:
    """Return improvements [n] by seed, over the contrast's pairs; clusters [n]; what is unusable.

    Every trial has a loss of the same examples (contrastive losses: of full batches). A seed in
    which one of them is not finite is left out whole: all seeds must be of the same examples.
    """
    found: dict[int, dict[str, Values]] = {}
    clusters = np.array([])
    for trials in zip(*map(plan.of_cell, sorted(contrast.cells)), strict=True):
        read = [own for trial in trials if (own := _losses_of(trial, ledger, metric))]
        if len(read) == len(trials):
            found[trials[0].pair] = {t.name: own[0] for t, own in zip(trials, read, strict=True)}
            clusters = read[0][1]
    every = [losses for by_cell in found.values() for losses in by_cell.values()]
    if len({len(losses) for losses in every}) > 1:
        lost = f"losses by example ({metric}) are of other examples in some trials: not used"
        return {}, clusters, [lost]
    counted = np.any(np.isfinite(every), axis=0) if every else np.array([], dtype=bool)
    gains: dict[int, Values] = {}
    problems: list[str] = []
    for seed, by_cell in found.items():
        losses = {cell: own[counted] for cell, own in by_cell.items()}
        if np.isfinite(list(losses.values())).all():
            pairs = [(losses[a], losses[b]) for a, b in contrast.pairs]
            gains[seed] = np.mean([100 * (a - b) / a.mean() for a, b in pairs], axis=0)
        else:
            problems.append(
                f"seed {seed} of {contrast.name} has a {metric} loss by example that is not "
                "finite; the seed is left out of what other test examples add"
            )
    return gains, clusters[counted], problems


def _losses_of(trial: Trial, ledger: Ledger, metric: str) -> tuple[Values, Values] | None:
    """Return a finished trial's losses by example [n] and their clusters [n], if it has them."""
    if ledger.record(trial, trial.stages[0]) is None:
        return None
    found = read_examples(ledger.folder(trial)) or {}
    if metric not in found:
        return None
    clusters = found["batch" if metric == "contrastive" else "group"]
    return found[metric].double().numpy(), clusters.numpy()


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
