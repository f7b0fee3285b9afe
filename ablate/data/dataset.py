"""A recipe's data as a cell reads it: pairs, tokenizer, and the encoded splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from ablate.core.recipe import Recipe
from ablate.data.batches import EncodedSplit, encode_split
from ablate.data.pairs import Pairs, open_pairs
from ablate.data.rows import SPLITS
from ablate.data.tokenizer import open_tokenizer, read_tokenizer
from assemblies import CoCaConfig
from assemblies.checkpoint import TOKENIZER


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What a trial trains on and is tested on."""

    pairs: Pairs
    tokenizer: Tokenizer
    splits: dict[str, EncodedSplit]


def open_dataset(
    recipe: Recipe,
    cell: CoCaConfig,
    tokenizer: Tokenizer | None = None,
    names: Sequence[str] = SPLITS,
) -> Dataset:
    """Return a recipe's data, the named splits encoded for a cell.

    The tokenizer is the one given, else the recipe's, else that of the checkpoint that training
    starts from, else one trained on the training captions. Raises `UsageError` where the data
    cannot be used.
    """
    pairs = open_pairs(recipe.data, cell.image.size)
    if tokenizer is not None:
        pass
    elif path := recipe.tokenizer or (recipe.initial and f"{recipe.initial}/{TOKENIZER}"):
        tokenizer = read_tokenizer(Path(path), cell.vocabulary)
    else:
        tokenizer = open_tokenizer(pairs, cell.vocabulary)
    splits = {split: encode_split(pairs, split, tokenizer, cell.context) for split in names}
    return Dataset(pairs=pairs, tokenizer=tokenizer, splits=splits)
