"""A recipe: how a cell is trained. Frozen numbers and strings, like the cell."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from assemblies import (
    CoCaConfig,
)
from assemblies.config import checked
from blocks import UsageError
from blocks.errors import unknown

PRECISIONS = ("auto", "fp32", "bf16")
AT_LEAST_1 = (lambda value: value >= 1, "at least 1")
ABOVE_0 = (lambda value: 0 < value < math.inf, "above 0 and finite")
AT_LEAST_0 = (lambda value: 0 <= value < math.inf, "at least 0 and finite")
BELOW_1 = (lambda value: 0 <= value < 1, "at least 0 and below 1")
FRACTION = (lambda value: 0 <= value <= 1, "from 0 to 1")
BOUNDS: dict[str, tuple[Callable[[float], bool], str]] = {
    **dict.fromkeys(("steps", "batch", "accumulate", "evaluate"), AT_LEAST_1),
    **dict.fromkeys(("lr", "clip", "max_scale"), ABOVE_0),
    **dict.fromkeys(
        ("contrastive_weight", "caption_weight", "weight_decay", "patience", "bucket"), AT_LEAST_0
    ),
    **dict.fromkeys(("warmup", "flip"), FRACTION),
    **dict.fromkeys(("beta2", "label_smoothing"), BELOW_1),
    "evaluation_batch": (lambda value: value >= 2, "at least 2"),
    "crop": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything about training but architecture and seed; all of it is in a trial's key."""

    data: str = "embedded:pictures"
    """A source of pairs (docs/data.md)."""

    initial: str = ""
    """A checkpoint folder to start from instead of random weights: transplanted into the cell."""

    tokenizer: str = ""
    """A ``tokenizer.json`` to use instead of one trained on the training captions."""

    steps: int = 240
    """Optimiser steps."""

    batch: int = 64
    """Pairs that one step sees."""

    accumulate: int = 1
    """Equal parts that a batch is taken in, to save memory; gradients are those of the whole."""

    lr: float = 4e-3
    """The learning rate at its peak."""

    warmup: float = 0.2
    """The fraction of the steps over which the rate rises."""

    weight_decay: float = 0.1
    """Of the matrices of linear maps; nothing else decays."""

    beta2: float = 0.98
    """How slowly Adam forgets squared gradients."""

    clip: float = 1.0
    """The largest norm of all gradients together."""

    contrastive_weight: float = 1.0
    """Of the contrastive loss; 0: not computed in training, though evaluation measures it."""

    caption_weight: float = 2.0
    """Likewise of the captioning loss."""

    label_smoothing: float = 0.0
    """Of the captioning loss in training; never in evaluation."""

    max_scale: float = 100.0
    """Bounds the learned inverse temperature, which small sets drive to over-confidence."""

    crop: float = 0.8
    """The smallest side of the random crop, as a fraction of the picture's."""

    flip: float = 0.0
    """The chance that a picture is mirrored: none by default, for captions say left and right."""

    precision: str = "auto"
    """``fp32`` or ``bf16``; ``auto`` is bf16 on a GPU and fp32 elsewhere."""

    evaluate: int = 5
    """How many times the validation split is evaluated, evenly spread over the steps."""

    patience: int = 0
    """After so many evaluations that are no better, training stops; 0: never."""

    bucket: int = 0
    """Puts captions of a length together within windows of so many batches; 0: not."""

    evaluation_batch: int = 128
    """Pairs that contrast with each other in evaluation: the loss depends on it."""

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be trained with."""
        for name, (allowed, words) in BOUNDS.items():
            if not allowed(getattr(self, name)):
                raise UsageError(f"{name} must be {words}, got {getattr(self, name)}")
        if self.batch % self.accumulate:
            raise UsageError(
                f"batch ({self.batch}) must be a multiple of accumulate ({self.accumulate})"
            )
        if self.contrastive_weight == self.caption_weight == 0:
            raise UsageError("contrastive_weight and caption_weight are both 0: nothing to learn")
        if self.contrastive_weight and self.batch < 2:
            raise UsageError(f"a batch must have at least 2 pairs to contrast, got {self.batch}")
        if self.initial and self.tokenizer:
            raise UsageError("initial brings its own tokenizer: leave tokenizer empty")
        if self.evaluate > self.steps:
            raise UsageError(f"evaluate ({self.evaluate}) must be at most steps ({self.steps})")
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)


# Nano is for CPU minutes: one trial of the full grid takes under a minute on one core.
RECIPES: dict[str, Recipe] = {
    "nano": Recipe(),
    "tiny": Recipe(steps=2000, batch=256, lr=2e-3, warmup=0.1, evaluate=10),
    "small": Recipe(steps=10_000, batch=512, lr=1e-3, warmup=0.05, evaluate=10),
    "base": Recipe(steps=50_000, batch=1024, lr=8e-4, warmup=0.02, evaluate=20),
    "large": Recipe(steps=50_000, batch=1024, lr=5e-4, warmup=0.02, evaluate=20),
    "giant": Recipe(steps=50_000, batch=1024, lr=3e-4, warmup=0.02, evaluate=20),
}


def from_dict(data: Mapping[str, Any]) -> Recipe:
    """Return the recipe that ``dataclasses.asdict`` wrote; unknown or mistyped fields raise."""
    return with_fields(Recipe(), data)


def with_fields(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """Return the recipe with some fields changed; unknown or mistyped ones raise `UsageError`."""
    names = {field.name for field in dataclasses.fields(Recipe)}
    for name in changes:
        if name not in names:
            raise unknown("field of a recipe", name, names)
    values = {name: checked(Recipe, name, value) for name, value in changes.items()}
    return dataclasses.replace(recipe, **values)


def loss_weights(cell: CoCaConfig, recipe: Recipe) -> dict[str, float]:
    """Return the losses' weights, 0 for one that the cell is not built for.

    Raises `UsageError` where nothing is left to learn.
    """
    weights = {
        "contrastive": recipe.contrastive_weight if cell.contrasts else 0.0,
        "caption": recipe.caption_weight if cell.captions else 0.0,
    }
    if not any(weights.values()):
        raise UsageError(
            f"nothing to learn: the cell's objective is {cell.objective} and the recipe has "
            f"contrastive_weight={recipe.contrastive_weight}, "
            f"caption_weight={recipe.caption_weight}"
        )
    if recipe.label_smoothing and not weights["caption"]:
        raise UsageError("label_smoothing has no effect: captioning is not trained")
    return weights
