"""Studies as trials produce them, drawn from a known truth: what the calibration analyses.

A cell's loss in a seed is its mean, what the seed does to all cells, and a residual of its own,
normal or skewed (shifted exponential). Sizes are those of a pilot: grid full at size nano with six
seeds.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ablate.core.grid import Contrast, Grid
from ablate.core.grids import make_grid
from blocks import default_registry

LOSS = 12.9  # of the pilot's baseline
DEVIATION = 0.7  # percent: how much improvements vary over seeds; the pilot's vary by 0.5 to 0.9
CORRELATION = 0.5  # of two cells over seeds
# Improvements over the baseline in percent, as the pilot estimates them.
PILOT = {
    "baseline+rope": -0.03,
    "baseline+geglu": 1.24,
    "baseline+rmsnorm": -0.21,
    "grr-rmsnorm": 0.95,
    "grr-geglu": -0.23,
    "grr-rope": 1.22,
    "grr": 0.87,
    "original": -1.74,
}
SPREAD_OF_GAINS = 0.7  # percent: of the swaps of grid each, drawn anew for each study

Generator = np.random.Generator
Draw = Callable[[Generator, tuple[int, ...]], Any]
NOISES: dict[str, Draw] = {
    "normal": lambda random, shape: random.standard_normal(shape),
    "skewed": lambda random, shape: random.exponential(1.0, shape) - 1,
}


@functools.cache
def grid_of(name: str) -> Grid:
    """Return a grid as users run it."""
    return make_grid(name, "nano", default_registry())


def simulate(
    cells: Sequence[str],
    gains: Mapping[str, float],
    seeds: int,
    random: Generator,
    *,
    noise: str = "normal",
    deviation: float = DEVIATION,
    correlation: float = CORRELATION,
    scale: Mapping[str, float] | None = None,
    unruly: Sequence[str] = (),
) -> dict[tuple[str, int], float]:
    """Return losses of a study: gains are in percent of the reference's mean.

    ``scale`` multiplies the residuals of some cells; the swap of ``unruly`` cells gains more in
    some seeds than in others, by as much as improvements vary.
    """
    draw, residual = NOISES[noise], deviation / math.sqrt(2)
    shared = residual * math.sqrt(correlation / (1 - correlation)) * draw(random, (seeds,))
    own = residual * draw(random, (len(cells), seeds))
    wild = deviation * draw(random, (seeds,))
    return {
        (cell, seed): LOSS
        * (
            1
            - gains.get(cell, 0.0) / 100
            + (shared[seed] + (scale or {}).get(cell, 1.0) * own[i, seed]) / 100
            - (cell in unruly) * wild[seed] / 100
        )
        for i, cell in enumerate(cells)
        for seed in range(seeds)
    }


def draw_gains(grid: Grid, truth: str, random: Generator) -> dict[str, float]:
    """Return true gains of a grid's cells over its baseline, or over grr in grid each."""
    if truth == "none":
        return {}
    if grid.name != "each":
        return PILOT
    drawn = {cell: float(random.normal(0, SPREAD_OF_GAINS)) for cell in grid.cells}
    return (
        drawn
        | {"baseline": 0.0, "grr": PILOT["grr"]}
        | {
            cell: PILOT["grr"] + gain
            for cell, gain in drawn.items()
            if cell not in ("baseline", "grr")
        }
    )


def true_gain(contrast: Contrast, gains: Mapping[str, float]) -> float:
    """Return a contrast's true improvement in percent."""
    left = {cell: 1 - gains.get(cell, 0.0) / 100 for cell in contrast.cells}
    return float(np.mean([100 * (1 - left[b] / left[a]) for a, b in contrast.pairs]))
