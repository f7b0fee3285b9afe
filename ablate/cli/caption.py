"""`ablate caption`: what a trained model says about pictures."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace

from ablate.training.best_of import best_of
from ablate.training.captioning import SEARCH, Captioner, read_picture
from assemblies import Decoding
from blocks import UsageError, default_registry

DONE, SOME_FAILED = 0, 1


def main(options: argparse.Namespace) -> int:
    """Print a caption for each picture; return 0, or 1 if some cannot be read."""
    names = Decoding.__dataclass_fields__.keys() & vars(options).keys()
    asked = {name: value for name in names if (value := getattr(options, name)) is not None}
    if options.best_of is not None and asked:
        raise UsageError("--best-of draws in its own way: leave the other decoding options")
    draws = asked.get("temperature", 0.0) != 0
    decoding = replace(SEARCH, **({"beams": 1} if draws else {}) | asked)
    captioner = Captioner.open(options.checkpoint, default_registry(tuple(options.plugin)))
    images = [(path, read_picture(path, captioner.size)) for path in options.images]
    pictures = [(path, image) for path, image in images if not isinstance(image, str)]
    pixels = [image for _, image in pictures]
    if options.best_of is None or not pixels:
        said = captioner.caption(pixels, decoding)
    else:
        said = best_of(captioner, pixels, options.best_of)
    for (path, _), caption in zip(pictures, said, strict=True):
        line = {"image": str(path), "caption": caption}
        print(json.dumps(line) if options.json else f"{path}: {caption}")
    for path, image in images:
        if isinstance(image, str):
            print(f"error: {str(path)!r}: {image}", file=sys.stderr)
    return DONE if len(pictures) == len(images) else SOME_FAILED
