"""`ablate caption`: what a trained model says about pictures."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ablate.training.best_of import best_of
from ablate.training.captioning import SEARCH, Captioner, read_picture
from assemblies import Decoding
from blocks import UsageError, default_registry
from blocks.errors import Parser

DONE, SOME_FAILED, BAD_USAGE = 0, 1, 2


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = Parser(
        prog="ablate caption",
        description="Caption pictures with a checkpoint: a folder with config.json, "
        "model.safetensors and tokenizer.json, such as STUDY/trials/LABEL/model.",
        epilog="example: ablate caption --checkpoint "
        "studies/full-nano/trials/grr-seed0-1a2b3c4d/model cat.png dog.jpg --beams 4",
    )
    top.add_argument("images", nargs="+", metavar="IMAGE", type=Path)
    top.add_argument("--checkpoint", required=True, type=Path, metavar="DIR")
    beams, penalty = SEARCH.beams, SEARCH.length_penalty
    top.add_argument("--beams", type=int, help=f"1: greedy (default {beams}, or 1 for draws)")
    top.add_argument("--length-penalty", type=float, default=penalty, help=f"default {penalty}")
    top.add_argument("--temperature", type=float, default=0.0, help="above 0: draw (default 0)")
    top.add_argument(
        "--best-of", type=int, metavar="N", help="of N draws, the one that fits the picture best"
    )
    top.add_argument("--top-k", type=int, default=0, help="draw among the k likeliest")
    top.add_argument("--top-p", type=float, default=1.0, help="draw within this probability")
    top.add_argument("--minimum", type=int, default=2, help="tokens with the end mark (default 2)")
    top.add_argument("--maximum", type=int, default=0, help="tokens (default: the context)")
    top.add_argument("--seed", type=int, default=0, help="of draws (default 0)")
    top.add_argument("--plugin", action="append", default=[], metavar="FILE_OR_MODULE")
    top.add_argument("--json", action="store_true", help="one JSON object per picture")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 some failed, 2 bad usage."""
    options = parser().parse_args(arguments)
    try:
        return _main(options)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_USAGE


def _main(options: argparse.Namespace) -> int:
    chosen = parser().parse_args([str(options.images[0]), "--checkpoint", "-"])
    names = Decoding.__dataclass_fields__.keys() & vars(options).keys()
    if options.best_of is not None and any(
        getattr(options, name) != getattr(chosen, name) for name in names
    ):
        raise UsageError("--best-of draws in its own way: leave the other decoding options")
    if options.beams is None:
        options.beams = SEARCH.beams if options.temperature == 0 else 1
    decoding = Decoding(**{name: getattr(options, name) for name in names})
    captioner = Captioner.open(options.checkpoint, default_registry(tuple(options.plugin)))
    found = [(path, read_picture(path, captioner.size)) for path in options.images]
    pictures = [(path, image) for path, image in found if not isinstance(image, str)]
    shown = [image for _, image in pictures]
    if options.best_of is None or not shown:
        said = captioner.caption(shown, decoding)
    else:
        said = best_of(captioner, shown, options.best_of)
    for (path, _), caption in zip(pictures, said, strict=True):
        line = {"image": str(path), "caption": caption}
        print(json.dumps(line) if options.json else f"{path}: {caption}")
    for path, image in found:
        if isinstance(image, str):
            print(f"error: {str(path)!r}: {image}", file=sys.stderr)
    return DONE if len(pictures) == len(found) else SOME_FAILED


if __name__ == "__main__":
    sys.exit(main())
