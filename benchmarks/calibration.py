"""Do the statistics keep their promises? `python benchmarks/calibration.py --runs 2000`.

Studies drawn from a known truth (`simulated`) are analysed by the functions that analyse real
studies. Every rate stands with its Monte Carlo standard error. Writes calibration.json beside
itself.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from simulated import DEVIATION, NOISES, PILOT, Generator, draw_gains, grid_of, simulate, true_gain

from ablate.core.grid import Contrast, Grid
from ablate.core.grids import PAPER
from ablate.planning.planner import A_A_ENDING
from ablate.stats.effects import DecisionRule, Effect, Losses, effects, verdict_is_clear
from ablate.stats.factorial import attribute
from ablate.stats.race import AIMS, IMPROVEMENTS, hold_looks
from ablate.stats.sequential import spent, usual_looks
from ablate.stats.tests_and_intervals import ALPHA, clustered_interval, power, ratio_gains

SEEDS = (3, 5, 8, 20)


def rate(hits: Sequence[float]) -> dict[str, float]:
    """Return a mean over studies with its standard error."""
    values = np.asarray(hits, dtype=float)
    error = float(values.std()) / math.sqrt(len(values))
    return {"rate": round(float(values.mean()), 4), "error": round(error, 4), "runs": len(values)}


def family_error(
    grid: Grid, seeds: int, noise: str, condition: str, runs: int, random: Generator
) -> dict[str, float]:
    """Return the share of studies without any effect in which some contrast has a clear verdict."""
    hits, uneven = [], CONDITIONS[condition](grid)
    for _ in range(runs):
        losses = simulate([*grid.cells], {}, seeds, random, noise=noise, **uneven)
        found = effects(grid.contrasts, "coca", losses, rule=DecisionRule())
        hits.append(any(verdict_is_clear(e.verdict) for e in found))
    return rate(hits)


def swap_cells(grid: Grid, swap: str) -> list[str]:
    """Return the cells of a factorial that have a swap; without a factorial, grr."""
    return [cell for cell, swaps in grid.factorial.items() if swap in swaps] or ["grr"]


NOISIER = "a swap with residuals three times as large"
CONDITIONS: dict[str, Callable[[Grid], dict[str, Any]]] = {
    "even": lambda grid: {},
    NOISIER: lambda grid: {"scale": dict.fromkeys(swap_cells(grid, "geglu"), 3.0)},
    "a swap whose gain varies over seeds": lambda grid: {"unruly": swap_cells(grid, "geglu")},
}


def coverage(
    grid: Grid, seeds: int, noise: str, condition: str, runs: int, random: Generator
) -> dict[str, Any]:
    """Return how often 95% intervals hold the truth, on average and for the worst of each kind.

    ``gap`` is the largest difference between the gain and the sum of its Shapley values.
    """
    factorial = {frozenset(swaps): cell for cell, swaps in grid.factorial.items()}
    cells = [*grid.cells]
    truths = intervals(grid, factorial, simulate(cells, PILOT, 2, random, deviation=0.0))
    held: dict[str, list[list[bool]]] = {kind: [] for kind in truths}
    gaps = []
    for _ in range(runs):
        losses = simulate(cells, PILOT, seeds, random, noise=noise, **CONDITIONS[condition](grid))
        found = intervals(grid, factorial, losses)
        for kind, parts in found.items():
            pairs = zip(parts, truths[kind], strict=True)
            held[kind].append([p.low <= truth.estimate <= p.high for p, truth in pairs])
        whole = attribute(factorial, losses, DecisionRule())
        assert whole is not None
        gaps.append(abs(sum(part.estimate for part in whole.shapley) - whole.gain.estimate))
    shares = {
        kind: rate(np.mean(rows, axis=1)) | {"worst": round(float(np.mean(rows, axis=0).min()), 4)}
        for kind, rows in held.items()
    }
    return {**shares, "gap": max(gaps)}


def intervals(
    grid: Grid, factorial: Mapping[frozenset[str], str], losses: Losses
) -> dict[str, list[Any]]:
    """Return everything in a report that has an interval, by kind."""
    found = effects(grid.contrasts, "coca", losses, rule=DecisionRule())
    whole = attribute(factorial, losses, DecisionRule())
    assert whole is not None
    return {
        "contrasts": [e for e in found if "main effect" not in e.contrast],
        "main effects": [e for e in found if "main effect" in e.contrast],
        "shapley": whole.shapley,
        "terms": whole.terms,
        "additive gap": [whole.additive_gap],
    }


SOURCES = {  # standard deviations of seeds, of clusters of examples, and of what is left
    "seeds vary most": (1.0, 1.0, 3.0),
    "examples vary most": (0.05, 5.0, 3.0),
    "both": (0.3, 3.0, 3.0),
    "neither": (0.0, 0.0, 3.0),
}
CLUSTERS = {  # as of captions, and as of batches of a contrastive loss
    "60 clusters": np.repeat(np.arange(60), np.arange(60) % 6 + 1),
    "6 clusters": np.repeat(np.arange(6), 32),
}
GAINS = {"no gain": 0.0, "a gain of 7%": 0.07}


def example_coverage(
    source: str, of: str, gain: str, seeds: int, noise: str, runs: int, random: Generator
) -> dict[str, float]:
    """Return how often the interval for other seeds and examples holds a true improvement.

    The reference's losses vary over clusters by a third of their mean; the candidate's are less by
    the same amount on all examples. (Less by a share of each is no gain, with a constant added.)
    """
    draw, (of_seed, of_cluster, rest) = NOISES[noise], SOURCES[source]
    clusters, amount = CLUSTERS[of], GAINS[gain]
    hits = []
    for _ in range(runs):
        losses = 1 + 0.3 * draw(random, (clusters.max() + 1,))[clusters]
        noises = (
            of_seed * (draw(random, (seeds, 1)) - draw(random, (seeds, 1))) / math.sqrt(2)
            + of_cluster * draw(random, (clusters.max() + 1,))[clusters]
            + rest * draw(random, (seeds, len(clusters)))
        )
        others = losses - amount + noises / 100
        found = clustered_interval(np.stack([ratio_gains(losses, o) for o in others]), clusters)
        hits.append(found.low <= 100 * amount <= found.high)
    return rate(hits)


def equivalence(
    gain: float,
    deviation: float,
    seeds: int,
    noise: str,
    runs: int,
    random: Generator,
    looks: tuple[int, ...] = (),
) -> dict[str, float]:
    """Return how often a true effect is found smaller than the smallest effect of 1%.

    ``verdict`` is the share called equivalent, which those that are clear as well are not.
    """
    hits, verdicts = [], []
    for _ in range(runs):
        cells = [*PAPER.pairs[0]]
        losses = simulate(cells, {cells[1]: gain}, seeds, random, deviation=deviation, noise=noise)
        (found,) = effects([PAPER], "coca", losses, rule=DecisionRule(looks=looks))
        hits.append(found.p_tost <= ALPHA)
        verdicts.append(found.verdict == "equivalent")
    return rate(hits) | {"verdict": rate(verdicts)["rate"]}


def power_gap(
    grid: Grid, contrast: Contrast, gain: float, seeds: int, alpha: float, runs: int,
    random: Generator,
) -> dict[str, float]:  # fmt: skip
    """Return how often one true effect among none is found, beside what a plan predicts."""
    hits = []
    for _ in range(runs):
        losses = simulate([*grid.cells], {contrast.pairs[0][1]: gain}, seeds, random)
        found = effects(grid.contrasts, "coca", losses, rule=DecisionRule())
        hits.append(any(verdict_is_clear(e.verdict) for e in found if e.contrast == contrast.name))
    return rate(hits) | {"predicted": round(power(gain, seeds, DEVIATION, alpha), 4)}


def race(
    grid: Grid, last: int, truth: str, aim: str, noise: str, runs: int, random: Generator
) -> dict[str, Any]:
    """Return what a race saves and what it costs, beside the same studies with all their seeds.

    ``truth`` is ``none`` (no effect at all) or ``pilot``. Verdicts of others than the primary are
    shares of all those contrasts.
    """
    primary = next(c for c in grid.contrasts if c.primary)
    reference = primary.pairs[0][0]
    again = Contrast(name="A/A", pairs=((reference, reference + A_A_ENDING),))
    cells = [*grid.cells, reference + A_A_ENDING]
    rule, rows = DecisionRule(looks=usual_looks(last), aim=aim), []
    for _ in range(runs):
        gains = draw_gains(grid, truth, random)
        losses = simulate(cells, gains, last, random, noise=noise)
        held = hold_looks([grid.contrasts, [again]], "coca", losses, rule, cells, losses)
        seen = {key: loss for key, loss in losses.items() if key[1] < held.seeds[key[0]]}
        raced = effects(grid.contrasts, "coca", seen, rule=rule)
        whole = effects(grid.contrasts, "coca", losses, rule=DecisionRule())
        rows.append(_race_row(primary.name, raced, whole, grid, gains))
        rows[-1]["saved"] = 1 - len(seen) / len(losses)
    return {name: rate([row[name] for row in rows]) for name in rows[0]}


def _race_row(
    primary: str,
    raced: list[Effect],
    whole: list[Effect],
    grid: Grid,
    gains: Mapping[str, float],
) -> dict[str, float]:
    def others(found: list[Effect], *words: str) -> float:
        return float(np.mean([e.verdict in words for e in found if e.contrast != primary]))

    def clear(found: list[Effect]) -> bool:
        return next(verdict_is_clear(e.verdict) for e in found if e.contrast == primary)

    def wrong(effect: Effect, true: float) -> bool:
        right = true != 0 and (effect.verdict == "improved") == (true > 0)
        return verdict_is_clear(effect.verdict) and not right

    truths = [true_gain(contrast, gains) for contrast in grid.contrasts]
    cover = [e.low <= true <= e.high for e, true in zip(raced, truths, strict=True)]
    mistakes = [wrong(e, true) for e, true in zip(raced, truths, strict=True)]
    found = {"any wrong verdict": any(mistakes), "coverage": float(np.mean(cover))}
    found |= {"primary clear": clear(raced), "primary clear with all seeds": clear(whole)}
    for word in ("improved", "worse", "equivalent"):
        found[f"others {word}"] = others(raced, word)
        found[f"others {word} with all seeds"] = others(whole, word)
    return found


def first_holm_step(grid: Grid) -> float:
    """Return the level at which the first of the contrasts beside the primary is tested."""
    return ALPHA * (1 - DecisionRule().primary_share) / (len(grid.contrasts) - 1)


Figure = tuple[str, str, Callable[..., Mapping[str, Any]]]  # kind, name, what is simulated


def error_figures(runs: int) -> Iterator[Figure]:
    """Yield what is to be at most 5%."""
    for (name, share), noise, n in itertools.product(
        {"paper": 2.0, "full": 1.0, "each": 0.5}.items(), NOISES, SEEDS
    ):
        call = partial(family_error, grid_of(name), n, noise, "even", int(share * runs))
        yield "family-wise error", f"{name}, {noise}, {n} seeds", call
    for (name, share), noise, n in itertools.product(
        {"paper": 1.0, "full": 0.5}.items(), NOISES, SEEDS
    ):
        call = partial(family_error, grid_of(name), n, noise, NOISIER, int(share * runs))
        yield f"family-wise error, {NOISIER}", f"{name}, {noise}, {n} seeds", call
    for deviation, noise, n in itertools.product((0.3, DEVIATION), NOISES, SEEDS):
        call = partial(equivalence, 1.0, deviation, n, noise, runs)
        label = f"deviation {deviation}, {noise}, {n} seeds"
        yield "equivalence found though the effect is at the margin", label, call
    for noise in NOISES:
        call = partial(equivalence, 1.0, 0.3, 8, noise, runs, looks=(3, 5, 8))
        label = f"looks at 3, 5 and 8 seeds, {noise}"
        yield "equivalence found though the effect is at the margin", label, call


def coverage_figures(runs: int) -> Iterator[Figure]:
    """Yield what is to be 93 to 97%."""
    for condition, noise, n in itertools.product(CONDITIONS, NOISES, SEEDS):
        call = partial(coverage, grid_of("full"), n, noise, condition, runs // 2)
        yield "coverage", f"{condition}, {noise}, {n} seeds", call
    for of, gain, source, noise, n in itertools.product(CLUSTERS, GAINS, SOURCES, NOISES, SEEDS):
        call = partial(example_coverage, source, of, gain, n, noise, 2 * runs)
        label = f"{of}, {gain}, {source}, {noise}, {n} seeds"
        yield "coverage over seeds and examples", label, call


def power_figures(runs: int) -> Iterator[Figure]:
    """Yield what is to be within 5 points of what a plan predicts."""
    full = grid_of("full")
    single = next(c for c in full.contrasts if "original" in c.cells)
    for contrast, alpha, gains in (
        (PAPER, ALPHA * DecisionRule().primary_share, (0.35, 0.7, 1.4)),
        (single, first_holm_step(full), (0.7, 1.4, 2.8)),
    ):
        kind = "power of the primary contrast" if contrast.primary else "power at Holm's first step"
        for n, gain in itertools.product(SEEDS, gains):
            call = partial(power_gap, full, contrast, gain, n, alpha, runs // 2)
            yield kind, f"effect {gain}, {n} seeds", call


def race_figures(runs: int) -> Iterator[Figure]:
    """Yield what races save and cost; the largest grid is the slowest to simulate."""
    for aim, last, (name, share) in itertools.product(
        AIMS, (8, 12, 20), {"swaps": 1.0, "full": 1.0, "each": 0.4}.items()
    ):
        call = partial(race, grid_of(name), last, "pilot", aim, "normal", int(share * runs))
        yield "race for " + aim, f"{name}, effects of the pilot, last look {last}", call
    for noise, last, (name, share) in itertools.product(
        NOISES, (8, 20), {"swaps": 2.0, "each": 0.4}.items()
    ):
        call = partial(race, grid_of(name), last, "none", IMPROVEMENTS, noise, int(share * runs))
        yield "race without effects", f"{name}, {noise}, last look {last}", call


KINDS = {
    "errors": error_figures,
    "coverage": coverage_figures,
    "power": power_figures,
    "races": race_figures,
}


def figure(kind: str, runs: int, seed: int, number: int) -> tuple[str, str, Mapping[str, Any]]:
    """Return a figure of a kind, from a generator of its own."""
    title, name, call = next(itertools.islice(KINDS[kind](runs), number, None))
    random = np.random.default_rng([seed, *f"{title} {name}".encode()])
    return title, name, call(random=random)


def run(kind: str, runs: int, seed: int, processes: int) -> dict[str, Any]:
    """Return all figures of a kind by title and name."""
    began = time.monotonic()
    result: dict[str, Any] = {}
    count = sum(1 for _ in KINDS[kind](runs))
    with ProcessPoolExecutor(processes) as pool:
        for title, name, found in pool.map(partial(figure, kind, runs, seed), range(count)):
            result.setdefault(title, {})[name] = found
            print(title, "|", name, "|", json.dumps(found), flush=True)
    about = {
        "runs": runs,
        "seed": seed,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "device": f"cpu ({platform.machine()}), {processes} processes",
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }
    return {"about": about, **result}


def main() -> None:
    """Simulate, print, and write the results into what is there of other kinds."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=2000, help="studies per figure (default 2000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=KINDS, nargs="*", default=[*KINDS], help="default: all")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="default: all cores")
    options = parser.parse_args()
    path = Path(__file__).with_suffix(".json")
    for kind in options.only:
        found = run(kind, options.runs, options.seed, options.processes)
        before = json.loads(path.read_text()) if path.exists() else {}
        before["alpha spent"] = {str(last): spent(usual_looks(last)) for last in (8, 12, 20)}
        path.write_text(json.dumps({**before, kind: found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
