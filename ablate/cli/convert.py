"""`ablate convert`: an open_clip CoCa checkpoint as one of ours."""

from __future__ import annotations

import argparse
import pickle
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ablate.data.tokenizer import read_tokenizer, require_ids
from assemblies.checkpoint import save
from assemblies.interop import for_plain_pixels, from_open_clip
from blocks import UsageError

DONE = 0


def main(options: argparse.Namespace) -> int:
    """Write the checkpoint folder; return the exit code."""
    if (options.out / "config.json").exists():
        raise UsageError(f"{str(options.out)!r} holds a checkpoint already; name another folder")
    tokenizer = read_tokenizer(options.tokenizer)
    state = read_state(options.weights)
    model = from_open_clip(state, legacy_cls_mask=not options.correct_cls_mask)
    require_ids(tokenizer, model.cell.vocabulary, options.tokenizer)
    model = for_plain_pixels(model)
    save(model.cell, model.state_dict(), options.out, tokenizer=tokenizer.to_str())
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
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UsageError(f"cannot read weights {str(path)!r}: {error.strerror or error}") from None
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError):
        raise UsageError(
            f"cannot read weights {str(path)!r}: neither safetensors nor a file of tensors alone "
            "(a pickle with code in it is not run)"
        ) from None
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UsageError(f"{str(path)!r} holds no state dict")
    return {name.removeprefix("module."): value for name, value in state.items()}
