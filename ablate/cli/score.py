"""`ablate score`: how good a checkpoint is on held-out data it may never have seen."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ablate.core.metrics import SELECTION
from ablate.core.recipe import Recipe
from ablate.data.dataset import open_dataset
from ablate.data.rows import SPLITS
from ablate.training.captioning import Captioner, read_picture
from ablate.training.evaluate import evaluate, evaluate_captions
from ablate.training.optim import autocast
from ablate.training.zero_shot import TEMPLATES, accuracy, class_embeddings, read_folder
from blocks import UsageError, default_registry
from blocks.errors import unknown

DONE, SOME_FAILED = 0, 1


def main(options: argparse.Namespace) -> int:
    """Print a checkpoint's scores; return 0, or 1 if some pictures cannot be read."""
    scores, unreadable = _scores(options)
    if options.json:
        print(json.dumps(scores))
    else:
        print("\n".join(f"{name:24} {value:.4f}" for name, value in scores.items()))
    for line in unreadable:
        print(f"error: {line}", file=sys.stderr)
    return SOME_FAILED if unreadable else DONE


def _scores(options: argparse.Namespace) -> tuple[dict[str, float], list[str]]:
    """Return the scores asked for, and which pictures could not be read."""
    if not options.data and not options.zero_shot:
        raise UsageError("nothing to score: name --data URI, --zero-shot FOLDER, or both")
    if options.template and not options.zero_shot:
        raise UsageError("--template is for --zero-shot FOLDER")
    if not options.data and (options.split is not None or options.batch is not None):
        raise UsageError("--split and --batch are for --data URI")
    split = "test" if options.split is None else options.split
    batch = 128 if options.batch is None else options.batch
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    captioner = Captioner.open(options.checkpoint, default_registry(tuple(options.plugin)))
    scores: dict[str, float] = {}
    unreadable: list[str] = []
    if options.data:
        recipe = Recipe(data=options.data, initial=str(options.checkpoint))
        scores |= score(captioner, replace(recipe, evaluation_batch=batch), split)
    if options.zero_shot:
        named, unreadable = zero_shot(captioner, options.zero_shot, options.template or TEMPLATES)
        scores |= named
    return scores, unreadable


def score(captioner: Captioner, recipe: Recipe, split: str) -> dict[str, float]:
    """Return all that a model can be measured by on a split of a recipe's data.

    Without CoCa's loss: the weights that it was trained with are not known here.
    """
    data = open_dataset(recipe, captioner.model.cell, names=[split])
    device = captioner.device
    precision = autocast(recipe.precision, device)
    scores = evaluate(captioner.model, data.splits[split], recipe, device, precision)
    captioner.model.eval()
    del scores[SELECTION]
    if captioner.model.cell.captions:
        scores |= evaluate_captions(captioner, data.pairs, split)
    return scores


def zero_shot(
    captioner: Captioner, folder: Path, templates: Sequence[str]
) -> tuple[dict[str, float], list[str]]:
    """Return the accuracy of naming the class of each picture in a folder of classes.

    Pictures that cannot be read are left out, and returned by name.
    """
    if not captioner.model.cell.contrasts:
        raise UsageError("zero-shot classification needs a model with a contrastive objective")
    files, labels, names = read_folder(folder)
    classes = class_embeddings(captioner.embed_texts, names, templates)
    read = [
        (read_picture(path, captioner.size), label)
        for path, label in zip(files, labels, strict=True)
    ]
    pictures = [(image, label) for image, label in read if not isinstance(image, str)]
    unreadable = [
        f"{str(path)!r}: {image}"
        for path, (image, _) in zip(files, read, strict=True)
        if isinstance(image, str)
    ]
    if not pictures:
        raise UsageError(f"no picture in {str(folder)!r} can be read: {unreadable[0]}")
    images = captioner.embed_images([image for image, _ in pictures])
    scores = accuracy(images, classes, torch.tensor([label for _, label in pictures]))
    return scores, unreadable
