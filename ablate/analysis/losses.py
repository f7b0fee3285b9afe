"""The losses that effects are computed from, by metric, stage, cell and seed."""

from __future__ import annotations

from collections.abc import Mapping

from ablate.core.ledger import Ledger
from ablate.core.metrics import FINETUNED, METRICS, compared
from ablate.core.plan import Plan
from ablate.core.trial import Trial
from ablate.stats.effects import DecisionRule, Losses
from ablate.stats.race import Race, hold_looks


def decision_rule(plan: Plan) -> DecisionRule:
    """Return how the study's verdicts are reached, as it was declared."""
    return DecisionRule(
        smallest_effect=plan.smallest_effect,
        looks=plan.looks,
        aim=plan.aim,
        exploratory=plan.exploratory,
    )


def race_so_far(plan: Plan, ledger: Ledger, losses: dict[str, Losses] | None = None) -> Race:
    """Return what the looks of a race decide, by the decisive metric, as far as the ledger goes."""
    losses = losses or stage_losses(plan, ledger)
    # A trial that failed for good is settled: a look must not wait for what will not come.
    settled = {
        (trial.name, trial.seed)
        for trial in plan.trials
        if ledger.result(trial) is not None or ledger.failure(trial) is not None
    }
    families = [plan.contrasts, [plan.noise] if plan.noise else []]
    return hold_looks(
        families,
        plan.decides,
        losses[plan.decides],
        decision_rule(plan),
        plan.cells,
        settled,
        METRICS[plan.decides].direction,
    )


def stage_losses(plan: Plan, ledger: Ledger) -> dict[str, Losses]:
    """Return test losses by metric, those of a fine-tuning with its name before it.

    Of every finished stage, whatever became of the trial's later ones: to leave a pretraining out
    because a fine-tuning failed would be to choose seeds by what came of them.
    """
    losses: dict[str, dict[tuple[str, int], float]] = {
        f"{stage.prefix}{metric.key}": {} for stage in plan.stages for metric in compared()
    }
    for trial in plan.trials:
        for stage in trial.stages:
            measured = (ledger.record(trial, stage) or {}).get("metrics", {})
            for metric in compared():
                if (name := f"test/{metric.key}") in measured:
                    losses[stage.prefix + metric.key][trial.name, trial.seed] = measured[name]
    return dict(losses)


def metric_sets(plan: Plan, losses: Mapping[str, Losses]) -> dict[str, list[Losses]]:
    """Return the losses that each reported metric is made of: several for a mean over sets."""
    sets = {name: [by_trial] for name, by_trial in losses.items()}
    later = plan.stages[1:]
    if later:
        sets |= {
            FINETUNED + metric.key: [losses[stage.prefix + metric.key] for stage in later]
            for metric in compared()
        }
    return sets


def needed_trials(plan: Plan, race: Race | None) -> list[Trial]:
    """Return the trials that a study needs, as far as is known: all, or those of a race."""
    if race is None:
        return plan.trials
    return [trial for trial in plan.trials if trial.seed < race.reach([trial.name])]
