"""Tokenizers: byte-level BPE trained on the training captions, or any `tokenizer.json`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from ablate.core.files import atomic, cache_directory, digest
from ablate.data.pairs import Pairs
from assemblies import Marks
from blocks import UsageError

SPECIAL = ("<pad>", "<begin>", "<end>")  # of those that we train: ids 0 to 2
# What others call the marks around a text: CLIP, RoBERTa, Gemma, BERT.
BEGIN_MARKS = ("<begin>", "<|startoftext|>", "<s>", "<bos>", "[CLS]")
END_MARKS = ("<end>", "<|endoftext|>", "</s>", "<eos>", "[SEP]")
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


def read_tokenizer(path: Path, vocabulary: int | None = None) -> Tokenizer:
    """Return the tokenizer of a `tokenizer.json`; raises `UsageError` if a model cannot use it."""
    if not path.is_file():
        raise UsageError(f"there is no tokenizer {str(path)!r}")
    try:
        tokenizer = Tokenizer.from_file(str(path))
        marks_of(tokenizer)
    except Exception as error:  # the library raises nothing more precise
        raise UsageError(f"cannot read tokenizer {str(path)!r}: {error}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if vocabulary is not None:
        require_ids(tokenizer, vocabulary, path)
    return tokenizer


def require_ids(tokenizer: Tokenizer, vocabulary: int, path: Path) -> None:
    """Refuse a tokenizer with more ids than a model has."""
    if tokenizer.get_vocab_size() > vocabulary:
        raise UsageError(
            f"tokenizer {str(path)!r} has {tokenizer.get_vocab_size()} ids, the model {vocabulary}"
        )


def marks_of(tokenizer: Tokenizer) -> Marks:
    """Return a tokenizer's begin and end marks, by their usual names, and its number of ids."""
    begin, end = (
        next((i for name in names if (i := tokenizer.token_to_id(name)) is not None), None)
        for names in (BEGIN_MARKS, END_MARKS)
    )
    if begin is None or end is None:
        raise UsageError(
            f"it must have a begin mark ({', '.join(BEGIN_MARKS)}) and an end mark "
            f"({', '.join(END_MARKS)})"
        )
    pad = tokenizer.token_to_id(SPECIAL[0])
    size = tokenizer.get_vocab_size()
    return Marks(begin=begin, end=end, pad=begin if pad is None else pad, known=size)


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
    marks = marks_of(tokenizer)
    encoded = tokenizer.encode_batch(list(captions), add_special_tokens=False)
    return [[marks.begin, *item.ids[: context - 2], marks.end] for item in encoded]
