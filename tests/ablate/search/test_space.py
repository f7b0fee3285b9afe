"""Spaces of hyper-parameters, as they are written on the command line."""

from __future__ import annotations

import optuna
import pytest

from ablate.core.recipe import RECIPES, Recipe
from ablate.search.space import (
    TUNABLE,
    Range,
    default_space,
    parse_space,
    searched_fields,
    spell,
    start,
    tuned,
)
from blocks import UsageError

RECIPE = Recipe()


def test_a_space_is_read_as_it_is_written() -> None:
    text = "lr=0.0001..0.01:log,weight_decay=0..0.3,batch=32|64|128"
    space = parse_space(text, RECIPE)
    assert space == (
        Range(name="lr", low=1e-4, high=1e-2, log=True),
        Range(name="weight_decay", low=0.0, high=0.3),
        Range(name="batch", choices=(32, 64, 128)),
    )
    assert spell(space) == text
    assert parse_space(" lr = 1e-4 .. 1e-2 : log ", RECIPE) == space[:1]
    assert parse_space("flip=0..0.5:linear", RECIPE)[0].log is False


@pytest.mark.parametrize("size", RECIPES)
def test_the_default_space_holds_the_recipe_and_only_what_it_accepts(size: str) -> None:
    recipe = RECIPES[size]
    space = default_space(recipe)
    assert start(space, recipe) == {r.name: getattr(recipe, r.name) for r in space}
    assert {r.name for r in space} == {"lr", "weight_decay", "warmup", "beta2"}
    for chosen in space:
        for end in chosen.ends:
            tuned(recipe, {chosen.name: end})


def test_suggestions_lie_in_the_space() -> None:
    space = parse_space("lr=1e-4..1e-2:log,batch=8..64:log,beta2=0.9|0.99,warmup=0..0.5", RECIPE)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(30):
        trial = study.ask()
        values = {chosen.name: chosen.suggest(trial) for chosen in space}
        assert all(values[chosen.name] in chosen for chosen in space)
        assert type(values["batch"]) is int
        tuned(RECIPE, values)


def test_another_batch_sees_equally_many_pairs() -> None:
    recipe = Recipe(steps=240, batch=64)
    assert tuned(recipe, {"batch": 32}).steps == 480
    assert tuned(recipe, {"batch": 128, "lr": 0.01}).steps == 120
    assert tuned(recipe, {"lr": 0.01}).steps == 240
    assert searched_fields(parse_space("batch=32|64,lr=1e-4..1e-2", recipe)) == {
        "batch", "lr", "steps",
    }  # fmt: skip


def test_a_recipe_out_of_its_space_is_not_tried_first() -> None:
    assert start(parse_space("lr=0.01..0.02", Recipe(lr=0.004)), Recipe(lr=0.004)) == {}
    assert start(parse_space("lr=0.001..0.02", Recipe(lr=0.004)), Recipe(lr=0.004)) == {"lr": 0.004}


@pytest.mark.parametrize(("text", "message"), [
    ("lrr=1..2", "no hyper-parameter named 'lrr'; did you mean 'lr'"),
    ("wieght_decay=0..1", "did you mean 'weight_decay'"),
    ("lr", "write LOW..HIGH"),
    ("lr=", "write LOW..HIGH"),
    ("", "write LOW..HIGH"),
    ("lr=1e-3", "write LOW..HIGH"),
    ("lr=1e-3..", "'' is no float"),
    ("lr=1e-3..x", "'x' is no float"),
    ("lr=1e-3..1e-2..1", "'1e-2..1' is no float"),
    ("lr=1e-2..1e-4", "must be below"),
    ("lr=1e-3..1e-3", "must be below"),
    ("lr=1e-4..1e-2:lgo", "no scale named 'lgo'; did you mean 'log'"),
    ("lr=0..1e-2:log", "must begin above 0"),
    ("lr=-1..1e-2", "lr must be above 0 and finite, got -1"),
    ("lr=1e-4..inf", "inf is not finite"),
    ("lr=nan..1", "nan is not finite"),
    ("warmup=0..1.5", "warmup must be from 0 to 1, got 1.5"),
    ("beta2=0.9|1", "beta2 must be at least 0 and below 1"),
    ("lr=1e-4..1e-3,lr=1..2", "'lr' is given twice"),
    ("beta2=0.9|0.9", "a value is there twice"),
    ("batch=32|64.5", "'64.5' is no int"),
    ("batch=1..64", "at least 2 pairs to contrast"),
    ("steps=100..200", "steps cannot be searched"),
    ("data=a|b", "data cannot be searched"),
    ("caption_weight=1..2", "caption_weight cannot be searched"),
    ("evaluation_batch=8|16", "evaluation_batch cannot be searched"),
    ("lr=1e-4..1e-2,,flip=0..1", "write LOW..HIGH"),
    ("__class__=1..2", "no hyper-parameter named '__class__'"),
])  # fmt: skip
def test_what_cannot_be_meant_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_space(text, RECIPE)
    assert message in str(caught.value)
    assert str(caught.value).startswith("--search-space")


def test_batches_are_named_where_they_are_accumulated() -> None:
    recipe = Recipe(batch=64, accumulate=4)
    assert parse_space("batch=32|64", recipe)[0].choices == (32, 64)
    with pytest.raises(UsageError, match="name the batches"):
        parse_space("batch=32..64", recipe)
    with pytest.raises(UsageError, match="must be a multiple of accumulate"):
        parse_space("batch=30|64", recipe)


def test_what_a_study_is_about_is_not_tunable() -> None:
    about = {"data", "initial", "tokenizer", "steps", "evaluate", "precision", "evaluation_batch"}
    weights = {"contrastive_weight", "caption_weight"}
    assert not (about | weights) & set(TUNABLE)
