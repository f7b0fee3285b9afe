"""Stages by name: what is pretrained on, and what is fine-tuned on afterwards."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from ablate.core.recipe import Recipe, with_fields
from ablate.core.trial import FINETUNE
from blocks import UsageError

PREFIX = "finetune."  # of settings that are for the fine-tunings' recipe


def stage_name(source: str) -> str:
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
    tuning = replace(recipe, steps=steps, lr=recipe.lr / 4, evaluate=min(recipe.evaluate, steps))
    if "data" in settings:
        raise UsageError("finetune.data cannot be set: name the sets in --stages")
    tuning = with_fields(replace(tuning, initial="", tokenizer=""), settings)
    if tuning.initial or tuning.tokenizer:
        raise UsageError("fine-tunings start from their pretraining, with its tokenizer")
    tunings: dict[str, Recipe] = {}
    for source in sources:
        if stage_name(source) in tunings:
            raise UsageError(f"two fine-tunings are named {stage_name(source)!r}: give one once")
        tunings[stage_name(source)] = replace(tuning, data=source)
    return tunings
