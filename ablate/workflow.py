"""Stages by name: what is pretrained on, and what is fine-tuned on afterwards."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from ablate.data.sources import SCHEMES, embedded_names
from ablate.recipe import Recipe, with_fields
from ablate.trial import FINETUNE, PRETRAIN
from blocks import UsageError
from blocks.errors import unknown

PREFIX = "finetune."  # of settings that are for the fine-tunings' recipe


def parse_stages(text: str) -> tuple[str, ...]:
    """Return the stages that ``pretrain,finetune:icons,tiles`` names, a URI to each fine-tuning.

    A set is an embedded one's name or a source (docs/data.md), which may hold commas.
    """
    first, *rest = text.split(",")
    if first.strip() != PRETRAIN:
        raise UsageError(f"--stages must begin with {PRETRAIN}, got {first.strip()!r}")
    if rest and not rest[0].strip().startswith(FINETUNE):
        raise UsageError(
            f"--stages {text!r}: after {PRETRAIN} comes finetune:SET,SET,..., got {rest[0]!r}"
        )
    sources: list[str] = []
    for part in (piece.strip().removeprefix(FINETUNE) for piece in rest):
        if part in embedded_names():
            sources.append(f"embedded:{part}")
        elif part.partition(":")[0] in SCHEMES and ":" in part:
            sources.append(part)
        elif sources and not sources[-1].startswith("embedded:"):
            sources[-1] += f",{part}"  # a comma inside a source, as in coco:IMAGES,FILE
        else:
            raise unknown("embedded data set or source", part, [*embedded_names(), *SCHEMES])
    return tuple(sources)


def name_of(source: str) -> str:
    """Return the short name of a fine-tuning's data: ``finetune:icons``."""
    scheme, _, rest = source.partition(":")
    last = PurePath(rest.split(",")[-1].partition("?")[0].rstrip("/")).name
    plain = rest if scheme == "embedded" else last.partition(".")[0]
    return FINETUNE + (re.sub(r"[^\w-]+", "-", plain).strip("-") or scheme)


def finetunings(
    sources: Sequence[str], recipe: Recipe, settings: Mapping[str, Any]
) -> dict[str, Recipe]:
    """Return the recipe of each fine-tuning, by stage name.

    Half the steps and a quarter of the learning rate of pretraining, unless ``settings`` say
    otherwise; two sets of one name are refused.
    """
    steps = max(1, recipe.steps // 2)
    own = replace(recipe, steps=steps, lr=recipe.lr / 4, evaluate=min(recipe.evaluate, steps))
    if "data" in settings:
        raise UsageError("finetune.data cannot be set: name the sets in --stages")
    own = with_fields(replace(own, initial="", tokenizer=""), settings)
    if own.initial or own.tokenizer:
        raise UsageError("fine-tunings start from their pretraining, with its tokenizer")
    found: dict[str, Recipe] = {}
    for source in sources:
        if name_of(source) in found:
            raise UsageError(f"two fine-tunings are named {name_of(source)!r}: give one once")
        found[name_of(source)] = replace(own, data=source)
    return found
