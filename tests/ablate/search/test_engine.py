"""Recipes tuned for every cell: real Optuna, real small trainings, in this process."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from samples import SMALL, shapes_rows, write_shard
from trainer import Trainer

from ablate.core.ledger import Ledger
from ablate.core.plan import Plan, read_plan, write_plan
from ablate.core.search_results import SearchOutcomes, best_so_far, read_outcomes, write_outcomes
from ablate.core.study_identity import refuse_other_study
from ablate.core.trial import MAX_SEEDS
from ablate.planning.planner import StudyOptions, make_plan
from ablate.report.search_section import search_section
from ablate.report.study import Study
from ablate.search.engine import SEARCH_DATABASE, NothingFoundError
from ablate.search.recipes import make_subjects, tune
from ablate.search.request import FIRST_SEED, SearchSize, check_space, describe_search
from ablate.search.space import default_space, parse_space
from blocks import UsageError, default_registry

REGISTRY = default_registry()
SETTINGS = {**SMALL, "steps": 4, "batch": 16, "evaluate": 2, "evaluation_batch": 16, "lr": 0.002}


@functools.cache
def small_plan(
    data: str, finetune: bool = False, noise: bool = False, cells: tuple[str, ...] = ()
) -> Plan:
    sources = [data] if finetune else []
    settings, declared = {**SETTINGS, "data": data}, StudyOptions(noise=noise, cells=cells)
    return make_plan("paper", "nano", 2, settings, REGISTRY, sources, declared)


def searched(
    plan: Plan, directory: Path, budget: SearchSize, space: str = "", **how: object
) -> tuple[Plan | None, SearchOutcomes, Trainer]:
    """Tune a plan in a directory and return it, all outcomes, and the trainer."""
    directory.mkdir(exist_ok=True)
    ledger = Ledger(directory)
    train = Trainer(ledger, REGISTRY, **how)  # type: ignore[arg-type]
    recipe = plan.stages[0].recipe
    chosen = parse_space(space, recipe) if space else default_space(recipe)
    declared = replace(plan, search=describe_search(chosen, budget, recipe))

    def tell(found: SearchOutcomes) -> None:
        write_outcomes(found, directory)

    found = tune(declared, chosen, budget, {}, ledger, REGISTRY, train, tell)
    return found, read_outcomes(directory), train


def sequence(found: SearchOutcomes) -> dict[str, list[tuple[object, ...]]]:
    return {k: [(o.number, dict(o.values), o.loss, o.state) for o in v] for k, v in found.items()}


def test_every_cell_gets_the_same_budget_draws_and_tuning_seeds(
    shapes: str, tmp_path: Path
) -> None:
    plan = small_plan(shapes, noise=True)
    tuned, found, train = searched(plan, tmp_path, SearchSize(trials=4, generation=2, seeds=2))
    assert tuned is not None
    assert list(found) == ["baseline", "grr"]  # the A/A cell is not tuned again
    assert {len(own) for own in found.values()} == {4}
    for one, other in zip(found["baseline"], found["grr"], strict=True):
        assert one.values == other.values  # all drawn at random, from the same seed
    assert found["grr"][0].values == {
        "lr": 0.002, "weight_decay": 0.1, "warmup": 0.2, "beta2": 0.98,
    }  # fmt: skip
    assert {trial.stream for trial in train.trained} == {FIRST_SEED, FIRST_SEED + 1}
    assert len(train.trained) == 2 * 4 * 2
    assert {trial.steps for trial in train.trained} == {4}
    every_seed = {trial.stream for trial in plan.trials}
    assert every_seed == {0, 1, MAX_SEEDS, MAX_SEEDS + 1}
    assert min(FIRST_SEED, *every_seed) != FIRST_SEED > 2 * MAX_SEEDS - 1


def test_each_cell_has_the_recipe_of_its_lowest_validation_loss(
    shapes: str, tmp_path: Path
) -> None:
    plan = small_plan(shapes, finetune=True, noise=True)
    space = "lr=1e-6|1e-5|0.01"  # without the recipe's own
    tuned, found, _ = searched(plan, tmp_path, SearchSize(trials=4), space)
    assert tuned is not None
    for trial in tuned.trials:
        cell = plan.original(trial.name)
        lowest = min(found[cell], key=lambda outcome: outcome.loss or math.inf)
        assert {k: getattr(trial.recipe, k) for k in lowest.values} == dict(lowest.values)
        assert tuned.tuned[cell]["loss"] == lowest.loss
        assert tuned.tuned[cell]["first"] is None
        first, second = trial.stages
        assert second.recipe.lr == first.recipe.lr / 4  # as with a recipe that was not tuned
        assert second.recipe.data == shapes
    before = {(t.name, t.seed): t.key for t in plan.trials}
    assert all(before[t.name, t.seed] != t.key for t in tuned.trials)
    assert [t.cell for t in tuned.trials] == [t.cell for t in plan.trials]


def test_the_value_is_the_mean_best_validation_loss_over_the_tuning_seeds(
    shapes: str, tmp_path: Path
) -> None:
    _, found, train = searched(small_plan(shapes), tmp_path, SearchSize(trials=1, seeds=2))
    for cell, (outcome,) in found.items():
        own = [trial for trial in train.trained if trial.name == cell]
        curves = [train.ledger.curve(trial) for trial in own]
        lowest = [min(line["val/coca"] for line in c if "val/coca" in line) for c in curves]
        assert outcome.loss == pytest.approx(sum(lowest) / 2, rel=1e-12)
        assert list(outcome.keys) == [trial.key for trial in own]


def test_what_is_asked_depends_neither_on_order_nor_on_place(shapes: str, tmp_path: Path) -> None:
    plan = small_plan(shapes, cells=("grr",))
    budget = SearchSize(trials=12, generation=3)  # the last three are the estimator's
    one, found, _ = searched(plan, tmp_path / "a", budget)
    other, same, train = searched(plan, tmp_path / "b", budget, backwards=True)
    assert sequence(found) == sequence(same)
    assert one == other
    assert len({json.dumps(dict(o.values), sort_keys=True) for o in found["grr"]}) == 12
    assert len({trial.key for trial in train.trained}) == 12


def test_an_interrupted_search_goes_on_to_the_same_end(shapes: str, tmp_path: Path) -> None:
    plan, budget = small_plan(shapes), SearchSize(trials=5, generation=3)
    whole, found, train = searched(plan, tmp_path / "whole", budget)
    trained = []
    for limit in (1, 5, 1):  # in a generation, between two, in the next one
        stopped, _, part = searched(plan, tmp_path / "stopped", budget, limit=limit)
        assert stopped is None
        assert len(part.trained) == limit
        trained += part.trained
    ended, same, part = searched(plan, tmp_path / "stopped", budget)
    assert ended == whole
    assert sequence(same) == sequence(found)
    keys = [trial.key for trial in (*trained, *part.trained)]
    assert sorted(keys) == sorted(trial.key for trial in train.trained)  # each once


def test_done_searches_are_read_and_longer_ones_go_on(shapes: str, tmp_path: Path) -> None:
    plan = small_plan(shapes)
    searched(plan, tmp_path / "a", SearchSize(trials=3, generation=2))
    again, _, train = searched(plan, tmp_path / "a", SearchSize(trials=3, generation=2))
    assert again is not None
    assert train.trained == []
    _, longer, more = searched(plan, tmp_path / "a", SearchSize(trials=6, generation=2))
    assert len(more.trained) == 2 * 3
    _, fresh, _ = searched(plan, tmp_path / "b", SearchSize(trials=6, generation=2))
    assert sequence(longer) == sequence(fresh)
    _, shorter, _ = searched(plan, tmp_path / "a", SearchSize(trials=3, generation=2))
    assert {len(own) for own in shorter.values()} == {3}


def test_the_database_is_optunas_and_may_be_lost(shapes: str, tmp_path: Path) -> None:
    plan, budget = small_plan(shapes), SearchSize(trials=3)
    before, _, _ = searched(plan, tmp_path, budget)
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / SEARCH_DATABASE}")
    names = sorted(optuna.get_all_study_names(storage))
    assert [name.partition(" ")[0] for name in names] == ["baseline", "grr"]
    study = optuna.load_study(study_name=names[0], storage=storage)
    assert before is not None
    assert study.best_value == before.tuned["baseline"]["loss"]
    assert study.best_trial.user_attrs["seeds"] == [FIRST_SEED]
    storage.remove_session()
    storage.engine.dispose()
    (tmp_path / SEARCH_DATABASE).unlink()
    after, _, train = searched(plan, tmp_path, budget)
    assert after == before
    assert train.trained == []  # the ledger has them
    (tmp_path / SEARCH_DATABASE).write_bytes(b"no database" * 999)
    with pytest.raises(UsageError, match="move it away"):
        searched(plan, tmp_path, budget)


def test_another_space_or_cell_is_another_search(shapes: str) -> None:
    plan, budget = small_plan(shapes), SearchSize()
    recipe = plan.stages[0].recipe

    def keys(plan: Plan, space: str, budget: SearchSize) -> list[str]:
        return [s.key for s in make_subjects(plan, parse_space(space, recipe), budget, REGISTRY)]

    own = keys(plan, "lr=1e-3..1e-2", budget)
    assert len({*own}) == 2
    assert own == keys(plan, "lr=1e-3..1e-2", replace(budget, trials=99))
    for other in (
        keys(plan, "lr=1e-3..2e-2", budget),
        keys(plan, "lr=1e-3..1e-2:log", budget),
        keys(plan, "lr=1e-3..1e-2", replace(budget, seeds=2)),
        keys(plan, "lr=1e-3..1e-2", replace(budget, sampler=1)),
        keys(plan, "lr=1e-3..1e-2", replace(budget, generation=2)),
    ):
        assert not set(own) & set(other)


def test_the_test_split_is_not_looked_at(tmp_path: Path) -> None:
    rows = shapes_rows()
    other = [
        (name, _with_caption(content) if name.endswith(".json") and int(name[:6]) % 10 == 9
         else content)
        for name, content in rows
    ]  # fmt: skip
    plans = [
        small_plan(f"webdataset:{write_shard(tmp_path / f'{name}.tar', members)}")
        for name, members in (("a", rows), ("b", other))
    ]
    prints = [plan.stages[0].data_fingerprint for plan in plans]
    assert prints[0] != prints[1]
    found = []
    for name, plan in zip("ab", plans, strict=True):
        _, outcomes, train = searched(plan, tmp_path / name, SearchSize(trials=3))
        found.append(sequence(outcomes))
        for trial in train.trained:
            folder = train.ledger.folder(trial)
            files = {path.name for path in folder.iterdir()}
            assert files == {"curve.jsonl", "result.json"}
            assert "test" not in (folder / "curve.jsonl").read_text()
            metrics = json.loads((folder / "result.json").read_text())["metrics"]
            assert set(metrics) == {"val/coca", "best_step", "last_step", "train_seconds"}
    assert found[0] == found[1]


def _with_caption(content: bytes) -> bytes:
    return json.dumps({**json.loads(content), "caption": "something else", "captions": []}).encode()


def test_trials_that_fail_are_counted_and_never_chosen(shapes: str, tmp_path: Path) -> None:
    plan, space = small_plan(shapes), "lr=0.002|1e30"
    tuned, found, _ = searched(plan, tmp_path, SearchSize(trials=6), space)
    assert tuned is not None
    for cell, outcomes in found.items():
        failed = [outcome for outcome in outcomes if outcome.state == "fail"]
        assert failed
        assert all(outcome.values["lr"] == 1e30 for outcome in failed)
        assert all("DivergedError" in outcome.reason for outcome in failed)
        assert len(outcomes) == 6
        assert tuned.tuned[cell]["failed"] == len(failed)
        assert tuned.tuned[cell]["values"] == {"lr": 0.002}
    _, _, again = searched(plan, tmp_path, SearchSize(trials=6), space)
    assert again.trained == []
    with pytest.raises(NothingFoundError, match="all 2 search trials of cell 'baseline' failed"):
        searched(plan, tmp_path, SearchSize(trials=2), "lr=1e30|2e30")


def test_best_so_far_begins_with_the_first_result(shapes: str, tmp_path: Path) -> None:
    _, found, _ = searched(small_plan(shapes), tmp_path, SearchSize(trials=4), "lr=1e-4..1e-2:log")
    outcomes = [replace(found["grr"][0], loss=None), *found["grr"][1:]]
    spent, lowest = zip(*best_so_far(outcomes), strict=True)
    assert spent == (2, 3, 4)
    assert lowest == tuple(
        min(outcome.loss for outcome in outcomes[1:i] if outcome.loss is not None)
        for i in (2, 3, 4)
    )


def test_a_plan_and_its_report_say_how_each_cell_was_tuned(shapes: str, tmp_path: Path) -> None:
    tuned, _, _ = searched(small_plan(shapes), tmp_path, SearchSize(trials=2), "lr=1e-4..1e-2:log")
    assert tuned is not None
    write_plan(tuned, tmp_path, {})
    assert read_plan(tmp_path) == tuned
    (section,) = search_section(read_plan(tmp_path))
    (table,) = section.tables
    assert [row[0] for row in table.rows] == ["baseline", "grr"]
    assert table.header == ("cell", "lr", "validation loss", "untuned", "trials", "failed")
    assert table.rows[0][1] == f"{tuned.tuned['baseline']['values']['lr']:.4g}"
    assert "lr=0.0001..0.01:log" in " ".join(section.paragraphs)
    assert search_section(small_plan(shapes)) == []


def test_a_study_in_python_shows_its_searches(shapes: str, tmp_path: Path) -> None:
    tuned, found, _ = searched(
        small_plan(shapes), tmp_path, SearchSize(trials=2), "lr=1e-4..1e-2:log"
    )
    assert tuned is not None
    write_plan(tuned, tmp_path, {})
    study = Study.open(tmp_path)
    assert list(study.searches["subject"]) == ["baseline", "baseline", "grr", "grr"]
    assert list(study.searches["loss"]) == [o.loss for own in found.values() for o in own]
    assert next(iter(study.searches["lr"])) == 0.002
    figure = study.plot.search()
    assert figure is not None
    (panel,) = figure.axes
    lowest = [line for line in panel.lines if line.get_drawstyle() == "steps-post"]
    assert [line.get_label() for line in lowest] == ["baseline", "grr"]
    assert lowest[0].get_ydata()[-1] == tuned.tuned["baseline"]["loss"]
    (tmp_path / "search.json").unlink()
    assert study.searches.empty
    assert study.plot.search() is None


def test_a_study_is_not_continued_with_another_search(shapes: str, tmp_path: Path) -> None:
    plan, ledger, budget = small_plan(shapes), Ledger(tmp_path), SearchSize(trials=2)
    recipe = plan.stages[0].recipe

    def declared(space: str, budget: SearchSize = budget) -> Plan:
        return replace(plan, search=describe_search(parse_space(space, recipe), budget, recipe))

    tuned, _, _ = searched(plan, tmp_path, budget, "lr=1e-4..1e-2")
    assert tuned is not None
    write_plan(tuned, tmp_path, {})
    refuse_other_study(declared("lr=1e-4..1e-2"), ledger)  # the same one goes on
    for other, message in (
        (plan, "search='recipes', now 'no'"),
        (declared("lr=1e-4..2e-2"), "search space='lr=0.0001..0.01', now 'lr=0.0001..0.02'"),
        (declared("lr=1e-4..1e-2", SearchSize(trials=3)), "search trials=2, now 3"),
        (declared("lr=1e-4..1e-2", SearchSize(trials=2, seeds=2)), "search seeds"),
    ):
        with pytest.raises(UsageError) as caught:
            refuse_other_study(other, ledger)
        assert message in str(caught.value)


@pytest.mark.parametrize(("space", "message"), [
    ("batch=16|5000", "fewer than a batch of 5000"),
])  # fmt: skip
def test_a_space_that_no_cell_can_be_trained_in_is_refused(
    space: str, message: str, shapes: str
) -> None:
    plan = small_plan(shapes)
    with pytest.raises(UsageError, match=message):
        check_space(parse_space(space, plan.stages[0].recipe), plan)


@pytest.mark.parametrize("name", ["trials", "seeds", "generation"])
def test_budgets_that_are_none_are_refused(name: str) -> None:
    make: Callable[..., SearchSize] = SearchSize
    for value in (0, -1, MAX_SEEDS + 1):
        with pytest.raises(UsageError, match=f"--search-{name} must be from 1"):
            make(**{name: value})
