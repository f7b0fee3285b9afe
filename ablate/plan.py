"""A plan: which trials a command means, what each cell costs, and what cannot be built."""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ablate.data.batches import LENGTH_MULTIPLE, TrainBatches
from ablate.data.dataset import open_dataset
from ablate.grid import Contrast, Grid, swap
from ablate.grids import make_grid
from ablate.recipe import RECIPES, Recipe, with_fields
from ablate.statistics import smallest_p
from ablate.train import loss_weights
from ablate.trial import PRETRAIN, Trial, make_trial
from ablate.workflow import PREFIX, finetunings
from assemblies import SIZES, CoCaConfig, Cost, cost, normalise, preset
from assemblies.checkpoint import read_cell
from assemblies.config import flatten
from assemblies.transplant import require_same_sizes
from blocks import Registry, Unsupported, UsageError, parse
from blocks.errors import unknown
from blocks.kernels import CUDA_BACKENDS, require_cuda

MAX_SEEDS = 1000
SHOWN = ("norm", "ffn", "position")  # blocks of the image tower that the plan's table has


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything about a study before it runs.

    ``skipped`` gives the reason for each cell that cannot be built, ``same`` the cell that another
    one turned out to equal; contrasts that need a missing cell are dropped.
    """

    grid: Grid
    size: str
    recipe: Recipe
    seeds: int
    trials: list[Trial]
    costs: dict[str, Cost]
    skipped: dict[str, str]
    same: dict[str, str]
    contrasts: tuple[Contrast, ...]
    data_skipped: dict[str, int]
    registry: Registry

    @property
    def cells(self) -> dict[str, CoCaConfig]:
        """Return the cells that are trained."""
        return {name: self.grid.cells[name] for name in self.costs}

    def of_cell(self, name: str) -> list[Trial]:
        """Return a cell's trials, one per seed."""
        return [trial for trial in self.trials if trial.name == name]


def make_plan(
    grid_name: str,
    size: str,
    seeds: int | None,
    settings: Mapping[str, Any],
    registry: Registry,
    sources: Sequence[str] | None = None,
) -> Plan:
    """Return the plan for a grid; raises `UsageError` for anything that cannot be meant.

    ``sources`` are the data sets to fine-tune on, by default the grid's own.
    """
    if size not in SIZES:
        raise unknown("size", size, SIZES)
    if seeds is not None and not 1 <= seeds <= MAX_SEEDS:
        raise UsageError(f"seeds must be from 1 to {MAX_SEEDS}, got {seeds}")
    later = {k.removeprefix(PREFIX): v for k, v in settings.items() if k.startswith(PREFIX)}
    for_cell, for_recipe = divide({k: v for k, v in settings.items() if not k.startswith(PREFIX)})
    grid = _make_grid(grid_name, size, registry, for_cell, str(for_recipe.get("initial", "")))
    recipe = with_fields(RECIPES[size], {**grid.settings, **for_recipe})
    chosen = grid.finetune if sources is None else tuple(sources)
    if later and not chosen:
        raise UsageError(f"{PREFIX}{next(iter(later))} is set, but nothing is fine-tuned")
    recipes = {PRETRAIN: recipe, **finetunings(chosen, recipe, later)}
    looks = _look_at_data(recipes, next(iter(grid.cells.values())))
    costs, skipped, same = _price(grid, recipe, looks[PRETRAIN].tokens, registry)
    count = seeds or grid.seeds
    return Plan(
        grid=grid,
        size=size,
        recipe=recipe,
        seeds=count,
        trials=[
            _make_trial(name, grid.cells[name], seed, recipes, looks, registry)
            for seed in range(count)  # seed by seed: a study stopped early is still balanced
            for name in costs
        ],
        costs=costs,
        skipped=skipped,
        same=same,
        contrasts=tuple(c for c in grid.contrasts if all(set(p) <= set(costs) for p in c.pairs)),
        data_skipped={
            f"{why} ({recipes[s].data})": n for s in looks for why, n in looks[s].skipped.items()
        },
        registry=registry,
    )


def _make_grid(
    name: str, size: str, registry: Registry, settings: Mapping[str, Any], initial: str
) -> Grid:
    """Return a named grid with the user's settings, fit for a checkpoint to start from, if any."""
    _refuse_varied(settings)

    def change(cell: CoCaConfig) -> CoCaConfig:
        return normalise(swap(cell, settings), registry)

    origin = read_cell(Path(initial)) if initial else None
    grid = make_grid(name, size, registry, change, origin)
    if origin is not None:
        for cell in grid.cells.values():
            require_same_sizes(origin, cell)
    return grid


def _make_trial(
    name: str,
    cell: CoCaConfig,
    seed: int,
    recipes: Mapping[str, Recipe],
    looks: Mapping[str, Look],
    registry: Registry,
) -> Trial:
    """Return a cell's trial of one seed through all stages."""
    later = [(s, r, looks[s].fingerprint) for s, r in recipes.items() if s != PRETRAIN]
    first = looks[PRETRAIN].fingerprint
    return make_trial(name, cell, recipes[PRETRAIN], seed, first, registry, later)


def divide(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide settings into those of the cell and those of the recipe; unknown names raise."""
    cell_names = set(_cell_fields())
    recipe_names = set(Recipe.__dataclass_fields__)
    assert not cell_names & recipe_names
    for name in settings:
        if name not in cell_names | recipe_names:
            raise unknown("field", name, cell_names | recipe_names)
    cell = {name: value for name, value in settings.items() if name in cell_names}
    return cell, {name: value for name, value in settings.items() if name in recipe_names}


def _cell_fields() -> list[str]:
    fields = list(flatten(preset("grr")))
    shared = [path.partition(".")[2] for path in fields if path.startswith("text.")]
    return [*fields, *(f"*.{name}" for name in shared)]


def _refuse_varied(for_cell: Mapping[str, Any]) -> None:
    """Refuse to set what makes a cell baseline or grr: names would no longer mean what they say."""
    baseline, grr = flatten(preset("baseline")), flatten(preset("grr"))
    for path in for_cell:
        ours = [path] if "*" not in path else [f"image{path[1:]}"]
        if any(baseline.get(name) != grr.get(name) for name in ours):
            raise UsageError(
                f"{path} cannot be set: it is what tells baseline from grr; for other blocks in "
                "the image tower use --grid each or a plugin"
            )


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a plan knows of a stage's data: ``tokens`` is a usual length of captions."""

    fingerprint: str
    tokens: int
    skipped: dict[str, int]


def _look_at_data(recipes: Mapping[str, Recipe], cell: CoCaConfig) -> dict[str, Look]:
    """Open the data of every stage as trials will; the first one's tokenizer reads them all."""
    tokenizer, found = None, {}
    for stage, recipe in recipes.items():
        try:
            data = open_dataset(recipe, cell, tokenizer)
            TrainBatches(data.splits["train"], recipe, seed=0)
        except UsageError as error:
            raise UsageError(f"{stage}: {error}" if len(recipes) > 1 else str(error)) from None
        tokenizer = data.tokenizer
        lengths = [len(ids[0]) for ids in data.splits["train"].ids]
        usual = math.ceil(float(np.percentile(lengths, 95)) / LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        found[stage] = Look(
            fingerprint=data.pairs.fingerprint,
            tokens=min(usual, cell.context),
            skipped=data.pairs.skipped,
        )
    return found


def _price(
    grid: Grid, recipe: Recipe, tokens: int, registry: Registry
) -> tuple[dict[str, Cost], dict[str, str], dict[str, str]]:
    """Build every distinct cell on the meta device: its cost, or why it cannot be built."""
    costs: dict[str, Cost] = {}
    skipped: dict[str, str] = {}
    same: dict[str, str] = {}
    first: dict[CoCaConfig, str] = {}
    for name, given in grid.cells.items():
        cell = normalise(given, registry)
        _require_backends(cell)
        loss_weights(cell, recipe)
        if cell in first:
            same[name] = first[cell]
            continue
        try:
            costs[name] = cost(cell, batch=recipe.batch, tokens=tokens, registry=registry)
            first[cell] = name
        except Unsupported as error:
            skipped[name] = str(error)
        except Exception as error:  # a plugin's code may raise anything
            raise _explain(name, cell, error, registry) from error
    if not costs:
        reasons = "; ".join(dict.fromkeys(skipped.values()))
        raise UsageError(f"no cell of grid {grid.name!r} can be built: {reasons}")
    return costs, skipped, same


def _require_backends(cell: CoCaConfig) -> None:
    """Refuse an attention backend that the trials' device lacks; meta, used by plans, has all."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for path, (_, spelling) in cell.spellings().items():
        backend = parse(spelling)[1].get("backend")
        if backend in CUDA_BACKENDS:
            try:
                require_cuda(str(backend), device)
            except Unsupported as error:
                raise UsageError(f"{path}: {error}") from None


def _explain(name: str, cell: CoCaConfig, error: Exception, registry: Registry) -> UsageError:
    """Say which cell cannot take a training step, which plugins it uses, and where it broke."""
    used = {
        f"{kind}/{registry.get(kind, spelling).name}": registry.get(kind, spelling)
        for kind, spelling in cell.spellings().values()
    }
    foreign = [b for b, spec in used.items() if spec in registry.third_party()] or list(used)
    last = traceback.extract_tb(error.__traceback__)[-1]
    reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return UsageError(
        f"cell {name!r} cannot take a training step ({last.filename}:{last.lineno}: {reason}); "
        f"look at {', '.join(foreign)}: python -m blocks check"
    )


def describe(plan: Plan) -> str:
    """Return the plan as text for a terminal."""
    recipe = plan.recipe
    reference = "baseline" if "baseline" in plan.costs else next(iter(plan.costs))
    base = plan.costs[reference]
    head = [
        f"grid {plan.grid.name}: {plan.grid.summary}",
        f"size {plan.size}, data {recipe.data}, {recipe.steps} steps of {recipe.batch} pairs, "
        f"{len(plan.costs)} cells x {plan.seeds} seeds = {len(plan.trials)} trials",
        *(
            f"then {stage.name}: {stage.recipe.data}, {stage.recipe.steps} steps of "
            f"{stage.recipe.batch} pairs, lr {stage.recipe.lr:g}"
            for stage in plan.trials[0].stages[1:]
        ),
    ]
    rows = [["cell", *SHOWN, "parameters", f"vs {reference}", "GFLOP/step"]]
    for name, price in plan.costs.items():
        image = plan.grid.cells[name].image
        mismatch = 100 * (price.parameters / base.parameters - 1)
        numbers = [f"{price.parameters:,}", f"{mismatch:+.2f}%", f"{price.step_flops / 1e9:,.2f}"]
        rows.append([name, *(getattr(image, kind) for kind in SHOWN), *numbers])
    foot = [f"skipped {name}: {reason}" for name, reason in plan.skipped.items()]
    foot += [f"same cell {name}: equals {other}" for name, other in plan.same.items()]
    foot += [f"data skipped: {count} x {why}" for why, count in plan.data_skipped.items()]
    foot += [
        "",
        f"with {plan.seeds} seed{'s' * (plan.seeds > 1)} no two-sided p can be below "
        f"{smallest_p(plan.seeds):.3g}",
    ]
    return "\n".join([*head, "", *_align(rows), *foot])


def _align(rows: list[list[str]]) -> list[str]:
    """Return a table's lines, the numbers, which are its last three columns, to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            text.rjust(width) if i >= len(row) - 3 else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
