"""Checkpoints: a folder of `config.json`, `model.safetensors` and `tokenizer.json`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from assemblies.coca import CoCa
from assemblies.config import CoCaConfig, from_dict, to_dict
from blocks import Registry, UsageError

FORMAT = 1
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
LISTED = 8  # names that an error lists of each kind


def save(
    cell: CoCaConfig, state: Mapping[str, Tensor], directory: Path, *, tokenizer: str | None = None
) -> None:
    """Write a model's cell and state dict, and its tokenizer (as JSON text), into a folder.

    The configuration is written last: a folder that has one is whole.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG).unlink(missing_ok=True)  # what is being replaced is no checkpoint
    weights = directory / f".{WEIGHTS}"
    save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, weights)
    os.replace(weights, directory / WEIGHTS)
    config = json.dumps({"format": FORMAT, "cell": to_dict(cell)}, indent=2) + "\n"
    texts = [(TOKENIZER, tokenizer)] if tokenizer is not None else []
    for name, text in [*texts, (CONFIG, config)]:
        temporary = directory / f".{name}"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, directory / name)


def load(directory: str | Path, *, registry: Registry | None = None) -> CoCa:
    """Return the model that `save` wrote, in evaluation mode.

    Strict: missing and unexpected weights, and unknown blocks or fields, raise `UsageError`, which
    lists them. Nothing is ever left at its random initialisation.
    """
    directory = Path(directory)
    cell = read_cell(directory)
    try:
        model = CoCa(cell, registry=registry)
    except UsageError as error:
        raise UsageError(f"checkpoint {str(directory)!r}: {error}") from None
    load_weights(model, read_weights(directory), where=f"checkpoint {str(directory)!r}")
    return model.eval()


def read_cell(directory: Path) -> CoCaConfig:
    """Return the cell of a checkpoint folder."""
    config = _read_config(directory)
    if config.get("format") != FORMAT:
        raise UsageError(
            f"checkpoint {str(directory)!r} has format {config.get('format')!r}, "
            f"this version reads {FORMAT}"
        )
    try:
        return from_dict(config.get("cell", {}))
    except UsageError as error:
        raise UsageError(f"checkpoint {str(directory)!r}: {error}") from None


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(
            f"{str(directory)!r} is no checkpoint: it has no {CONFIG} "
            f"(a trial's is in STUDY/trials/LABEL/model)"
        ) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {str(path)!r}: {error}") from None
    if not isinstance(config, dict):
        raise UsageError(f"{str(path)!r} is no JSON object")
    return config


def read_weights(directory: Path) -> dict[str, Tensor]:
    """Return the state dict of a checkpoint folder."""
    path = directory / WEIGHTS
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"cannot read weights {str(path)!r}: {error}") from None


def load_weights(model: CoCa, state: Mapping[str, Tensor], *, where: str) -> None:
    """Load a state dict; raises `UsageError` that lists all that is missing, unexpected, misfit."""
    wanted = model.state_dict()
    problems = {
        "missing": [name for name in wanted if name not in state],
        "unexpected": [name for name in state if name not in wanted],
        "of another shape": [
            f"{name} {list(state[name].shape)}, must be {list(wanted[name].shape)}"
            for name in wanted
            if name in state and state[name].shape != wanted[name].shape
        ],
    }
    found = [f"{len(names)} {what}: {_some(names)}" for what, names in problems.items() if names]
    if found:
        raise UsageError(f"{where} does not fit its model: {'; '.join(found)}")
    model.load_state_dict(dict(state))


def _some(names: list[str]) -> str:
    more = f", and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
