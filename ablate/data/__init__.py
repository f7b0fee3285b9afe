"""Image-caption data: sources, tokenizer, batches, and the embedded real sets."""

from __future__ import annotations

from ablate.data.batches import (
    EncodedSplit,
    TrainBatches,
    encode_split,
    evaluation_batches,
    mixed_order,
)
from ablate.data.pairs import Pairs, open_pairs
from ablate.data.rows import SPLITS
from ablate.data.tokenizer import open_tokenizer

__all__ = [
    "SPLITS",
    "EncodedSplit",
    "Pairs",
    "TrainBatches",
    "encode_split",
    "evaluation_batches",
    "mixed_order",
    "open_pairs",
    "open_tokenizer",
]
