"""A trial: cell x recipe x seed, and the key under which its result is kept."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ablate.files import digest
from ablate.recipe import Recipe
from ablate.recipe import from_dict as recipe_from_dict
from assemblies import CoCaConfig
from assemblies.checkpoint import CONFIG, TOKENIZER, WEIGHTS
from assemblies.config import from_dict as cell_from_dict
from assemblies.config import to_dict as cell_to_dict
from blocks import Registry, UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One training: ``name`` is the cell's in its grid, ``key`` identifies the result."""

    name: str
    cell: CoCaConfig
    recipe: Recipe
    seed: int
    data_fingerprint: str
    key: str

    @property
    def label(self) -> str:
        """Return a short name that is unique in a study and fit for a directory."""
        return f"{self.name}-seed{self.seed}-{self.key[:8]}"


def make_trial(
    name: str, cell: CoCaConfig, recipe: Recipe, seed: int, fingerprint: str, registry: Registry
) -> Trial:
    """Return the trial with its key: a hash of all that can change its numbers.

    That is the cell, the recipe, the seed, the content (not the place) of the data and of a
    checkpoint to start from, the source of the blocks used and of the code that assembles and
    trains, torch's version and the device's kind.
    """
    blocks = {
        path: registry.source_hash(kind, spelling)
        for path, (kind, spelling) in cell.spellings().items()
    }
    numbers = {k: v for k, v in dataclasses.asdict(recipe).items() if k not in ("data", "initial")}
    machine = [torch.__version__, "cuda" if torch.cuda.is_available() else "cpu"]
    content = [cell_to_dict(cell), numbers, seed, fingerprint, blocks, code_hash(), machine]
    if recipe.initial:
        content.append(folder_hash(Path(recipe.initial)))
    return Trial(
        name=name,
        cell=cell,
        recipe=recipe,
        seed=seed,
        data_fingerprint=fingerprint,
        key=digest(content),
    )


def folder_hash(directory: Path) -> str:
    """Return a hash of a checkpoint's configuration, weights and tokenizer."""
    try:
        stamps = [(p, p.stat()) for p in (directory / n for n in (CONFIG, WEIGHTS, TOKENIZER))]
        return _content_hash(tuple((path, s.st_size, s.st_mtime_ns) for path, s in stamps))
    except OSError as error:
        raise UsageError(f"cannot read checkpoint {str(directory)!r}: {error}") from None


@cache
def _content_hash(stamped: tuple[tuple[Path, int, int], ...]) -> str:
    """Return a hash of files' contents; a plan asks for the same ones for each of its trials."""
    content = hashlib.sha256()
    for path, *_ in stamped:
        with path.open("rb") as file:
            content.update(hashlib.file_digest(file, "sha256").digest())
    return content.hexdigest()


@cache
def code_hash() -> str:
    """Return a hash of the modules that decide what training computes, whatever the blocks."""
    from ablate import evaluate, train
    from ablate.data import batches, tokenizer
    from assemblies import accumulate, coca, config, construct, layer, losses, sequence, towers
    from blocks import attention, auxiliary, kernels, pooling, projections

    transplant = sys.modules["assemblies.transplant"]  # a function of that name hides the module

    ours = (evaluate, train, batches, tokenizer)
    model = (accumulate, coca, config, construct, layer, losses, sequence, towers)
    shared = (auxiliary, attention, kernels, pooling, projections)
    texts = [inspect.getsource(module) for module in (*ours, *model, transplant, *shared)]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def to_dict(trial: Trial) -> dict[str, Any]:
    """Return the trial as plain data."""
    return dataclasses.asdict(trial)


def from_dict(data: dict[str, Any]) -> Trial:
    """Return the trial that `to_dict` wrote."""
    cell, recipe = cell_from_dict(data["cell"]), recipe_from_dict(data["recipe"])
    return Trial(**{**data, "cell": cell, "recipe": recipe})
