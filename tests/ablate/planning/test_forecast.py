"""Forecasts from real steps of real processes, from records, and from FLOPs; and their cache."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from samples import SMALL, small

from ablate.core.files import cache_directory
from ablate.core.ledger import Ledger
from ablate.core.plan import Plan
from ablate.core.recipe import Recipe, with_fields
from ablate.core.resources import ProbeConditions
from ablate.core.trial import Trial, make_trial
from ablate.data import open_pairs
from ablate.execution.ray_cluster import worker_environment
from ablate.planning.costs import estimate_memory, machine_speed, saved_bytes
from ablate.planning.forecast import ESTIMATED, MEASURED, RECORDED, Forecast, forecast, known
from ablate.planning.planner import StudyOptions, make_plan
from ablate.training.stages import run_trial
from assemblies import cost, preset
from blocks import default_registry

REGISTRY = default_registry()
CONDITIONS = ProbeConditions(slots=2, environment=worker_environment())
DYT = Path(__file__).parents[3] / "plugins" / "dyt" / "dyt.py"
STEPS: dict[str, Any] = {**SMALL, "steps": 6, "batch": 16, "evaluate": 2, "evaluation_batch": 16}
MIB = 2**20


def planned(shapes: str, *, later: bool = False, noise: bool = False, **changes: Any) -> Plan:
    settings = {**STEPS, "data": shapes, **changes}
    sources, declared = [shapes] if later else [], StudyOptions(noise=noise)
    return make_plan("paper", "nano", 1, settings, REGISTRY, sources, declared)


def look(plan: Plan, ledger: Path, **options: Any) -> tuple[dict[str, Forecast], list[str]]:
    said: list[str] = []
    found = forecast(plan, Ledger(ledger), REGISTRY, CONDITIONS, say=said.append, **options)
    return found, said


@pytest.fixture
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCA_BLOCKS_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("_own_cache")
def test_cells_are_measured_once_and_then_known(shapes: str, tmp_path: Path) -> None:
    plan = planned(shapes, later=True, noise=True)
    assert known(plan, Ledger(tmp_path), REGISTRY, CONDITIONS) == {}
    first, said = look(plan, tmp_path)
    assert said == ["measuring cell 1 of 2: baseline", "measuring cell 2 of 2: grr"]
    assert list(first) == ["baseline", "grr", "baseline again"]
    assert first["baseline again"] == first["baseline"]
    for found in first.values():
        assert found.basis == MEASURED
        assert list(found.stages) == ["pretrain", "finetune:shapes"]
        assert all(0 < seconds < math.inf for seconds in found.stages.values())
        assert 100 * MIB < found.memory < 4096 * MIB
    again, said = look(plan, tmp_path)
    assert (again, said) == (first, [])
    assert known(plan, Ledger(tmp_path), REGISTRY, CONDITIONS) == first
    more, said = look(planned(shapes, later=True, steps=600, lr=0.1), tmp_path)
    assert said == []  # neither changes what a step takes
    step = (more["grr"].stages["pretrain"] - first["grr"].stages["pretrain"]) / (600 - 6)
    later = (more["grr"].stages["finetune:shapes"] - first["grr"].stages["finetune:shapes"]) / 297
    assert step > 0
    assert later > 0
    other, said = look(planned(shapes, later=True, batch=32), tmp_path, measuring=False)
    assert {f.basis for f in other.values()} == {ESTIMATED}
    for path in (cache_directory() / "forecasts").iterdir():
        path.write_text("{damaged")
    assert look(plan, tmp_path)[1] != []


def test_finished_trials_tell_what_training_takes(shapes: str, tmp_path: Path) -> None:
    plan = planned(shapes)
    before, _ = look(plan, tmp_path)
    ledger, trial = Ledger(tmp_path), plan.of_cell("grr")[0]
    list(run_trial(trial, ledger.folder(trial), REGISTRY))
    taken = (ledger.metrics(trial) or {})["train_seconds"]
    after, said = look(plan, tmp_path)
    assert said == []
    assert after["baseline"] == before["baseline"]
    assert after["grr"].basis == RECORDED
    assert taken < after["grr"].seconds  # and what comes before and after training
    assert after["grr"].memory == before["grr"].memory
    unmeasured, _ = look(dataclasses.replace(plan, trials=plan.trials[1:]), tmp_path)
    assert unmeasured["grr"] == after["grr"]


def wrong(shapes: str, tmp_path: Path, how: str) -> Mapping[str, Forecast]:
    """Return the forecasts of a grid with a plugin that does wrong on a device with memory."""
    line = "    def forward(self, x: Tensor) -> Tensor:\n"
    source = DYT.read_text()
    assert line in source
    harm = f"{line}        if x.device.type != 'meta':\n            {how}\n"
    plugin = tmp_path / "harmful.py"
    plugin.write_text(source.replace(line, harm).replace('"dyt"', '"harmful"'))
    registry = default_registry((str(plugin),))
    plan = make_plan("paper", "nano", 1, {**STEPS, "data": shapes}, registry, [])
    conditions = dataclasses.replace(CONDITIONS, plugins=(str(plugin),))
    return forecast(plan, Ledger(tmp_path), registry, conditions)


@pytest.mark.parametrize(("how", "reason"), [
    ("print('no answer'); raise RuntimeError('boom')", "RuntimeError: boom"),
    ("import os; os.kill(os.getpid(), 9)", r"its process died (signal 9)"),
])  # fmt: skip
def test_a_cell_that_cannot_be_measured_is_estimated_by_the_others(
    how: str, reason: str, shapes: str, tmp_path: Path
) -> None:
    found = wrong(shapes, tmp_path, how)
    assert found["baseline"].basis == found["grr"].basis == MEASURED
    harmful = found["grr norm=harmful"]
    assert (harmful.basis, harmful.reason) == (ESTIMATED, reason)
    assert 0 < harmful.seconds < math.inf


def test_a_probe_that_cannot_start_says_why(shapes: str, tmp_path: Path) -> None:
    broken = dataclasses.replace(CONDITIONS, environment={"PYTHONHOME": str(tmp_path)}, slots=3)
    found = forecast(planned(shapes), Ledger(tmp_path), REGISTRY, broken)
    for name in ("baseline", "grr"):
        assert found[name].basis == ESTIMATED
        assert found[name].reason.startswith("the process that measures died: ")
        assert not found[name].reason.endswith("no word")


def test_what_is_too_large_for_the_machine_is_not_tried(shapes: str, tmp_path: Path) -> None:
    cell, recipe = preset("grr", "giant"), with_fields(Recipe(), {"batch": 1024})
    price = cost(cell, batch=1024, tokens=32, registry=REGISTRY)
    huge = make_trial("giant", cell, recipe, 0, "no data needed", REGISTRY)
    plan = dataclasses.replace(planned(shapes), trials=[huge], costs={"giant": price})
    found, said = look(plan, tmp_path)
    assert said == []
    assert found["giant"].basis == ESTIMATED
    assert found["giant"].reason.startswith("2 trials need about ")
    assert found["giant"].memory > 4 * price.parameters * 5
    expected = recipe.steps * price.step_flops / machine_speed(1)
    assert found["giant"].seconds == pytest.approx(expected)


def trial_of(shapes: str, **changes: Any) -> Trial:
    recipe = with_fields(Recipe(), {"data": shapes, "batch": 16, **changes})
    fingerprint = open_pairs(shapes, 32).fingerprint
    return make_trial("grr", small(), recipe, 0, fingerprint, REGISTRY)


def test_kept_activations_grow_with_the_part_of_the_batch_alone(shapes: str) -> None:
    kept = {b: saved_bytes(trial_of(shapes, batch=b), REGISTRY) for b in (16, 32, 48, 64)}
    assert kept[32] > kept[16] > 0
    # the rest is quadratic: the table of similarities
    seconds = [kept[b + 16] - kept[b] for b in (16, 32, 48)]
    assert seconds[1] - seconds[0] == seconds[2] - seconds[1]
    assert 0 < seconds[1] - seconds[0] < seconds[0] / 10
    assert saved_bytes(trial_of(shapes, batch=32, accumulate=2), REGISTRY) == kept[16]
    alone = saved_bytes(trial_of(shapes, contrastive_weight=0.0), REGISTRY)
    assert alone < kept[16]


def test_estimated_memory_is_near_what_is_measured(shapes: str, tmp_path: Path) -> None:
    plan = planned(shapes)
    measured, _ = look(plan, tmp_path)
    for name, found in measured.items():
        trial = plan.of_cell(name)[0]
        guessed, gpu = estimate_memory(trial, plan.costs[name], REGISTRY)
        assert gpu == 0
        assert abs(math.log2(guessed / found.memory)) < 1
