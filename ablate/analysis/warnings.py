"""What keeps a study's numbers from being believed as they stand, named in words."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ablate.analysis.losses import needed_trials
from ablate.core.ledger import Ledger
from ablate.core.metrics import METRICS
from ablate.core.plan import Plan
from ablate.stats.effects import DecisionRule, Losses, improvements, is_usable, missing, up_to_look
from ablate.stats.race import Race
from ablate.stats.tests_and_intervals import equal_variances_p, varies

UNEQUAL = 0.01  # a cell whose losses vary so surely more, or less, than its reference's is named


def failed_seeds(plan: Plan, ledger: Ledger, race: Race | None) -> dict[str, list[int]]:
    """Return the seeds with which cells failed when they last ran, by cell."""
    seeds: dict[str, list[int]] = {}
    for trial in needed_trials(plan, race):
        if ledger.failure(trial) is not None and ledger.result(trial) is None:
            seeds.setdefault(trial.name, []).append(trial.seed)
    return seeds


def lost_pairs(
    plan: Plan, losses: Mapping[str, Losses], decisive: str, race: Race | None
) -> list[str]:
    """Return which losses cannot be used, and which pairs no contrast has for that, each once."""
    reasons: dict[str, None] = {}
    for metric, by_trial in losses.items():
        for (cell, pair), value in sorted(by_trial.items()):
            if not is_usable(value):
                reasons[f"{cell}, seed {pair}: {metric} is {value}; the pair is left out"] = None
    for stage in plan.stages:
        where = f", {stage.name}" * (len(plan.stages) > 1)
        for contrast in plan.contrasts:
            ours = losses[stage.prefix + decisive]
            if race:  # a cell that was dropped is not missing where others went on
                ours = {k: loss for k, loss in ours.items() if k[1] < race.reach(contrast.cells)}
            for pair, why in missing(contrast, ours).items():
                reasons[f"seed {pair} is not in {contrast.name}{where}: {why}"] = None
    return list(reasons)


def duplicate_losses(losses: Losses) -> list[str]:
    """Return which seeds of a cell have one and the same loss: no two trainings end alike."""
    seeds_of_losses: dict[tuple[str, float], list[int]] = {}
    for (cell, seed), loss in sorted(losses.items()):
        seeds_of_losses.setdefault((cell, loss), []).append(seed)
    return [
        f"{cell} has the same loss to the last digit with seeds {', '.join(map(str, seeds))}: "
        "copies, or seeds without an effect"
        for (cell, _), seeds in seeds_of_losses.items()
        if len(seeds) > 1
    ]


def below_chance(plan: Plan, losses: Mapping[str, Losses]) -> list[str]:
    """Return which cells of the primary contrast are no better than an untrained model."""
    warnings = []
    for name, baseline in plan.references[plan.stages[0].name].items():
        metric = METRICS[name]
        for cell in sorted(plan.primary.cells) if plan.primary else ():
            values = [loss for (other, _), loss in losses.get(name, {}).items() if other == cell]
            mean = float(np.mean(values)) if values else math.nan
            better = mean < baseline if metric.direction == "lower" else mean > baseline
            if values and not better:
                warnings.append(
                    f"{cell} is no better than chance in {metric.label} ({mean:.4g}; chance, "
                    f"{metric.chance}, is {baseline:.4g}): it is undertrained, and the swap cannot "
                    "be assessed"
                )
    return warnings


def effect_warnings(plan: Plan, losses: Losses, rule: DecisionRule) -> list[str]:
    """Return which contrasts in the decisive loss are to be read with care, and why."""
    warnings: list[str] = []
    for contrast in (*plan.contrasts, *([plan.noise] if plan.noise else [])):
        by_seed = improvements(contrast, losses, METRICS[plan.decides].direction)
        seeds = up_to_look(list(by_seed), rule)
        if len(seeds) > 1 and not varies(np.array(list(by_seed.values()))):
            warnings.append(
                f"{contrast.name} shows the same improvement with every seed: the seed has no "
                "effect, or trials are copies; there is no verdict"
            )
        if rule.looks and len(by_seed) > len(seeds) and len(by_seed) > rule.looks[0]:
            waiting = ", ".join(str(seed) for seed in by_seed if seed not in seeds)
            warnings.append(
                f"seeds {waiting} of {contrast.name} are beyond its last look: not used"
            )
        for a, b in contrast.pairs:
            ours, theirs = (np.array([losses[cell, seed] for seed in seeds]) for cell in (b, a))
            # Unequal and skewed losses make the t test of their ratio too liberal (simulated).
            if equal_variances_p(ours, theirs) <= UNEQUAL:
                times = float(ours.std() / theirs.std())
                warnings.append(
                    f"losses of {b} vary {times:.2g} times as much over seeds as those of {a}: if "
                    f"they are skewed, too, p of {contrast.name} is too small (docs/statistics.md)"
                )
    return list(dict.fromkeys(warnings))
