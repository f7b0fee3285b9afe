"""Studies with known results: planned for real, their ledgers written down instead of trained."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from samples import SMALL

from ablate.core.files import write_json, write_text
from ablate.core.ledger import Ledger
from ablate.core.plan import STUDY_FILE, Plan, read_plan, write_plan
from ablate.core.trial import Stage, Trial
from ablate.planning.planner import StudyOptions, make_plan
from ablate.training.example_losses import write_examples
from assemblies import CoCaConfig
from assemblies.structure import Structure, structure
from blocks import default_registry

GAINS = {"rope": 0.5, "geglu": 4.0, "rmsnorm": -0.2}  # percent, of each swap alone
HOSTILE = "<b>x|y</b> $\\alpha$ `__{`&%#~^ \u4e2d [z](http://q)"
LAUNCH = {
    "date": "2026-01-02T03:04:05+00:00", "command": "python -m ablate.run --grid full",
    "git": "0123456789abcdef", "python": "3.11", "packages": {"torch": "2.13.0"},
    "system": "Linux", "device": "cpu",
}  # fmt: skip


@functools.cache
def _made(
    grid: str,
    seeds: int,
    settings: tuple[Any, ...],
    sources: tuple[str, ...],
    declared: StudyOptions,
) -> Plan:
    """Return a plan, made once for all tests that ask for the same: it takes seconds."""
    return make_plan(grid, "nano", seeds, dict(settings), default_registry(), sources, declared)


def planned(
    directory: Path,
    shapes: str,
    *,
    grid: str = "full",
    seeds: int = 6,
    sources: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    declared: StudyOptions | None = None,
    changed: Mapping[str, object] | None = None,
) -> tuple[Plan, Ledger]:
    """Plan a study of small cells and write the plan, cells under other names if asked."""
    settings = {**SMALL, "data": shapes, "steps": 20, "batch": 16, "evaluate": 4,
                "evaluation_batch": 16, **(changed or {})}  # fmt: skip
    plan = _made(grid, seeds, tuple(settings.items()), tuple(sources), declared or StudyOptions())
    write_plan(plan, directory, LAUNCH)
    text = (directory / STUDY_FILE).read_text(encoding="utf-8")
    for old, new in (rename or {}).items():
        text = text.replace(json.dumps(old), json.dumps(new))
    known = {name: {"contrastive": 9.0, "perplexity": 999.0} for name in plan.references}
    write_json(
        directory / STUDY_FILE, {**json.loads(text), "references": known}
    )  # worse than any cell
    return read_plan(directory), Ledger(directory)


def finish(plan: Plan, ledger: Ledger, *, noise: float = 0.3, but: Sequence[Trial] = ()) -> None:
    """Write the results of all trials but some: gains add up, seeds vary by ``noise`` percent."""
    for trial in plan.trials:
        if trial not in but:
            for stage in trial.stages:
                write_result(plan, ledger, trial, stage, noise)


def gain(plan: Plan, cell: str) -> float:
    """Return a cell's true improvement over the baseline in percent."""
    swaps = plan.factorial.get(cell, ("rope", "geglu", "rmsnorm") * (cell == "grr"))
    return sum(GAINS[swap] for swap in swaps) - 5.0 * (cell == "original")


def write_result(
    plan: Plan, ledger: Ledger, trial: Trial, stage: Stage, noise: float, **changed: float
) -> None:
    """Write what a trained stage leaves behind, with losses drawn about the true ones.

    A cell with one objective has the metrics and the losses by example of that one alone.
    """
    folder = ledger.folder(trial) / stage.folder
    seed = [sum(map(ord, trial.name)), trial.stream, len(stage.folder)]
    random = np.random.default_rng(seed)
    shared = np.random.default_rng(trial.stream).normal()  # what paired seeds have in common
    scale = (1 - gain(plan, trial.name) / 100) * (1 + (shared + noise * random.normal()) / 100)
    contrasts, captions = trial.cell.contrasts, trial.cell.captions
    final = {"contrastive": 4 * scale} if contrasts else {}
    final |= {"perplexity": math.exp(4 * scale), "caption": 4 * scale} if captions else {}
    final["coca"] = 4 * scale * (contrasts + 2 * captions)
    lines = [
        {"step": step, "seconds": 0.1 * step}
        | {f"val/{name}": value * (1 + 5 / step) for name, value in final.items()}
        for step in range(5, stage.recipe.steps + 1, 5)
    ]
    metrics = {
        f"{split}/{name}": value for split in ("test", "last") for name, value in final.items()
    }
    recalls = {"image_to_text_recall@1": 0.2, "text_to_image_recall@1": 0.2,
               "image_to_text_recall@5": 0.4}  # fmt: skip
    scores = (recalls if contrasts else {}) | ({"cider": 0.1} if captions else {})
    metrics |= {f"test/{name}": value for name, value in scores.items()}
    metrics |= {"train_seconds": 30 + random.random(), "last_step": stage.recipe.steps, **changed}
    write_text(folder / "curve.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    losses = torch.tensor(random.normal(0, 1, 40))
    losses += 4 * scale - losses.mean()  # the metrics follow from them
    groups = torch.arange(40) // 2
    examples = {"group": groups, "batch": groups // 4}
    examples |= {"caption": losses, "tokens": torch.ones_like(groups)} if captions else {}
    examples |= {"contrastive": losses.clone()} if contrasts else {}
    write_examples(examples, folder)
    write_json(folder / "model/config.json", {})
    write_json(
        folder / "result.json",
        {"key": stage.key, "metrics": metrics, "outputs": str(seed), "device": "cpu",
         "torch": "2.13.0", "origin": "random weights", "built": _built(trial.cell)},
    )  # fmt: skip


@functools.cache
def _built(cell: CoCaConfig) -> Structure:
    return structure(cell, default_registry())
