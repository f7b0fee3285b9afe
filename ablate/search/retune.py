"""A plan whose cells have recipes of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ablate.core.finetuning import PREFIX, finetunings
from ablate.core.plan import Plan
from ablate.core.recipe import Recipe
from ablate.core.trial import PRETRAIN, make_trial
from blocks import Registry


def retune(
    plan: Plan, recipes: Mapping[str, Recipe], settings: Mapping[str, Any], registry: Registry
) -> Plan:
    """Return the plan with a recipe for each cell; fine-tunings follow from it by the same rule.

    ``settings`` are those that the plan was made with.
    """
    tuning = {k.removeprefix(PREFIX): v for k, v in settings.items() if k.startswith(PREFIX)}
    trials = []
    for trial in plan.trials:
        recipe, later = recipes[plan.original(trial.name)], trial.stages[1:]
        data = {stage.name: stage.data_fingerprint for stage in trial.stages}
        tunings = finetunings([stage.recipe.data for stage in later], recipe, tuning)
        stages = [(name, r, data[name]) for name, r in tunings.items()]
        trials.append(
            make_trial(
                trial.name,
                trial.cell,
                recipe,
                trial.seed,
                data[PRETRAIN],
                registry,
                stages,
                replicate=trial.replicate,
            )
        )
    return replace(plan, trials=trials)
