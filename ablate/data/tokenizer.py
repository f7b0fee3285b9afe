"""A byte-level BPE tokenizer trained on the training captions, cached by content."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from ablate.data.pairs import Pairs
from ablate.files import atomic, cache_directory, digest
from blocks import UsageError

PAD, BEGIN, END = 0, 1, 2
SPECIAL = ("<pad>", "<begin>", "<end>")
SMALLEST = len(SPECIAL) + 256
TOKENIZER_VERSION = 1


def open_tokenizer(pairs: Pairs, vocabulary: int) -> Tokenizer:
    """Return the tokenizer for a set, with at most ``vocabulary`` ids; trained on its train split.

    A small set may have fewer merges to offer, hence fewer ids.
    """
    if vocabulary < SMALLEST:
        raise UsageError(f"vocabulary must be at least {SMALLEST} (all bytes), got {vocabulary}")
    captions = [caption for i in pairs.indices("train") for caption in pairs.captions[i]]
    key = digest([TOKENIZER_VERSION, vocabulary, captions])
    path = cache_directory() / "tokenizers" / f"{key[:32]}.json"
    if not path.exists():
        with atomic(path) as temporary:
            train_tokenizer(captions, vocabulary).save(str(temporary))
    return Tokenizer.from_file(str(path))


def train_tokenizer(captions: Sequence[str], vocabulary: int) -> Tokenizer:
    """Train lower-cased byte-level BPE (arXiv 1508.07909): no text is unknown to it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, captions: Sequence[str], context: int) -> list[list[int]]:
    """Return ids with begin and end marks, cut to ``context`` ids with the end mark kept."""
    encoded = tokenizer.encode_batch(list(captions), add_special_tokens=False)
    return [[BEGIN, *item.ids[: context - 2], END] for item in encoded]
