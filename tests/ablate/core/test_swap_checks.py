from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from samples import SMALL, small

from ablate.core.grid import Contrast, swap
from ablate.core.grids import PAPER, factorial, main_effects, make_grid
from ablate.core.ledger import Ledger
from ablate.core.plan import Plan
from ablate.core.swap_checks import NotSwappedError, check_swaps, check_trained_swaps
from ablate.core.trial import Trial
from ablate.planning.planner import make_plan
from ablate.training.stages import run_trial
from assemblies import preset
from assemblies.structure import structure
from blocks import default_registry

REGISTRY = default_registry()
SHORT = {**SMALL, "steps": 4, "batch": 16, "evaluate": 1, "evaluation_batch": 16}


def nano() -> dict[str, object]:
    return {name: preset(name, "nano") for name in ("original", "baseline", "grr")}


def test_every_contrast_of_the_factorial_swaps_what_it_declares() -> None:
    cells = factorial(nano())  # type: ignore[arg-type]
    check_swaps((PAPER, *main_effects()), cells, REGISTRY)


def test_a_swap_that_did_not_happen_is_named() -> None:
    cells = factorial(nano())  # type: ignore[arg-type]
    cells["grr"] = cells["grr-rope"]  # the positions were left as they are
    with pytest.raises(NotSwappedError, match=r"differ in image\.ffn, image\.norm$"):
        check_swaps((PAPER,), cells, REGISTRY)
    cells["grr"] = cells["baseline"]
    with pytest.raises(NotSwappedError, match="differ in nothing"):
        check_swaps((PAPER,), cells, REGISTRY)


def test_a_swap_of_more_than_is_declared_is_named() -> None:
    cells = factorial(nano())  # type: ignore[arg-type]
    norm = replace(PAPER, fields=("image.norm",))
    with pytest.raises(NotSwappedError, match=r"is to change image\.norm, but"):
        check_swaps((norm,), cells, REGISTRY)


def contrast_of(*fields: str) -> Contrast:
    return Contrast(name="a -> b", pairs=(("a", "b"),), fields=fields)


def test_a_change_of_no_block_is_of_what_is_declared_and_of_nothing_else() -> None:
    one = small("grr")
    deeper = swap(one, {"image.depth": 2})
    check_swaps((contrast_of("image.depth"),), {"a": one, "b": deeper}, REGISTRY)
    other = swap(deeper, {"image.norm": "layernorm"})
    with pytest.raises(NotSwappedError, match=r"is to change image\.depth, but the cells 'a' and "
                       r"'b' differ in image\.depth, image\.norm$"):  # fmt: skip
        check_swaps((contrast_of("image.depth"),), {"a": one, "b": other}, REGISTRY)
    with pytest.raises(NotSwappedError, match=r"differ in image\.depth$"):
        check_swaps((contrast_of("image.depth", "text.depth"),), {"a": one, "b": deeper}, REGISTRY)


def test_another_spelling_of_the_same_block_is_no_difference() -> None:
    one = small("grr")
    spelled = swap(one, {"image.depth": 2, "text.norm": "rmsnorm(eps=1e-06)"})
    assert spelled.text.norm != one.text.norm
    check_swaps((contrast_of("image.depth"),), {"a": one, "b": spelled}, REGISTRY)


def test_blocks_that_the_model_does_not_have_are_not_asked_for() -> None:
    one = small("grr", objective="contrastive")
    fields = ("text.norm", "multimodal.norm")
    both = swap(one, {"text.norm": "layernorm", "multimodal.norm": "layernorm"})
    check_swaps((contrast_of(*fields),), {"a": one, "b": both}, REGISTRY)
    neither = swap(one, {"multimodal.norm": "layernorm"})
    with pytest.raises(NotSwappedError, match="but the models of 'a' and 'b' differ in nothing"):
        check_swaps((contrast_of("multimodal.norm"),), {"a": one, "b": neither}, REGISTRY)


@pytest.mark.parametrize("objective", ["both", "contrastive", "captioning"])
@pytest.mark.parametrize("grid", ["paper", "swaps", "each", "full"])
def test_every_grid_swaps_what_it_declares_with_every_objective(grid: str, objective: str) -> None:
    made = make_grid(
        grid, "nano", REGISTRY, lambda cell: swap(cell, {**SMALL, "objective": objective})
    )
    check_swaps(made.contrasts, made.cells, REGISTRY)


def test_models_are_compared_where_configurations_are_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cells = factorial(nano())  # type: ignore[arg-type]
    monkeypatch.setattr(
        "ablate.core.swap_checks.structure",
        lambda cell, registry: structure(cells["grr-rope"], registry),
    )
    with pytest.raises(NotSwappedError, match="models of 'baseline' and 'grr' differ in nothing"):
        check_swaps((PAPER,), cells, REGISTRY)


def run(shapes: str, directory: Path, seeds: int = 1) -> tuple[Plan, Ledger]:
    plan = make_plan("paper", "nano", seeds, {**SHORT, "data": shapes}, REGISTRY, [])
    ledger = Ledger(directory)
    for trial in plan.trials:
        for _ in run_trial(trial, ledger.folder(trial), REGISTRY):
            pass
    return plan, ledger


def test_a_record_tells_the_untrained_model(shapes: str, tmp_path: Path) -> None:
    plan, ledger = run(shapes, tmp_path, seeds=2)
    outputs = {(ledger.result(trial) or {})["outputs"] for trial in plan.trials}
    assert len(outputs) == 4  # two cells, two seeds: all different before a step was taken
    assert check_trained_swaps(plan, ledger) == []


def test_a_record_tells_what_was_built(shapes: str, tmp_path: Path) -> None:
    plan, ledger = run(shapes, tmp_path)
    built = [(ledger.result(trial) or {})["built"] for trial in plan.trials]
    assert built == [structure(trial.cell, REGISTRY) for trial in plan.trials]
    assert [own["image.norm"]["spelling"] for own in built] == ["layernorm", "rmsnorm"]
    assert len(json.dumps(built[0])) < 2000


def rebuilt(ledger: Ledger, trial: Trial, **built: object) -> None:
    """Change what a trial's record says was built; without anything it says nothing of it."""
    path = ledger.folder(trial) / "result.json"
    record = json.loads(path.read_text())
    record["built"] = {**record["built"], **built}
    if not built:
        del record["built"]
    path.write_text(json.dumps(record))


def test_trained_models_that_differ_otherwise_than_declared_raise(
    shapes: str, tmp_path: Path
) -> None:
    plan, ledger = run(shapes, tmp_path)
    other = {"spelling": "layernorm", "modules": "0"}
    rebuilt(ledger, plan.trials[1], **{"text.norm": other})
    words = "models of 'baseline' and 'grr' trained with seed 0 differ in .*, text.norm$"
    with pytest.raises(NotSwappedError, match=words):
        check_trained_swaps(plan, ledger)
    rebuilt(ledger, plan.trials[1])  # a record of an earlier version
    assert check_trained_swaps(plan, ledger) == []


def test_a_swap_that_was_not_trained_raises(shapes: str, tmp_path: Path) -> None:
    plan, ledger = run(shapes, tmp_path)
    one, other = plan.trials
    rebuilt(ledger, other, **structure(one.cell, REGISTRY))
    with pytest.raises(NotSwappedError, match="trained with seed 0 differ in nothing"):
        check_trained_swaps(plan, ledger)


def test_identical_curves_raise(shapes: str, tmp_path: Path) -> None:
    plan, ledger = run(shapes, tmp_path)
    one, other = (ledger.folder(trial) for trial in plan.trials)
    shutil.copy(one / "curve.jsonl", other / "curve.jsonl")
    with pytest.raises(NotSwappedError, match="identical curves with seed 0"):
        check_trained_swaps(plan, ledger)


def test_equal_functions_before_training_are_named(shapes: str, tmp_path: Path) -> None:
    plan, ledger = run(shapes, tmp_path)
    records = [ledger.folder(trial) / "result.json" for trial in plan.trials]
    one, other = (json.loads(path.read_text()) for path in records)
    records[1].write_text(json.dumps({**other, "outputs": one["outputs"]}))
    assert check_trained_swaps(plan, ledger) == [
        "baseline and grr, seed 0, are the same function before training"
    ]
