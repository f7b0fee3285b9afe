"""The named grids. All compare image towers: baseline -> grr changes nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from ablate.core.grid import Contrast, Design, Grid, against, each, merge, product, swap
from assemblies import CoCaConfig, preset, with_field
from assemblies.presets import GRR, ORIGINAL
from blocks import BlockSpec, Registry, UsageError, parse
from blocks.errors import unknown

Change = Callable[[CoCaConfig], CoCaConfig]
PAPER = Contrast(
    name="baseline -> grr",
    pairs=(("baseline", "grr"),),
    primary=True,
    fields=tuple(f"image.{kind}" for kind in GRR),
)


def make_grid(
    name: str | Design,
    size: str,
    registry: Registry,
    change: Change = lambda cell: cell,
    origin: CoCaConfig | None = None,
) -> Grid:
    """Return a grid, by name or design, at a size; ``change`` applies settings to every preset.

    Blocks that plugins add enter every named grid as single swaps from grr, or from its reference
    in a grid without grr. ``origin`` is the cell of the checkpoint that
    training starts from, if any.
    """
    if isinstance(name, str) and name not in GRIDS:
        raise unknown("grid", name, GRIDS)
    cells = {key: change(preset(key, size)) for key in ("original", "baseline", "grr")}
    if origin is not None:
        cells["checkpoint"] = change(origin)
    if not isinstance(name, str):
        return name(cells, registry)
    grid = GRIDS[name](cells, registry)
    # A grid without grr (transplant is one) compares with its own reference.
    base = "grr" if "grr" in grid.cells else reference_of(grid)
    added = plugin_cells(base, grid.cells[base], registry)
    merged = merge(grid.cells, added)
    versus = [against(base, name, merged) for name in added if name not in grid.cells]
    return replace(grid, cells=merged, contrasts=(*grid.contrasts, *versus))


def reference_of(grid: Grid) -> str:
    """Return the cell that a grid's primary contrast starts from; its first cell without one."""
    primary = next((contrast for contrast in grid.contrasts if contrast.primary), None)
    return primary.pairs[0][0] if primary else next(iter(grid.cells))


def factorial(cells: Mapping[str, CoCaConfig]) -> dict[str, CoCaConfig]:
    """Return the 2x2x2 factorial of the paper's three swaps in the image tower, by cell name."""
    axes = {f"image.{kind}": (ORIGINAL[kind], GRR[kind]) for kind in GRR}
    return {
        factorial_name(values): cell for values, cell in product(cells["baseline"], axes).items()
    }


def factorial_name(values: tuple[str, ...]) -> str:
    """Return baseline, grr, baseline+BLOCK (one block added) or grr-BLOCK (one block left out)."""
    new = [GRR[kind] for kind, value in zip(GRR, values, strict=True) if value == GRR[kind]]
    left_out = [block for block in GRR.values() if block not in new]
    if not left_out:
        return "grr"
    return f"grr-{left_out[0]}" if len(left_out) == 1 else "+".join(["baseline", *new])


def factorial_swaps() -> dict[str, tuple[str, ...]]:
    """Return the blocks of grr's that are in each cell of the factorial, by cell name."""
    levels = [(ORIGINAL[kind], GRR[kind]) for kind in GRR]
    return {
        factorial_name(values): tuple(value for value in values if value in GRR.values())
        for values in itertools.product(*levels)
    }


def main_effects() -> Iterator[Contrast]:
    """Yield the effect of each swap, averaged over the four settings of the other two."""
    levels = [(ORIGINAL[kind], GRR[kind]) for kind in GRR]
    for i, (old, new) in enumerate(levels):
        pairs = tuple(
            (factorial_name(values), factorial_name((*values[:i], new, *values[i + 1 :])))
            for values in itertools.product(*levels)
            if values[i] == old
        )
        field = f"image.{list(GRR)[i]}"
        yield Contrast(name=f"{old} -> {new} (main effect)", pairs=pairs, fields=(field,))


def plugin_cells(name: str, base: CoCaConfig, registry: Registry) -> dict[str, CoCaConfig]:
    """Return one swap in a cell's image tower per block, and per swept option, of every plugin."""
    axes: dict[str, list[str]] = {}
    for spec in registry.third_party():
        axes.setdefault(f"image.{spec.kind}", []).extend(choices(spec, base))
    return {name_swap(name, path): cell for path, cell in each(base, axes).items()}


def choices(spec: BlockSpec, base: CoCaConfig) -> list[str]:
    """Return the spellings of a block to swap in: its defaults, then each swept value.

    A pooler keeps the number of queries that the size has, or the swap would change that as well.
    """
    current = parse(getattr(base.image, spec.kind))[1]
    if spec.kind != "pooling" or "queries" not in current or "queries" not in spec.options:
        return spec.spellings()
    options = [parse(spelling)[1] for spelling in spec.spellings()]
    return [spec.spell({"queries": current["queries"], **chosen}) for chosen in options]


def name_swap(base: str, path_and_value: str) -> str:
    """Return the cell name of a swap in the image tower: ``grr norm=dyt``."""
    return f"{base} {path_and_value.removeprefix('image.')}"


def _smoke(cells: Mapping[str, CoCaConfig], registry: Registry) -> Grid:
    pair = _pair("smoke", "baseline and grr, a few steps: does everything work?", cells)
    return replace(pair, settings={"steps": 20, "batch": 32, "evaluate": 1}, seeds=1)


def _paper(cells: Mapping[str, CoCaConfig], registry: Registry) -> Grid:
    pair = _pair("paper", "baseline against grr, the workflow of arXiv 2507.18009", cells)
    return replace(pair, finetune=("embedded:icons", "embedded:tiles", "embedded:figures"))


def _pair(name: str, summary: str, cells: Mapping[str, CoCaConfig]) -> Grid:
    chosen = {key: cells[key] for key in ("baseline", "grr")}
    return Grid(name=name, summary=summary, cells=chosen, contrasts=(PAPER,))


def _swaps(cells: Mapping[str, CoCaConfig], registry: Registry) -> Grid:
    names = ["baseline", *(f"baseline+{block}" for block in GRR.values()), "grr"]
    by_name = factorial(cells)
    contrasts = (PAPER, *(against("baseline", name, by_name) for name in names[1:-1]))
    return Grid(
        name="swaps",
        summary="baseline, each of the three swaps alone, and all together",
        cells={name: by_name[name] for name in names},
        contrasts=contrasts,
    )


def _each(cells: Mapping[str, CoCaConfig], registry: Registry) -> Grid:
    axes: dict[str, list[str]] = {}
    for kind in ("norm", "ffn", "position", "attention", "pooling"):
        current = getattr(cells["grr"].image, kind)
        options = [
            s for b in registry.names(kind) for s in choices(registry.get(kind, b), cells["grr"])
        ]
        axes[f"image.{kind}"] = [s for s in options if s != current]
    swaps = {name_swap("grr", path): cell for path, cell in each(cells["grr"], axes).items()}
    by_name = {"baseline": cells["baseline"], "grr": cells["grr"], **swaps}
    return Grid(
        name="each",
        summary="grr, and one swap in its image tower for every known block and swept option",
        cells=by_name,
        contrasts=(PAPER, *(against("grr", name, by_name) for name in swaps)),
    )


def _full(cells: Mapping[str, CoCaConfig], registry: Registry) -> Grid:
    by_name = {**factorial(cells), "original": cells["original"]}
    singles = [against("baseline", name, by_name) for name in by_name if name != "baseline"]
    return Grid(
        name="full",
        summary="the 2x2x2 factorial of the image tower, and original",
        cells=by_name,
        contrasts=(PAPER, *main_effects(), *(c for c in singles if c.pairs != PAPER.pairs)),
        factorial=factorial_swaps(),
    )


def _transplant(cells: Mapping[str, CoCaConfig], registry: Registry) -> Grid:
    if "checkpoint" not in cells:
        raise UsageError("grid transplant starts from a checkpoint: add --set initial=DIR")
    origin = cells["checkpoint"]
    # With the checkpoint's own eps, RMSNorm can be the same function as the LayerNorm was.
    options = registry.get("norm", origin.image.norm).complete(parse(origin.image.norm)[1])
    norm = registry.get("norm", GRR["norm"]).spell({"eps": options.get("eps", 1e-6)})
    new = {**GRR, "norm": norm}
    singles = {
        f"checkpoint+{GRR[kind]}": with_field(origin, f"image.{kind}", block)
        for kind, block in new.items()
    }
    swapped = swap(origin, {f"image.{kind}": block for kind, block in new.items()})
    named = {"checkpoint": origin, **singles, "checkpoint+all": swapped}
    together = against("checkpoint", "checkpoint+all", named)
    return Grid(
        name="transplant",
        summary="a checkpoint as it is, and with grr's blocks put into its image tower",
        cells=named,
        contrasts=(
            replace(together, primary=True),
            *(against("checkpoint", name, named) for name in singles),
        ),
    )


GRIDS: dict[str, Design] = {
    "smoke": _smoke,
    "paper": _paper,
    "swaps": _swaps,
    "each": _each,
    "full": _full,
    "transplant": _transplant,
}
