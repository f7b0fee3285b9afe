"""`ablate convert`: an open_clip CoCa checkpoint as one of ours."""

from __future__ import annotations

import argparse
import pickle
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ablate.data.tokenizer import read_tokenizer, require_ids
from assemblies.checkpoint import save
from assemblies.interop import for_plain_pixels, from_open_clip
from blocks import UsageError
from blocks.errors import Parser

DONE, BAD_USAGE = 0, 2


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = Parser(
        prog="ablate convert",
        description="Turn the weights of an open_clip coca_ViT-* into a checkpoint folder. CLIP's "
        "scaling of pixels goes into the patch embedding. Weights are read without pickle's code.",
        epilog="example: ablate convert open_clip_pytorch_model.bin coca-b32 "
        "--tokenizer clip/tokenizer.json",
    )
    top.add_argument("weights", type=Path, help=".safetensors, .bin or .pt: a state dict")
    top.add_argument("out", type=Path, metavar="DIR")
    top.add_argument("--tokenizer", type=Path, required=True, metavar="tokenizer.json")
    top.add_argument(
        "--correct-cls-mask", action="store_true", help="trained with open_clip's correct_cls_mask"
    )
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 2 bad usage."""
    options = parser().parse_args(arguments)
    try:
        if (options.out / "config.json").exists():
            raise UsageError(
                f"{str(options.out)!r} holds a checkpoint already; name another folder"
            )
        tokenizer = read_tokenizer(options.tokenizer)
        state = read_state(options.weights)
        model = from_open_clip(state, legacy_cls_mask=not options.correct_cls_mask)
        require_ids(tokenizer, model.cell.vocabulary, options.tokenizer)
        model = for_plain_pixels(model)
        save(model.cell, model.state_dict(), options.out, tokenizer=tokenizer.to_str())
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_USAGE
    count = sum(parameter.numel() for parameter in model.parameters())
    sizes = f"{count:,} parameters, {model.cell.image.size} px, context {model.cell.context}"
    print(f"{options.out}: {sizes}; ablate caption --checkpoint {options.out} IMAGE")
    return DONE


def read_state(path: Path) -> dict[str, Tensor]:
    """Return a state dict from a file, without running any code that is in it."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is refused next
            found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UsageError(f"cannot read weights {str(path)!r}: {error.strerror or error}") from None
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError):
        raise UsageError(
            f"cannot read weights {str(path)!r}: neither safetensors nor a file of tensors alone "
            "(a pickle with code in it is not run)"
        ) from None
    state = found.get("state_dict", found) if isinstance(found, dict) else {}
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UsageError(f"{str(path)!r} holds no state dict")
    return {name.removeprefix("module."): value for name, value in state.items()}


if __name__ == "__main__":
    sys.exit(main())
