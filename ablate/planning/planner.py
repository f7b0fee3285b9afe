"""Makes a plan: which trials a command means, what each cell costs, what cannot be built."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ablate.core.finetuning import PREFIX, finetunings
from ablate.core.grid import Contrast, Design, Grid, swap
from ablate.core.grids import make_grid
from ablate.core.plan import Plan
from ablate.core.recipe import RECIPES, Recipe, with_fields
from ablate.core.swap_checks import check_swaps
from ablate.core.trial import AGAIN, MAX_SEEDS, PRETRAIN, STUDY, Trial, code_hash, make_trial
from ablate.data.batches import LENGTH_MULTIPLE, TrainBatches
from ablate.data.dataset import open_dataset
from ablate.planning.costs import price
from ablate.training.evaluate import references
from assemblies import SIZES, CoCaConfig, Cost, normalise, preset
from assemblies.checkpoint import read_cell
from assemblies.config import flatten
from assemblies.transplant import require_same_sizes
from blocks import Registry, UsageError
from blocks.errors import unknown

A_A_ENDING = " again"  # of the name of the reference that is trained again
NOISE_CELLS = 5  # from so many cells on, training one of them again is a small part of a study


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """What a study declares before it runs, beside grid and recipe."""

    primary: str = ""
    """The contrast that it is about, by name; empty: the grid's own."""

    noise: bool | None = None
    """Whether the reference is trained again under other seeds; None: from five cells on."""

    smallest_effect: float = 1.0
    """The improvement in percent below which a difference is of no interest."""

    first_seed: int = 0
    """The seed that all others follow, where earlier ones have been looked at."""

    looks: tuple[int, ...] = ()
    """The numbers of seeds at interim looks; the last one is all."""

    aim: str = "improvements"
    """What interim looks go on for: ``improvements`` or ``verdicts``."""

    exploratory: bool = False
    """Whether ASHA stops trials early."""

    cells: tuple[str, ...] = ()
    """The grid's cells that are trained, if not all of them."""


def make_plan(
    grid_name: str | Design,
    size: str,
    seeds: int | None,
    settings: Mapping[str, Any],
    registry: Registry,
    sources: Sequence[str] | None = None,
    declared: StudyOptions = StudyOptions(),
) -> Plan:
    """Return the plan for a grid, by name or design; raises `UsageError` for what cannot be meant.

    ``sources`` are the data sets to fine-tune on, by default the grid's own.
    """
    _check(size, seeds, declared)
    later = {k.removeprefix(PREFIX): v for k, v in settings.items() if k.startswith(PREFIX)}
    for_cell, for_recipe = divide({k: v for k, v in settings.items() if not k.startswith(PREFIX)})
    grid = _make_grid(grid_name, size, registry, for_cell, str(for_recipe.get("initial", "")))
    count = _count_seeds(seeds or grid.seeds, declared)
    recipe = with_fields(RECIPES[size], {**grid.settings, **for_recipe})
    chosen = grid.finetune if sources is None else tuple(sources)
    if declared.exploratory and chosen:
        raise UsageError("--asha stops trials before any fine-tuning: add --stages pretrain")
    if later and not chosen:
        raise UsageError(f"{PREFIX}{next(iter(later))} is set, but nothing is fine-tuned")
    recipes = {PRETRAIN: recipe, **finetunings(chosen, recipe, later)}
    looks = _look_at_data(recipes, next(iter(grid.cells.values())))
    cells = _choose(grid, declared.cells)
    if taken := [name for name in cells if name.endswith(A_A_ENDING)]:
        raise UsageError(f"no cell may be named like an A/A cell, with{A_A_ENDING!r}: {taken[0]!r}")
    costs, skipped, same = price(cells, recipe, looks[PRETRAIN].tokens, registry)
    contrasts = _declare(grid, costs, declared.primary)
    check_swaps(contrasts, grid.cells, registry)
    noise = _noise_floor(contrasts, costs, declared.noise)
    return Plan(
        grid=grid.name,
        summary=grid.summary,
        size=size,
        seeds=count,
        first_seed=declared.first_seed,
        trials=[
            _make_trial(name, grid.cells[cell], seed, replicate, recipes, looks, registry)
            # Seed by seed: a study stopped early is still balanced.
            for seed in range(declared.first_seed, declared.first_seed + count)
            for name, cell, replicate in _runs(costs, noise)
        ],
        costs=costs | ({noise.pairs[0][1]: costs[noise.pairs[0][0]]} if noise else {}),
        contrasts=contrasts,
        noise=noise,
        factorial=grid.factorial if set(grid.factorial) <= set(costs) else {},
        skipped=skipped,
        same=same,
        dropped={
            contrast.name: f"needs {', '.join(sorted(lost))}"
            for contrast in grid.contrasts
            if (lost := contrast.cells - costs.keys())
        },
        data_skipped={
            f"{why} ({recipes[s].data})": n for s in looks for why, n in looks[s].skipped.items()
        },
        references={stage: look.references for stage, look in looks.items()},
        blocks=_block_hashes([grid.cells[name] for name in costs], registry),
        code=code_hash(),
        smallest_effect=declared.smallest_effect,
        looks=declared.looks,
        aim=declared.aim,
        exploratory=declared.exploratory,
    )


def _check(size: str, seeds: int | None, declared: StudyOptions) -> None:
    """Raise `UsageError` for what no grid could be planned with."""
    if size not in SIZES:
        raise unknown("size", size, SIZES)
    if seeds is not None and not 1 <= seeds <= MAX_SEEDS:
        raise UsageError(f"seeds must be from 1 to {MAX_SEEDS}, got {seeds}")
    if not 0 < declared.smallest_effect < 100:
        raise UsageError(
            f"the smallest effect must be above 0 and below 100%, got {declared.smallest_effect}"
        )
    if declared.exploratory and declared.looks:
        raise UsageError("--race and --asha: a race has verdicts, ASHA has none; choose one")


def _count_seeds(asked: int, declared: StudyOptions) -> int:
    """Return how many seeds there are; raises `UsageError` for a first one that cannot be."""
    first, count = declared.first_seed, declared.looks[-1] if declared.looks else asked
    if first and declared.looks:
        raise UsageError(
            f"--first-seed {first} and --race: the looks of a race count seeds from 0; "
            "leave one of them out"
        )
    if not 0 <= first <= MAX_SEEDS - count:
        raise UsageError(
            f"--first-seed must be from 0 to {MAX_SEEDS - count} with {count} seeds, got {first}"
        )
    return count


def _choose(grid: Grid, names: Sequence[str]) -> dict[str, CoCaConfig]:
    """Return the cells of a grid that are wanted, in the grid's order; no names mean all."""
    for name in names:
        if name not in grid.cells:
            raise unknown("cell", name, grid.cells)
    return {name: cell for name, cell in grid.cells.items() if not names or name in names}


def _declare(grid: Grid, costs: Mapping[str, Cost], primary: str) -> tuple[Contrast, ...]:
    """Return the contrasts of cells that can be built, with the one declared as primary."""
    contrasts = [c for c in grid.contrasts if c.cells <= costs.keys()]
    if not primary:
        return tuple(contrasts)
    if primary not in (names := [c.name for c in contrasts]):
        raise unknown("contrast", primary, names)
    return tuple(replace(c, primary=c.name == primary) for c in contrasts)


def _noise_floor(
    contrasts: Sequence[Contrast], costs: Mapping[str, Cost], asked: bool | None
) -> Contrast | None:
    """Return the A/A contrast: the reference against itself under other seeds, if wanted."""
    if asked is False or (asked is None and len(costs) < NOISE_CELLS):
        return None
    primary = next((c for c in contrasts if c.primary), None)
    reference = primary.pairs[0][0] if primary else next(iter(costs))
    again = reference + A_A_ENDING
    return Contrast(name=f"{reference} -> {again}", pairs=((reference, again),))


def _runs(cells: Iterable[str], noise: Contrast | None) -> list[tuple[str, str, int]]:
    """Return of each trial of a seed its name, its cell's name in the grid, and its replicate."""
    again = [(noise.pairs[0][1], noise.pairs[0][0], AGAIN)] if noise else []
    return [*((name, name, STUDY) for name in cells), *again]


def _block_hashes(cells: Sequence[CoCaConfig], registry: Registry) -> dict[str, str]:
    """Return the hash of the source of every block in use, by kind and spelling."""
    used = sorted({pair for cell in cells for pair in cell.spellings().values()})
    return {f"{kind} {s}": registry.source_hash(kind, s) for kind, s in used}


def _make_grid(
    name: str | Design, size: str, registry: Registry, settings: Mapping[str, Any], initial: str
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
    replicate: int,
    recipes: Mapping[str, Recipe],
    looks: Mapping[str, Look],
    registry: Registry,
) -> Trial:
    """Return a cell's trial of one seed through all stages."""
    later = [(s, r, looks[s].fingerprint) for s, r in recipes.items() if s != PRETRAIN]
    first = looks[PRETRAIN].fingerprint
    return make_trial(
        name, cell, recipes[PRETRAIN], seed, first, registry, later, replicate=replicate
    )


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
    """What a plan knows of a stage's data.

    ``tokens`` is a usual length of captions, ``references`` the test losses of chance.
    """

    fingerprint: str
    tokens: int
    skipped: dict[str, int]
    references: dict[str, float]


def _look_at_data(recipes: Mapping[str, Recipe], cell: CoCaConfig) -> dict[str, Look]:
    """Open the data of every stage as trials will; the first one's tokenizer reads them all."""
    tokenizer, summaries = None, {}
    for stage, recipe in recipes.items():
        try:
            data = open_dataset(recipe, cell, tokenizer)
            TrainBatches(data.splits["train"], recipe, seed=0)
        except UsageError as error:
            raise UsageError(f"{stage}: {error}" if len(recipes) > 1 else str(error)) from None
        tokenizer = data.tokenizer
        lengths = [len(ids[0]) for ids in data.splits["train"].ids]
        usual = math.ceil(float(np.percentile(lengths, 95)) / LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        summaries[stage] = Look(
            fingerprint=data.pairs.fingerprint,
            tokens=min(usual, cell.context),
            skipped=data.pairs.skipped,
            references=references(data.splits["train"], data.splits["test"], recipe),
        )
    return summaries
