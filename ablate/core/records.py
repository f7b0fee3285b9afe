"""Reads what trials have written: records, curves, losses by example."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from ablate.core.files import read_json
from ablate.core.metrics import SELECTION, Metrics
from ablate.core.trial import Stage
from assemblies.checkpoint import CONFIG
from blocks import UsageError


def shown(stage: Stage, metrics: Metrics, before: int) -> Metrics:
    """Return a stage's metrics under the trial's names and steps."""
    named = {stage.prefix + k if "/" in k else k: v for k, v in metrics.items()}
    return {**named, "step": before + metrics["step"]}


def read_record(folder: Path, stage: Stage) -> dict[str, Any] | None:
    """Return the record of a finished stage, or None: what is damaged or lost is done again."""
    try:
        found = read_json(folder / "result.json")
    except UsageError:
        return None
    whole = isinstance(found, dict) and (stage.is_search or (folder / "model" / CONFIG).exists())
    return found if whole and found.get("key") == stage.key and _has_numbers(found, stage) else None


def _has_numbers(record: dict[str, Any], stage: Stage) -> bool:
    metrics = record.get("metrics")
    if not isinstance(metrics, dict) or not (stage.is_search or f"test/{SELECTION}" in metrics):
        return False
    return all(type(value) in (int, float) for value in metrics.values())


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


EXAMPLES_FILE = "examples.safetensors"


def read_examples(folder: Path) -> dict[str, Tensor] | None:
    """Return what `write_examples` wrote, or None where there is nothing whole."""
    try:
        return load((folder / EXAMPLES_FILE).read_bytes())
    except (OSError, SafetensorError):
        return None
