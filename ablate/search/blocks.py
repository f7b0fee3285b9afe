"""A guided walk through the blocks of the image tower, and the grid that would confirm it.

Each slot is a categorical over every known block, those of plugins too; the swept options of a
block are asked for only where it was chosen. A walk is exploratory: its best cell won a contest of
many on one seed. So the best few become cells of an ordinary grid, `found`, on other seeds.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import optuna

from ablate.core.files import digest
from ablate.core.grid import Grid, against
from ablate.core.ledger import Ledger
from ablate.core.plan import Plan
from ablate.core.search_results import BASE_CELL, Outcome, SearchOutcomes, name_of, ranking
from ablate.core.trial import Trial
from ablate.search.engine import NothingFoundError, Subject, search, search_trials
from ablate.search.request import FOUND, SearchSize
from assemblies import CoCaConfig, cost, normalise, with_field
from assemblies.cost import explain, require_backends
from blocks import KINDS, BlockSpec, Registry, Unsupported, UsageError, parse
from blocks.spec import Option

ENOUGH = 5  # trained trials that had an option, below which its importance is left out
PLAIN_TOKENS = 8  # captions of so many tokens are enough to see whether a cell can be built


@dataclass(frozen=True, kw_only=True)
class BlockSearch:
    """What a walk has found: its outcomes, and how much of their variance each choice explains."""

    outcomes: list[Outcome]
    importances: dict[str, float]


def search_blocks(
    plan: Plan,
    budget: SearchSize,
    ledger: Ledger,
    registry: Registry,
    run: Callable[[list[Trial]], None],
    tell: Callable[[SearchOutcomes], None],
) -> BlockSearch | None:
    """Walk from the plan's one cell and return what was found, or None if interrupted.

    Raises `NothingFoundError` where no trial has a result.
    """
    subject = make_subject(plan, budget, registry)
    outcomes_of = search([subject], budget, ledger, run, tell)
    if outcomes_of is None:
        return None
    outcomes = outcomes_of[subject.name]
    if all(outcome.loss is None for outcome in outcomes):
        raise NothingFoundError(f"no trial of the walk has a result: {outcomes[-1].reason}")
    return BlockSearch(outcomes=outcomes, importances=importances(outcomes, plan, registry))


def make_subject(plan: Plan, budget: SearchSize, registry: Registry) -> Subject:
    """Return the search of a walk; the base itself is its first trial."""
    stage, base = plan.stages[0], plan.cells[BASE_CELL]

    def train(cell: CoCaConfig) -> list[Trial]:
        name = name_of(cell, base)
        return search_trials(name, cell, stage.recipe, budget, stage.data_fingerprint, registry)

    def propose(trial: optuna.Trial) -> list[Trial]:
        cell = normalise(choose(trial, base, registry), registry)
        require_buildable(name_of(cell, base), cell, registry)
        return train(cell)

    slots = {f"{s.kind}/{s.name}": swept(s) for s in registry}
    asked = [slots, registry.fingerprint(), budget.generation, budget.sampler]
    key = digest([[trial.key for trial in train(base)], asked])
    return Subject(name="blocks", key=key, propose=propose, start=choices_of(base, registry))


def swept(spec: BlockSpec) -> dict[str, list[Option]]:
    """Return the values that a walk tries for each swept option of a block, its default first."""
    return {k: list(dict.fromkeys([spec.options[k], *values])) for k, values in spec.sweep.items()}


def choose(trial: optuna.trial.BaseTrial, base: CoCaConfig, registry: Registry) -> CoCaConfig:
    """Return the cell of Optuna's choices for each slot of the base's image tower.

    Options that are not swept have their defaults; poolers keep the base's number of queries.
    """
    cell = base
    for kind in KINDS:
        name = trial.suggest_categorical(kind, registry.names(kind))
        spec = registry.get(kind, name)
        options = {
            option: trial.suggest_categorical(f"{kind}.{name}.{option}", values)
            for option, values in swept(spec).items()
        }
        kept = _kept(spec, base)
        cell = with_field(cell, f"image.{kind}", spec.spell({**kept, **options}))
    return cell


def choices_of(cell: CoCaConfig, registry: Registry) -> dict[str, Any]:
    """Return the choices that lead to a cell, or nothing where a walk cannot choose its options."""
    choices: dict[str, Any] = {}
    for kind in KINDS:
        spelling = getattr(cell.image, kind)
        spec = registry.get(kind, spelling)
        options = spec.complete(parse(spelling)[1])
        if any(options[option] not in values for option, values in swept(spec).items()):
            return {}
        choices |= {kind: spec.name}
        choices |= {f"{kind}.{spec.name}.{option}": options[option] for option in spec.sweep}
    return choices if reached(choices, cell, registry) == cell else {}


def _kept(spec: BlockSpec, base: CoCaConfig) -> dict[str, Option]:
    """Return the options that a pooler takes over from the base's: the size's queries."""
    queries = parse(base.image.pooling)[1].get("queries")
    keeps = spec.kind == "pooling" and "queries" in spec.options and queries is not None
    return {"queries": queries} if keeps else {}


def require_buildable(name: str, cell: CoCaConfig, registry: Registry) -> None:
    """Raise `Unsupported` where a cell cannot take a step, before it is trained.

    Raises `UsageError` that names the plugin whose block breaks instead of saying so.
    """
    try:
        require_backends(cell)
    except UsageError as error:
        raise Unsupported(str(error)) from None
    try:
        cost(cell, batch=2, tokens=PLAIN_TOKENS, registry=registry)
    except Unsupported:
        raise
    except Exception as error:  # a plugin's code may raise anything
        raise explain(name, cell, error, registry) from error


def importances(outcomes: Sequence[Outcome], plan: Plan, registry: Registry) -> dict[str, float]:
    """Return how much each choice matters for being among the best, from 0 to 1, largest first.

    PED-ANOVA (arXiv 2304.10255), which unlike fANOVA needs no scikit-learn and takes options that
    only some blocks have. Empty with fewer than two trained trials, or where all gave the same.
    """
    losses = {outcome.loss for outcome in outcomes if outcome.loss is not None}
    if len(losses) < 2:
        return {}
    study = optuna.create_study(direction="minimize")
    for outcome in outcomes:
        if outcome.loss is not None:
            asked = optuna.trial.FixedTrial(dict(outcome.values))
            choose(asked, plan.cells[BASE_CELL], registry)
            study.add_trial(
                optuna.trial.create_trial(
                    value=outcome.loss, params=asked.params, distributions=asked.distributions
                )
            )
    had = Counter(name for trial in study.trials for name in trial.params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental; few trials, which the reader is told
        shares = optuna.importance.get_param_importances(
            study,
            evaluator=optuna.importance.PedAnovaImportanceEvaluator(),
            params=[name for name, times in had.items() if times >= ENOUGH or name in KINDS],
        )
    return {name: float(share) for name, share in shares.items()}


def found_grid(
    outcomes: Sequence[Outcome], keep: int, cells: Mapping[str, CoCaConfig], registry: Registry
) -> Grid:
    """Return the grid that confirms a walk: its base, and the best ``keep`` cells against it.

    The best of all is the primary contrast.
    """
    base = cells[BASE_CELL]
    best = [o for o in ranking(outcomes) if o.cell != BASE_CELL][:keep]
    if not best:
        raise NothingFoundError(f"the walk has trained no cell but {BASE_CELL}")
    named = {BASE_CELL: base} | {o.short: reached(o.values, base, registry) for o in best}
    contrasts = [against(BASE_CELL, outcome.short, named) for outcome in best]
    return Grid(
        name=FOUND,
        summary=f"the best {len(best)} cells of a walk of {len(outcomes)} trials, and {BASE_CELL}",
        cells=named,
        contrasts=(replace(contrasts[0], primary=True), *contrasts[1:]),
    )


def reached(values: Mapping[str, Any], base: CoCaConfig, registry: Registry) -> CoCaConfig:
    """Return the cell that a walk's choices mean."""
    return normalise(choose(optuna.trial.FixedTrial(dict(values)), base, registry), registry)
