from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from samples import SMALL

from ablate.grids import PAPER, factorial, main_effects
from ablate.ledger import Ledger
from ablate.plan import Plan
from ablate.planner import make_plan
from ablate.proof import NotSwappedError, prove_results, prove_swaps
from ablate.stages import run_trial
from assemblies import preset
from blocks import default_registry

REGISTRY = default_registry()
SHORT = {**SMALL, "steps": 4, "batch": 16, "evaluate": 1, "evaluation_batch": 16}


def nano() -> dict[str, object]:
    return {name: preset(name, "nano") for name in ("original", "baseline", "grr")}


def test_every_contrast_of_the_factorial_swaps_what_it_declares() -> None:
    cells = factorial(nano())  # type: ignore[arg-type]
    prove_swaps((PAPER, *main_effects()), cells, REGISTRY)


def test_a_swap_that_did_not_happen_is_named() -> None:
    cells = factorial(nano())  # type: ignore[arg-type]
    cells["grr"] = cells["grr-rope"]  # the positions were left as they are
    with pytest.raises(NotSwappedError, match=r"differ in image\.ffn, image\.norm$"):
        prove_swaps((PAPER,), cells, REGISTRY)
    cells["grr"] = cells["baseline"]
    with pytest.raises(NotSwappedError, match="differ in nothing"):
        prove_swaps((PAPER,), cells, REGISTRY)


def test_a_swap_of_more_than_is_declared_is_named() -> None:
    cells = factorial(nano())  # type: ignore[arg-type]
    norm = replace(PAPER, fields=("image.norm",))
    with pytest.raises(NotSwappedError, match=r"is to change image\.norm, but"):
        prove_swaps((norm,), cells, REGISTRY)


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
    assert prove_results(plan, ledger) == []


def test_identical_curves_raise(shapes: str, tmp_path: Path) -> None:
    plan, ledger = run(shapes, tmp_path)
    one, other = (ledger.folder(trial) for trial in plan.trials)
    shutil.copy(one / "curve.jsonl", other / "curve.jsonl")
    with pytest.raises(NotSwappedError, match="identical curves with seed 0"):
        prove_results(plan, ledger)


def test_equal_functions_before_training_are_named(shapes: str, tmp_path: Path) -> None:
    plan, ledger = run(shapes, tmp_path)
    records = [ledger.folder(trial) / "result.json" for trial in plan.trials]
    one, other = (json.loads(path.read_text()) for path in records)
    records[1].write_text(json.dumps({**other, "outputs": one["outputs"]}))
    assert prove_results(plan, ledger) == [
        "baseline and grr, seed 0, are the same function before training"
    ]
