"""Reads what trials have written: records, curves, losses by example."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from ablate.core.metrics import SELECTION, Metrics
from ablate.core.stored import from_json
from ablate.core.trial import Stage
from assemblies.checkpoint import CONFIG
from blocks import UsageError

EXAMPLES_FILE = "examples.safetensors"


def trial_metrics(stage: Stage, metrics: Metrics, before: int) -> Metrics:
    """Return a stage's metrics under the trial's names and steps."""
    named = {stage.prefix + k if "/" in k else k: v for k, v in metrics.items()}
    return {**named, "step": before + metrics["step"]}


@dataclass(frozen=True)
class Record:
    """What every finished stage writes; there is more beside it, and later versions may add."""

    key: str
    """The stage's."""

    metrics: dict[str, float | int]
    """By name: a split, a slash and a metric's key; steps and seconds without a split."""


def read_record(folder: Path, stage: Stage) -> dict[str, Any] | None:
    """Return the record of a finished stage, or None: what is damaged or lost is done again."""
    try:
        text = (folder / "result.json").read_bytes()
        checked: Record = from_json(Record, text)
    except (OSError, UsageError):
        return None
    is_whole = stage.is_search or (folder / "model" / CONFIG).exists()
    is_tested = stage.is_search or f"test/{SELECTION}" in checked.metrics
    if not is_whole or not is_tested or checked.key != stage.key:
        return None
    return dict(json.loads(text))


def read_curve(path: Path) -> list[dict[str, Any]]:
    """Return the metrics of a stage by step; a line cut off by a kill is left out."""
    if not path.exists():
        return []
    curve = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            curve.append(json.loads(line))
        except ValueError:
            break
    return curve


def read_examples(folder: Path) -> dict[str, Tensor] | None:
    """Return what `write_examples` wrote, or None where there is nothing whole."""
    try:
        return load((folder / EXAMPLES_FILE).read_bytes())
    except (OSError, SafetensorError):
        return None
