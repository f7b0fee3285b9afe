"""A byte-level BPE tokenizer trained on the training captions, cached by content."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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


def read_tokenizer(checkpoint: Path, vocabulary: int) -> Tokenizer:
    """Return the tokenizer of a checkpoint folder; raises `UsageError` if it cannot be ours."""
    path = checkpoint / "tokenizer.json"
    if not path.is_file():
        raise UsageError(f"checkpoint {str(checkpoint)!r} has no {path.name}")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more precise
        raise UsageError(f"cannot read tokenizer {str(path)!r}: {error}") from None
    marks = [tokenizer.token_to_id(mark) for mark in SPECIAL]
    if marks != [PAD, BEGIN, END]:
        raise UsageError(f"tokenizer {str(path)!r} must have {', '.join(SPECIAL)} as ids 0 to 2")
    if tokenizer.get_vocab_size() > vocabulary:
        raise UsageError(
            f"tokenizer {str(path)!r} has {tokenizer.get_vocab_size()} ids, the model {vocabulary}"
        )
    return tokenizer


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
