"""A walk through blocks: real Optuna, real small trainings, in this process."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from samples import SMALL
from trainer import Trainer

from ablate.core.grids import make_grid
from ablate.core.ledger import Ledger
from ablate.core.plan import Plan
from ablate.core.search_results import BASE_CELL, Outcome, SearchOutcomes, name_of, ranking
from ablate.planning.planner import make_plan
from ablate.report.block_search import write_block_search
from ablate.report.search_section import search_section
from ablate.search.blocks import (
    BlockSearch,
    choices_of,
    choose,
    found_grid,
    importances,
    reached,
    search_blocks,
)
from ablate.search.engine import NothingFoundError
from ablate.search.request import FIRST_SEED, SearchSize, base_grid, describe_block_search
from assemblies import normalise, preset, with_field
from blocks import KINDS, Registry, UsageError, load_registry

DYT = Path(__file__).parents[3] / "plugins" / "dyt" / "dyt.py"
BUDGET = SearchSize(trials=6, generation=3)
SETTINGS = {**SMALL, "steps": 4, "batch": 16, "evaluate": 2, "evaluation_batch": 16}
REGISTRY = load_registry([str(DYT)])


@functools.cache
def base_plan(data: str, registry: Registry = REGISTRY, **settings: object) -> Plan:
    given = {**SETTINGS, "data": data, **settings}
    plan = make_plan(base_grid, "nano", 1, given, registry, [])
    return replace(plan, search=describe_block_search(BUDGET, 3))


def block_search(
    plan: Plan, directory: Path, registry: Registry = REGISTRY, **how: object
) -> tuple[BlockSearch | None, Trainer]:
    directory.mkdir(exist_ok=True)
    train = Trainer(Ledger(directory), registry, **how)  # type: ignore[arg-type]
    told: list[SearchOutcomes] = []
    found = search_blocks(plan, BUDGET, train.ledger, registry, train, told.append)
    assert found is None or told[-1] == {"blocks": found.outcomes}
    return found, train


def test_a_walk_ranks_cells_and_proposes_a_study_of_the_best(shapes: str, tmp_path: Path) -> None:
    plan = base_plan(shapes)
    found, train = block_search(plan, tmp_path)
    assert found is not None
    assert len(found.outcomes) == 6
    first, *others = found.outcomes
    assert first.cell == BASE_CELL
    assert {trial.stream for trial in train.trained} == {FIRST_SEED}
    ranked = ranking(found.outcomes)
    losses = [outcome.loss or math.nan for outcome in ranked]
    assert losses == sorted(losses)
    assert len({outcome.cell for outcome in ranked}) == len(ranked)
    assert {*KINDS} <= set(found.importances)
    assert sum(found.importances.values()) == pytest.approx(1)
    for outcome in others:
        cell = reached(outcome.values, plan.cells[BASE_CELL], REGISTRY)
        assert outcome.cell == name_of(cell, plan.cells[BASE_CELL])
        assert (cell.text, cell.multimodal) == (
            plan.cells[BASE_CELL].text,
            plan.cells[BASE_CELL].multimodal,
        )
    check_confirmation(found, plan, shapes)


def check_confirmation(found: BlockSearch, plan: Plan, data: str) -> None:
    design = functools.partial(found_grid, found.outcomes, 3)
    study = make_plan(design, "nano", 4, {**SETTINGS, "data": data}, REGISTRY, [])
    ranked = [outcome for outcome in ranking(found.outcomes) if outcome.cell != BASE_CELL][:3]
    best = [f"walk {outcome.number}" for outcome in ranked]
    assert list(study.cells) == [BASE_CELL, *best]
    for name, outcome in zip(best, ranked, strict=True):
        assert name_of(study.cells[name], plan.cells[BASE_CELL]) == outcome.cell
    (section,) = search_section(replace(study, search=plan.search))
    assert section.tables[0].rows == [(f"walk {o.number}", o.cell) for o in ranked]
    assert study.primary is not None
    assert study.primary.pairs == ((BASE_CELL, best[0]),)
    assert [contrast.pairs for contrast in study.contrasts] == [((BASE_CELL, b),) for b in best]
    assert {trial.seed for trial in study.trials} == {0, 1, 2, 3}  # none that the walk has seen
    keys = {key for outcome in found.outcomes for key in outcome.keys}
    assert not keys & {trial.key for trial in study.trials}


def test_an_interrupted_walk_goes_on_to_the_same_end(shapes: str, tmp_path: Path) -> None:
    plan = base_plan(shapes)
    whole, train = block_search(plan, tmp_path / "whole")
    stopped, first = block_search(plan, tmp_path / "stopped", limit=4)
    assert stopped is None
    ended, second = block_search(plan, tmp_path / "stopped", backwards=True)
    assert ended == whole
    keys = [trial.key for trial in (*first.trained, *second.trained)]
    assert sorted(keys) == sorted(trial.key for trial in train.trained)


def test_what_cannot_be_built_is_told_before_training(shapes: str, tmp_path: Path) -> None:
    plan = base_plan(shapes, **{"image.heads": 1})  # too few for gqa's two pairs of keys
    found, train = block_search(plan, tmp_path)
    assert found is not None
    pruned = [outcome for outcome in found.outcomes if outcome.state == "pruned"]
    assert pruned
    for outcome in pruned:
        assert outcome.loss is None
        assert outcome.keys == ()
        assert outcome.values["attention"] == "gqa"
        assert "kv_heads must divide the 1 heads" in outcome.reason
    assert len(found.outcomes) == 6  # they count
    assert len(train.trained) <= 6 - len(pruned)


def test_every_block_can_be_reached_and_options_belong_to_their_block() -> None:
    base = normalise(preset("grr"), REGISTRY)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen: set[tuple[str, str]] = set()
    for _ in range(60):
        trial = study.ask()
        cell = normalise(choose(trial, base, REGISTRY), REGISTRY)
        for kind in KINDS:
            spelling = getattr(cell.image, kind)
            seen.add((kind, REGISTRY.get(kind, spelling).name))
            options = [name for name in trial.params if name.startswith(f"{kind}.")]
            assert all(name.startswith(f"{kind}.{trial.params[kind]}.") for name in options)
            swept = REGISTRY.get(kind, spelling).sweep
            assert {name.rpartition(".")[2] for name in options} == set(swept)
        assert reached(trial.params, base, REGISTRY) == cell
        assert choices_of(cell, REGISTRY) == trial.params
        if "queries" in REGISTRY.get("pooling", cell.image.pooling).options:
            assert "queries=16" in cell.image.pooling
    assert seen == {(spec.kind, spec.name) for spec in REGISTRY}
    assert ("norm", "dyt") in seen


def test_a_base_that_a_walk_cannot_reach_is_not_its_first_trial() -> None:
    base = normalise(preset("grr"), REGISTRY)
    for field, value in (
        ("image.position", "rope(theta=123.0)"),  # swept, but not this value
        ("image.attention", "mha(bias=False)"),  # not swept
    ):
        assert choices_of(with_field(base, field, value), REGISTRY) == {}
    assert reached(choices_of(base, REGISTRY), base, REGISTRY) == base


def test_a_plugin_that_breaks_is_named(shapes: str, tmp_path: Path) -> None:
    plugin = tmp_path / "breaks.py"
    source = DYT.read_text().replace('"dyt"', '"breaks"')
    plugin.write_text(
        source.replace("        return (torch.tanh", "        raise ValueError('boom')\n        (")
    )
    registry = load_registry([str(plugin)])
    plan, train = base_plan(shapes), Trainer(Ledger(tmp_path), registry)
    budget = SearchSize(trials=40, generation=40)  # one of 8 norms: met before long
    with pytest.raises(UsageError, match="cannot take a training step") as caught:
        search_blocks(plan, budget, train.ledger, registry, train, lambda found: None)
    assert train.trained == []
    assert "look at norm/breaks" in str(caught.value)


def outcome(
    number: int, loss: float | None, norm: str = "rmsnorm", cell: str = BASE_CELL
) -> Outcome:
    base = normalise(preset("grr"), REGISTRY)
    values = choices_of(with_field(base, "image.norm", norm), REGISTRY)
    state = "complete" if loss is not None else "fail"
    return Outcome(
        subject="blocks", number=number, values=values, loss=loss, state=state, cell=cell
    )


def test_importance_finds_the_choice_that_matters(shapes: str) -> None:
    norms = ["layernorm", "rmsnorm", "none"]
    outcomes = [outcome(i, 10.0 + norms.index(norms[i % 3]), norms[i % 3]) for i in range(30)]
    found = importances(outcomes, base_plan(shapes), REGISTRY)
    assert next(iter(found)) == "norm"
    assert found["norm"] > 0.9
    assert importances(outcomes[:1], base_plan(shapes), REGISTRY) == {}


def test_a_walk_that_found_nothing_else_proposes_nothing() -> None:
    cells = {"grr": normalise(preset("grr"), REGISTRY)}
    with pytest.raises(NothingFoundError, match="no cell but grr"):
        found_grid([outcome(0, 10.0), outcome(1, None, cell="grr norm=none")], 3, cells, REGISTRY)


def test_a_walks_report_says_that_it_is_exploratory(shapes: str, tmp_path: Path) -> None:
    plan = base_plan(shapes)
    outcomes = [
        outcome(0, 10.0),
        outcome(1, 9.5, "none", "grr norm=none"),
        outcome(2, None, "layernorm", "grr norm=layernorm"),
        replace(outcome(3, None, "derf", ""), state="pruned", reason="heads of width 3"),
    ]
    sizes = {BASE_CELL: 1000, "grr norm=none": 900}
    paths = write_block_search(
        plan, outcomes, {"norm": 0.75, "ffn": 0.25}, sizes, "python -m x", tmp_path
    )
    assert {path.name for path in paths} == {
        "report.html", "report.md",
        "history.png", "history.svg", "importance.png", "importance.svg",
    }  # fmt: skip
    text = (tmp_path / "search" / "report.md").read_text()
    for words in (
        "EXPLORATORY", "9.5000, has walk 1: grr norm=none", "python -m x", "-10.00%",
        "Trial 2 failed", "heads of width 3", "The test split was not looked at",
    ):  # fmt: skip
        assert words in text
    rows = [line for line in text.splitlines() if line.startswith("| walk ")]
    assert [row.split("|")[5].strip() for row in rows] == ["grr norm=none", "grr"]
    write_block_search(plan, outcomes, {}, sizes, "python -m x", tmp_path)
    assert not (tmp_path / "search" / "importance.png").exists()


def test_named_grids_are_made_as_ever() -> None:
    assert BASE_CELL in make_grid("paper", "nano", REGISTRY).cells
    assert list(make_grid(base_grid, "nano", REGISTRY).cells) == [BASE_CELL]  # plugins add no cells
