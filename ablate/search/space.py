"""Which hyper-parameters a search may choose, and how a space is written on a command line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ablate.core.recipe import Recipe, with_fields
from blocks import UsageError
from blocks.errors import unknown

if TYPE_CHECKING:
    import optuna

# What else a recipe has says what is learnt, for how long and how it is measured. A search that
# chose any of that would no longer compare like with like.
TUNABLE = (
    "lr", "weight_decay", "warmup", "beta2", "clip", "batch",
    "label_smoothing", "max_scale", "crop", "flip",
)  # fmt: skip
SCALES = ("linear", "log")
EXAMPLE = "write LOW..HIGH, LOW..HIGH:log or A|B|C, as in lr=1e-4..1e-2:log,batch=32|64"
Number = int | float


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """The values that one hyper-parameter may take: ``low`` to ``high``, or one of ``choices``."""

    name: str
    low: Number = 0
    high: Number = 0
    log: bool = False
    choices: tuple[Number, ...] = ()

    def suggest(self, trial: optuna.Trial) -> Number:
        """Return Optuna's suggestion."""
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        if self.name == "batch":
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)

    def __contains__(self, value: Number) -> bool:
        """Return whether the search may choose a value."""
        return value in self.choices if self.choices else self.low <= value <= self.high

    @property
    def ends(self) -> tuple[Number, ...]:
        """Return the outermost values, or all choices."""
        return self.choices or (self.low, self.high)

    def __str__(self) -> str:
        """Return the range as it is written on the command line."""
        if self.choices:
            return f"{self.name}={'|'.join(f'{value:g}' for value in self.choices)}"
        return f"{self.name}={self.low:g}..{self.high:g}{':log' * self.log}"


Space = tuple[Range, ...]


def spell(space: Space) -> str:
    """Return a space as it is written on the command line."""
    return ",".join(map(str, space))


def default_space(recipe: Recipe) -> Space:
    """Return ranges around a recipe's optimiser settings.

    The batch is not among them: with another batch a seed no longer sees the same batches in every
    cell, which is what pairs them.
    """
    warmup = recipe.warmup
    return (
        Range(name="lr", low=recipe.lr / 5, high=recipe.lr * 5, log=True),
        Range(name="weight_decay", low=0.0, high=max(0.1, 3 * recipe.weight_decay)),
        Range(name="warmup", low=warmup / 4, high=max(0.1, min(0.5, 2 * warmup)), log=warmup > 0),
        Range(name="beta2", choices=tuple(sorted({0.95, 0.98, 0.99, 0.999, recipe.beta2}))),
    )


def parse_space(text: str, recipe: Recipe) -> Space:
    """Return the space that a text such as ``lr=1e-4..1e-2:log,weight_decay=0..0.3`` means.

    It replaces the default one. Raises `UsageError` for whatever cannot be meant, and for values
    that the recipe refuses.
    """
    ranges: dict[str, Range] = {}
    for part in text.split(","):
        name, equals, values = (piece.strip() for piece in part.partition("="))
        if not equals or not values:
            raise UsageError(f"--search-space {part.strip()!r}: {EXAMPLE}")
        if name in ranges:
            raise UsageError(f"--search-space: {name!r} is given twice")
        if name not in TUNABLE:
            raise _not_tunable(name)
        ranges[name] = _parse_range(name, values)
        _check(ranges[name], recipe)
    return tuple(ranges.values())


def _not_tunable(name: str) -> UsageError:
    if name in Recipe.__dataclass_fields__:
        return UsageError(
            f"--search-space: {name} cannot be searched: it says what is learnt, for how long or "
            f"how it is measured (allowed: {', '.join(TUNABLE)})"
        )
    return UsageError(f"--search-space: {unknown('hyper-parameter', name, TUNABLE)}")


def _parse_range(name: str, text: str) -> Range:
    if "|" in text:
        choices = tuple(_number(name, piece) for piece in text.split("|"))
        if len(set(choices)) < len(choices):
            raise UsageError(f"--search-space {name}={text}: a value is there twice")
        return Range(name=name, choices=choices)
    span, _, scale = text.partition(":")
    low, dots, high = span.partition("..")
    if not dots:
        raise UsageError(f"--search-space {name}={text}: {EXAMPLE}")
    if scale.strip() not in ("", *SCALES):
        raise UsageError(f"--search-space {name}: {unknown('scale', scale.strip(), SCALES)}")
    chosen = Range(
        name=name, low=_number(name, low), high=_number(name, high), log=scale.strip() == "log"
    )
    if chosen.low >= chosen.high:
        raise UsageError(f"--search-space {name}={text}: {low} must be below {high}")
    if chosen.log and chosen.low <= 0:
        raise UsageError(f"--search-space {name}={text}: a log scale must begin above 0")
    return chosen


def _number(name: str, text: str) -> Number:
    kind = int if name == "batch" else float
    try:
        value = kind(text.strip())
    except ValueError:
        raise UsageError(
            f"--search-space {name}: {text.strip()!r} is no {kind.__name__}; {EXAMPLE}"
        ) from None
    if not math.isfinite(value):
        raise UsageError(f"--search-space {name}: {text.strip()} is not finite")
    return value


def _check(chosen: Range, recipe: Recipe) -> None:
    """Refuse values that no recipe can have."""
    if chosen.name == "batch" and recipe.accumulate > 1 and not chosen.choices:
        raise UsageError(
            f"--search-space batch: with accumulate={recipe.accumulate} name the batches, as in "
            f"batch={recipe.batch}|{2 * recipe.batch}"
        )
    for value in chosen.ends:
        try:
            tuned(recipe, {chosen.name: value})
        except UsageError as error:
            raise UsageError(f"--search-space {chosen}: {error}") from None


def tuned(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Return the recipe with searched values.

    Another batch takes as many more or fewer steps: every cell sees equally many pairs.
    """
    changed = with_fields(recipe, values)
    if changed.batch == recipe.batch:
        return changed
    steps = max(recipe.evaluate, round(recipe.steps * recipe.batch / changed.batch))
    return replace(changed, steps=steps)


def start(space: Space, recipe: Recipe) -> dict[str, Number]:
    """Return the recipe's own values, which a search tries first, or nothing if out of range."""
    values = {chosen.name: getattr(recipe, chosen.name) for chosen in space}
    return values if all(values[chosen.name] in chosen for chosen in space) else {}


def searched_fields(space: Sequence[Range]) -> set[str]:
    """Return the fields of a recipe that may differ from cell to cell after a search."""
    names = {chosen.name for chosen in space}
    return names | ({"steps"} if "batch" in names else set())
