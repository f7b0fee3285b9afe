"""`python -m ablate.score`: how good a checkpoint is on held-out data it may never have seen."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ablate.captioner import Captioner
from ablate.data.dataset import open_dataset
from ablate.data.images import Pixels, Undecodable, decode
from ablate.data.rows import SPLITS
from ablate.evaluate import evaluate, evaluate_captions
from ablate.recipe import Recipe
from ablate.train import autocast
from ablate.zero_shot import TEMPLATES, accuracy, class_embeddings, read_folder
from blocks import UsageError, default_registry
from blocks.errors import Parser, unknown

DONE, BAD_USAGE = 0, 2


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = Parser(
        prog="python -m ablate.score",
        description="Score a checkpoint: losses, perplexity, retrieval and captions on a split of "
        "a data set, or zero-shot classification of a folder of classes.",
        epilog="example: python -m ablate.score --checkpoint MODEL --data embedded:icons",
    )
    top.add_argument("--checkpoint", required=True, type=Path, metavar="DIR")
    top.add_argument("--data", metavar="URI", help="a source, as in docs/data.md")
    top.add_argument("--split", help=f"{', '.join(SPLITS)} (default test)")
    top.add_argument("--batch", type=int, help="of the contrastive loss (default 128)")
    top.add_argument("--zero-shot", type=Path, metavar="FOLDER", help="FOLDER/CLASS_NAME/*.jpg")
    top.add_argument(
        "--template",
        action="append",
        metavar="TEXT",
        help="a prompt with {} for the class name; repeatable (default: an ensemble)",
    )
    top.add_argument("--plugin", action="append", default=[], metavar="FILE_OR_MODULE")
    top.add_argument("--json", action="store_true", help="one JSON object")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 2 bad usage."""
    options = parser().parse_args(arguments)
    try:
        found = _scores(options)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_USAGE
    if options.json:
        print(json.dumps(found))
    else:
        print("\n".join(f"{name:24} {value:.4f}" for name, value in found.items()))
    return DONE


def _scores(options: argparse.Namespace) -> dict[str, float]:
    if not options.data and not options.zero_shot:
        raise UsageError("nothing to score: name --data URI, --zero-shot FOLDER, or both")
    if options.template and not options.zero_shot:
        raise UsageError("--template is for --zero-shot FOLDER")
    if not options.data and (options.split or options.batch):
        raise UsageError("--split and --batch are for --data URI")
    split, batch = options.split or "test", options.batch or 128
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    captioner = Captioner.open(options.checkpoint, default_registry(tuple(options.plugin)))
    found: dict[str, float] = {}
    if options.data:
        recipe = Recipe(data=options.data, initial=str(options.checkpoint))
        found |= score(captioner, replace(recipe, evaluation_batch=batch), split)
    if options.zero_shot:
        found |= zero_shot(captioner, options.zero_shot, options.template or TEMPLATES)
    return found


def score(captioner: Captioner, recipe: Recipe, split: str) -> dict[str, float]:
    """Return all that a model can be measured by on a split of a recipe's data.

    Without CoCa's loss: the weights that it was trained with are not known here.
    """
    data = open_dataset(recipe, captioner.model.cell, names=[split])
    device = captioner.device
    precision = autocast(recipe.precision, device)
    found = evaluate(captioner.model, data.splits[split], recipe, device, precision)
    captioner.model.eval()
    del found["coca"]
    if captioner.model.cell.captions:
        found |= evaluate_captions(captioner, data.pairs, split)
    return found


def zero_shot(captioner: Captioner, folder: Path, templates: Sequence[str]) -> dict[str, float]:
    """Return the accuracy of naming the class of each picture in a folder of classes."""
    if not captioner.model.cell.contrasts:
        raise UsageError("zero-shot classification needs a model with a contrastive objective")
    files, labels, names = read_folder(folder)
    classes = class_embeddings(captioner.embed_texts, names, templates)
    pictures = [_read(path, captioner.size) for path in files]
    with torch.no_grad():
        images = captioner.embed_images(pictures)
    return accuracy(images, classes, torch.tensor(labels))


def _read(path: Path, size: int) -> Pixels:
    try:
        return decode(path.read_bytes(), size)
    except (OSError, Undecodable) as error:
        raise UsageError(f"cannot read picture {str(path)!r}: {error}") from None


if __name__ == "__main__":
    sys.exit(main())
