from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from ablate.core.grid import Grid, against, each, merge, product, swap
from ablate.core.grids import GRIDS, factorial, main_effects, make_grid, reference_of
from ablate.core.recipe import Recipe
from ablate.planning.costs import price
from ablate.planning.plan_text import describe
from ablate.planning.planner import make_plan
from assemblies import CoCaConfig, normalise, preset, with_field
from assemblies.config import flatten
from assemblies.presets import GRR
from blocks import Registry, UsageError, default_registry, load_registry

REGISTRY = default_registry()
DYT = str(Path(__file__).parents[3] / "plugins" / "dyt" / "dyt.py")
SMALL = {"image.depth": 1, "text.depth": 1, "multimodal.depth": 1, "image.size": 32}


def changed(a: CoCaConfig, b: CoCaConfig) -> set[str]:
    old, new = flatten(a), flatten(b)
    return {path for path in old if old[path] != new[path]}


def test_full_is_the_factorial_and_original() -> None:
    grid = make_grid("full", "nano", REGISTRY)
    assert set(grid.cells) == {
        "baseline", "baseline+rmsnorm", "baseline+geglu", "baseline+rope",
        "grr-rmsnorm", "grr-geglu", "grr-rope", "grr", "original",
    }  # fmt: skip
    images = {(c.image.norm, c.image.ffn, c.image.position) for n, c in grid.cells.items()
              if n != "original"}  # fmt: skip
    assert len(images) == 8
    for name, cell in grid.cells.items():
        if name != "original":
            assert cell.text == grid.cells["grr"].text
            assert cell.multimodal == grid.cells["grr"].multimodal


@pytest.mark.parametrize("kind", GRR)
def test_adding_and_leaving_out_are_single_swaps(kind: str) -> None:
    cells = make_grid("full", "nano", REGISTRY).cells
    assert changed(cells["baseline"], cells[f"baseline+{GRR[kind]}"]) == {f"image.{kind}"}
    assert changed(cells["grr"], cells[f"grr-{GRR[kind]}"]) == {f"image.{kind}"}


def test_main_effects_pair_each_setting_once() -> None:
    cells = factorial({"baseline": preset("baseline")})
    for effect, kind in zip(main_effects(), GRR, strict=True):
        assert len(effect.pairs) == 4
        assert len({name for pair in effect.pairs for name in pair}) == 8
        for old, new in effect.pairs:
            assert changed(cells[old], cells[new]) == {f"image.{kind}"}


def test_grid_algebra() -> None:
    base = preset("grr")
    ones = each(base, {"image.norm": ["layernorm", "none"], "image.ffn": ["mlp"]})
    assert all(len(changed(base, cell)) == 1 for cell in ones.values())
    assert len(product(base, {"image.norm": ["a", "b"], "*.ffn": ["c", "d", "e"]})) == 6
    with pytest.raises(UsageError, match="two different cells are named 'x'"):
        merge({"x": base}, {"x": with_field(base, "image.depth", 1)})
    with pytest.raises(AssertionError, match="no cell for it"):
        Grid(name="g", summary="", cells={}, contrasts=tuple(main_effects()))


@pytest.mark.parametrize("name", GRIDS)
def test_a_plugins_block_enters_every_grid(name: str) -> None:
    registry = load_registry([DYT])
    origin = preset("original") if name == "transplant" else None
    grid = make_grid(name, "nano", registry, origin=origin)
    base = "grr" if "grr" in grid.cells else reference_of(grid)
    assert grid.cells[f"{base} norm=dyt"].image.norm == "dyt"
    assert any(c.pairs == ((base, f"{base} norm=dyt"),) for c in grid.contrasts)
    assert f"{base} norm=dyt" not in make_grid(name, "nano", REGISTRY, origin=origin).cells


def test_a_plugins_block_enters_a_grid_without_grr(monkeypatch: pytest.MonkeyPatch) -> None:
    def depths(cells: Mapping[str, CoCaConfig], registry: Registry) -> Grid:
        named = {
            "baseline": cells["baseline"],
            "depth 2": with_field(cells["baseline"], "image.depth", 2),
        }
        contrast = replace(against("baseline", "depth 2", named), primary=True)
        return Grid(name="depths", summary="of depth", cells=named, contrasts=(contrast,))

    monkeypatch.setitem(GRIDS, "depths", depths)
    grid = make_grid("depths", "nano", load_registry([DYT]))
    assert grid.cells["baseline norm=dyt"].image.norm == "dyt"
    assert any(c.pairs == (("baseline", "baseline norm=dyt"),) for c in grid.contrasts)


def test_transplant_starts_from_a_checkpoint() -> None:
    origin = preset("original")
    grid = make_grid("transplant", "nano", REGISTRY, origin=origin)
    assert grid.cells["checkpoint"] == origin
    every = grid.cells["checkpoint+all"].image
    assert (every.norm, every.ffn, every.position) == ("rmsnorm(eps=1e-05)", "geglu", "rope")
    assert {cell.text for cell in grid.cells.values()} == {origin.text}
    with pytest.raises(UsageError, match="add --set initial=DIR"):
        make_grid("transplant", "nano", REGISTRY)


def test_each_has_every_block_and_swept_option() -> None:
    cells = make_grid("each", "nano", REGISTRY).cells
    for spec in REGISTRY:
        if spec.name not in ("rmsnorm", "geglu", "rope", "mha", "cascade"):
            queries = "(queries=16)" if "queries" in spec.options else ""
            assert f"grr {spec.kind}={spec.name}{queries}" in cells
    assert cells["grr position=rope(theta=100.0)"].image.position == "rope(theta=100.0)"


def test_the_plan_of_full_keeps_parameters_within_1_percent(capsys: object) -> None:
    plan = make_plan("full", "nano", None, {"data": "embedded:stamps"}, REGISTRY)
    base = plan.costs["baseline"].parameters
    assert len(plan.costs) == 10  # the nine, and baseline again
    for name, own in plan.costs.items():
        assert own.parameters == pytest.approx(base, rel=0.01), name
    text = describe(plan)
    assert all(name in text for name in plan.costs)


def test_trials_go_seed_by_seed() -> None:
    plan = make_plan("paper", "nano", 2, {"data": "embedded:stamps", **SMALL}, REGISTRY)
    assert [(t.name, t.seed) for t in plan.trials] == [
        ("baseline", 0), ("grr", 0), ("baseline", 1), ("grr", 1),
    ]  # fmt: skip
    assert len({t.key for t in plan.trials}) == 4


def test_cells_that_cannot_be_built_are_skipped_with_the_reason() -> None:
    settings = {"data": "embedded:stamps", **SMALL, "image.width": 60, "image.heads": 10}
    plan = make_plan("paper", "nano", 1, settings, REGISTRY)
    assert list(plan.costs) == ["baseline"]
    assert "rope on 2 axes needs a turned head width divisible by 4, got 6" in plan.skipped["grr"]
    assert plan.contrasts == ()
    assert "skipped grr: " in describe(plan)


def test_equal_cells_are_trained_once() -> None:
    cell = normalise(swap(preset("grr"), SMALL), REGISTRY)
    twin = with_field(cell, "image.position", "rope(theta=10000)")
    grid = Grid(name="g", summary="", cells={"one": cell, "two": twin})
    costs, skipped, same = price(grid.cells, Recipe(), 8, REGISTRY)
    assert (list(costs), skipped, same) == (["one"], {}, {"two": "one"})


def test_a_plugin_that_breaks_is_named_before_anything_runs(tmp_path: Path) -> None:
    source = Path(DYT).read_text().replace('"dyt"', '"breaks"')
    for line, message in (
        ("        return x[:, :3, :3]", "cannot take a training step"),
        ("        raise ValueError('boom')", r"breaks\.py:\d+: ValueError: boom"),
    ):
        file = tmp_path / "breaks.py"
        file.write_text(
            source.replace("        return (torch.tanh", f"{line}\n        (torch.tanh")
        )
        with pytest.raises(UsageError, match=message) as caught:
            make_plan("smoke", "nano", 1, {"data": "embedded:stamps"}, load_registry([str(file)]))
        assert "cell 'grr norm=breaks'" in str(caught.value)
        assert "look at norm/breaks" in str(caught.value)
        file.unlink()
        sys.modules.pop(next(n for n in sys.modules if n.startswith("coca_blocks_plugin_breaks")))


@pytest.mark.parametrize(("arguments", "message"), [
    (("ful", "nano", None, {}), "no grid named 'ful'; did you mean 'full'"),
    (("full", "nanu", None, {}), "no size named 'nanu'; did you mean 'nano'"),
    (("full", "nano", 0, {}), "seeds must be from 1 to 1000, got 0"),
    (("full", "nano", 1, {"stesp": 3}), "no field named 'stesp'; did you mean 'steps'"),
    (("full", "nano", 1, {"image.norm": "rmsnorm"}), "image.norm cannot be set"),
    (("paper", "nano", 1, {"text.norm": "rmsnrm"}), "no norm named 'rmsnrm'"),
    (("paper", "nano", 1, {"*.norm": "derf"}), r"\*\.norm cannot be set"),
    (("paper", "nano", 1, {"image.attention": "mha(backend='flex')"}), "needs CUDA, got cpu"),
    (("paper", "nano", 1, {"context": 2}), "context must be at least 3"),
    (("paper", "nano", 1, {"data": "embedded:stamps", "vocabulary": 10}), "at least 259"),
    (("paper", "nano", 1, {"data": "embedded:x"}), "no embedded data set named 'x'"),
    (("paper", "nano", 1, {"data": "embedded:stamps", "batch": 5000}), "fewer than a batch"),
    (("smoke", "nano", 1, {"data": "embedded:stamps", "image.heads": 7}), "no cell of the grid"),
])  # fmt: skip
def test_mistakes_are_found_before_anything_runs(arguments: tuple, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_plan(*arguments, registry=REGISTRY)
