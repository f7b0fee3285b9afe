"""Effects with what held-out examples add to their uncertainty: would they hold on others?"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from ablate.core.grid import Contrast
from ablate.core.ledger import Ledger
from ablate.core.plan import Plan
from ablate.core.records import read_examples
from ablate.core.trial import Trial
from ablate.stats.effects import DecisionRule, confidence, up_to_look
from ablate.stats.tests_and_intervals import Clustered, Values, clustered_interval, ratio_gains


@dataclass(frozen=True, kw_only=True, slots=True)
class ExampleEffect(Clustered):
    """A contrast's improvement in percent, with what held-out examples add to its uncertainty.

    Examples are clustered by caption, or by batch, for contrastive losses.
    """

    contrast: str
    metric: str
    seeds: int
    examples: int
    clusters: int


def example_effects(
    plan: Plan, ledger: Ledger, rule: DecisionRule
) -> tuple[list[ExampleEffect], list[str]]:
    """Return the primary contrast's effects with errors over seeds and examples, and problems."""
    effects: list[ExampleEffect] = []
    problems: list[str] = []
    for metric in ("contrastive", "caption") if plan.primary else ():
        assert plan.primary is not None
        gains, clusters, lost = _gains(plan, ledger, plan.primary, metric)
        problems += lost
        seeds = up_to_look(sorted(gains), rule)
        if len(seeds) > 1:
            values = np.stack([gains[seed] for seed in seeds])
            effects.append(_effect(plan.primary, metric, values, clusters, rule))
    return effects, problems


def _effect(
    contrast: Contrast, metric: str, values: Values, clusters: Values, rule: DecisionRule
) -> ExampleEffect:
    errors = clustered_interval(values, clusters, confidence(rule, len(values)))
    return ExampleEffect(
        **dataclasses.asdict(errors),
        contrast=contrast.name,
        metric=metric,
        seeds=len(values),
        examples=values.shape[1],
        clusters=len(set(clusters.tolist())),
    )


def _gains(
    plan: Plan, ledger: Ledger, contrast: Contrast, metric: str
) -> tuple[dict[int, Values], Values, list[str]]:
    """Return improvements [n] by seed, over the contrast's pairs; clusters [n]; what is unusable.

    Every trial has a loss of the same examples (contrastive losses: of full batches). A seed in
    which one of them is not finite is left out whole: all seeds must be of the same examples.
    """
    by_seed: dict[int, dict[str, Values]] = {}
    clusters = np.array([])
    for trials in zip(*map(plan.of_cell, sorted(contrast.cells)), strict=True):
        read = [of_trial for trial in trials if (of_trial := _losses_of(trial, ledger, metric))]
        if len(read) == len(trials):
            by_seed[trials[0].seed] = {
                t.name: of_trial[0] for t, of_trial in zip(trials, read, strict=True)
            }
            clusters = read[0][1]
    losses_of_trials = [losses for by_cell in by_seed.values() for losses in by_cell.values()]
    if len({len(losses) for losses in losses_of_trials}) > 1:
        lost = f"losses by example ({metric}) are of other examples in some trials: not used"
        return {}, clusters, [lost]
    counted = (
        np.any(np.isfinite(losses_of_trials), axis=0)
        if losses_of_trials
        else np.array([], dtype=bool)
    )
    gains: dict[int, Values] = {}
    problems: list[str] = []
    for seed, by_cell in by_seed.items():
        losses = {cell: of_trial[counted] for cell, of_trial in by_cell.items()}
        if np.isfinite(list(losses.values())).all():
            pairs = [(losses[a], losses[b]) for a, b in contrast.pairs]
            # Each example counts by how it moves the ratio of means, not by a ratio of its own.
            gains[seed] = np.mean([ratio_gains(a, b) for a, b in pairs], axis=0)
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
    examples = read_examples(ledger.folder(trial)) or {}
    if metric not in examples:
        return None
    clusters = examples["batch" if metric == "contrastive" else "group"]
    return examples[metric].double().numpy(), clusters.numpy()
