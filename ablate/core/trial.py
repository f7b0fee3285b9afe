"""A trial: cell x recipe x seed with all its stages, and the keys their results are kept under."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator

from ablate.core.files import digest
from ablate.core.recipe import Recipe
from ablate.core.recipe import from_dict as recipe_from_dict
from ablate.core.stored import from_plain
from assemblies import CoCaConfig
from assemblies.checkpoint import CONFIG, TOKENIZER, WEIGHTS
from assemblies.config import from_dict as cell_from_dict
from assemblies.config import to_dict as cell_to_dict
from blocks import Registry, UsageError, source

PRETRAIN, FINETUNE = "pretrain", "finetune:"
SEARCH = "search"  # a pretraining that is judged by its validation loss and never tested
PLACES = ("data", "initial", "tokenizer")
# What computes a trial's numbers, blocks apart: their sources are in the key by themselves.
ROOTS = (
    ("ablate.training.stages", "run_stage"),
    ("ablate.training.train", "Training"),
    ("assemblies.coca", "CoCa"),
)
NOT_FOLLOWED = {
    # Data are known by the fingerprint of their pixels and captions, however they were read.
    *(
        f"ablate.data.{name}"
        for name in ("cache", "formats", "images", "pairs", "rows", "shards", "sources")
    ),
    # Files, records and the descriptions of trials: what these hold is in the key, or a result.
    *(f"ablate.core.{name}" for name in ("files", "records", "trial")),
    *source.NOT_FOLLOWED,
}
MAX_SEEDS = 1000  # of a study; the streams of another replicate begin behind them
REPLICATES = STUDY, AGAIN, TUNING = range(3)  # a study's trials, its A/A cell's, a search's


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One training phase of a trial."""

    name: str
    """``pretrain``, ``finetune:SET`` or ``search``."""

    recipe: Annotated[Recipe, BeforeValidator(recipe_from_dict)]
    """How it is trained."""

    data_fingerprint: str
    """The hash of its data's content, wherever they lie and however they were read."""

    key: str
    """What its result is kept under: a hash of all that can change its numbers."""

    origin: str = ""
    """The hash of the checkpoint that pretraining starts from, if it does."""

    @property
    def is_finetuning(self) -> bool:
        """Return whether the stage starts from the pretrained checkpoint."""
        return self.name.startswith(FINETUNE)

    @property
    def is_search(self) -> bool:
        """Return whether the stage belongs to a search: the test split is not looked at."""
        return self.name == SEARCH

    @property
    def prefix(self) -> str:
        """Return what stands before the names of the stage's metrics."""
        return f"{self.name.removeprefix(FINETUNE)}/" if self.is_finetuning else ""

    @property
    def folder(self) -> str:
        """Return the stage's folder in the trial's directory; pretraining has that itself."""
        return f"{self.prefix[:-1]}-{self.key[:8]}" if self.is_finetuning else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A cell, by its name in the grid, trained from one seed through all its stages."""

    name: str
    """What the grid, or a search, calls its cell."""

    cell: Annotated[CoCaConfig, BeforeValidator(cell_from_dict)]
    """The architecture."""

    seed: int
    """By which trials of different cells are paired: they see the same batches."""

    replicate: int = 0
    """Which of several independent runs under this seed it is, one of `REPLICATES`."""

    stages: tuple[Stage, ...]
    """Its training phases, pretraining first."""

    def __post_init__(self) -> None:
        """Read a trial of versions before 0.2, which had the stream's number for a seed."""
        replicate, seed = divmod(self.seed, MAX_SEEDS)
        if replicate:
            object.__setattr__(self, "seed", seed)
            object.__setattr__(self, "replicate", replicate)

    @property
    def key(self) -> str:
        """Return what identifies the results of all stages."""
        keys = [stage.key for stage in self.stages]
        return keys[0] if len(keys) == 1 else digest(keys)

    @property
    def stream(self) -> int:
        """Return the number that seeds its random streams: other replicates share none of them."""
        return self.seed + MAX_SEEDS * self.replicate

    @property
    def recipe(self) -> Recipe:
        """Return the first stage's recipe."""
        return self.stages[0].recipe

    @property
    def steps(self) -> int:
        """Return the steps of all stages."""
        return sum(stage.recipe.steps for stage in self.stages)

    @property
    def label(self) -> str:
        """Return a short name that is unique in a study and fit for a directory.

        It does not depend on fine-tunings: adding one to a study repeats no pretraining.
        """
        return f"{self.name}-seed{self.stream}-{self.stages[0].key[:8]}"


def make_trial(
    name: str,
    cell: CoCaConfig,
    recipe: Recipe,
    seed: int,
    fingerprint: str,
    registry: Registry,
    later: Sequence[tuple[str, Recipe, str]] = (),
    *,
    replicate: int = 0,
) -> Trial:
    """Return the trial with its stages' keys: hashes of all that can change their numbers.

    That is the cell, the recipe, the seed, the content (not the place) of the data and of a
    checkpoint to start from, the source of the blocks used and of the code that assembles and
    trains, torch's version and the device's kind. ``later`` are fine-tunings, by name, recipe and
    data fingerprint; their keys hold the pretraining's.
    """
    blocks = {
        path: registry.source_hash(kind, spelling)
        for path, (kind, spelling) in cell.spellings().items()
    }
    machine = [torch.__version__, device_kind()]
    stream = seed + MAX_SEEDS * replicate
    shared = [cell_to_dict(cell), stream, blocks, code_hash(), machine]
    origin = folder_hash(Path(recipe.initial)) if recipe.initial else ""
    words = _content_hash((_stamp(Path(recipe.tokenizer)),)) if recipe.tokenizer else ""
    first = digest([shared, _numbers(recipe), fingerprint, origin, words])
    pretrain = Stage(
        name=PRETRAIN, recipe=recipe, data_fingerprint=fingerprint, key=first, origin=origin
    )
    stages = [pretrain]
    for stage, tuning, data in later:
        key = digest([first, stage, _numbers(tuning), data])
        stages.append(Stage(name=stage, recipe=tuning, data_fingerprint=data, key=key))
    return Trial(name=name, cell=cell, seed=seed, replicate=replicate, stages=tuple(stages))


def device_kind() -> str:
    """Return the kind of device that this process trains on; it is in every trial's key."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _numbers(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe without places of things that keys know by their content."""
    fields = dataclasses.asdict(recipe)
    return {name: value for name, value in fields.items() if name not in PLACES}


def folder_hash(directory: Path) -> str:
    """Return a hash of a checkpoint's configuration, weights and tokenizer."""
    return _content_hash(tuple(_stamp(directory / n) for n in (CONFIG, WEIGHTS, TOKENIZER)))


def _stamp(path: Path) -> tuple[Path, int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise UsageError(f"cannot read {str(path)!r}: {error.strerror}") from None
    return path, status.st_size, status.st_mtime_ns


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
    """Return a hash of the definitions that decide what training computes, whatever the blocks."""
    here = Path(__file__).parents[2]
    return source.code_hash(
        ROOTS, dict.fromkeys(("ablate", "assemblies", "blocks"), here), NOT_FOLLOWED
    )


def to_dict(trial: Trial) -> dict[str, Any]:
    """Return the trial as plain data."""
    return dataclasses.asdict(trial)


def from_dict(data: dict[str, Any]) -> Trial:
    """Return the trial that `to_dict` wrote; raises `UsageError` for anything else."""
    trial: Trial = from_plain(Trial, data)
    return trial
