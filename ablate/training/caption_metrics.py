"""Scores of generated captions against people's: BLEU-4, ROUGE-L and CIDEr-D, as COCO defines them.

A word is a run of letters and digits, lower-cased; hyphens inside it stay (``t-shirt``), an
apostrophe begins a word of its own (``dog's`` is ``dog`` and ``'s``), all other punctuation is
removed. COCO's own PTB tokenizer, a Java program, keeps brackets (as ``-lrb-``), signs such as
``&``, and ``3.5`` as one word; docs/log.md has by how little the scores differ. Captions in scripts
without blanks must be segmented before.
"""

from __future__ import annotations

import functools
import math
import operator
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from blocks import UsageError

WORD = re.compile(r"\w+(?:-\w+)*|(?<=\w)'\w+")
LONGEST = 4  # words in the longest n-gram of BLEU-4 and CIDEr-D
ROUGE_BETA = 1.2  # COCO's weight of recall over precision
CIDER_SIGMA = 6.0  # words by which a caption's length may differ before it costs much

Words = Sequence[str]
Gram = tuple[str, ...]


def caption_metrics(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Score one candidate caption per image against the image's reference captions.

    ``bleu4`` and ``rouge_l`` go from 0 to 1, ``cider`` from 0 to 10; more is better. Image i has
    ``candidates[i]``, which may be empty and then scores 0, and one or more ``references[i]``.
    CIDEr takes document frequencies from these references: compare it only on the same images,
    and not on a single one, where it is 0.
    """
    if len(candidates) != len(references):
        raise UsageError(
            f"each image needs one candidate and its references, got {len(candidates)} candidates "
            f"and references of {len(references)} images"
        )
    if not candidates:
        raise UsageError("no image to score, got empty lists of candidates and references")
    said = [words(caption) for caption in candidates]
    references_in_words = [[words(caption) for caption in captions] for captions in references]
    for image, captions in enumerate(references_in_words):
        if not any(captions):
            got = list(references[image])
            raise UsageError(f"image {image} needs a reference with a word in it, got {got}")
    rouge = [
        rouge_l(caption, captions)
        for caption, captions in zip(said, references_in_words, strict=True)
    ]
    return {
        "bleu4": bleu(said, references_in_words),
        "rouge_l": float(np.mean(rouge)),
        "cider": cider(said, references_in_words),
    }


def words(caption: str) -> list[str]:
    """Split a caption into lower-case words without punctuation, by the rule of this module."""
    return WORD.findall(caption.lower().replace("\u2019", "'"))


def ngrams(caption: Words, n: int) -> Counter[Gram]:
    """Count the runs of n words in a caption."""
    return Counter(zip(*(caption[i:] for i in range(n)), strict=False))


def clipped_matches(candidate: Words, references: Sequence[Words], n: int) -> tuple[int, int]:
    """Count a candidate's n-grams that references confirm, and all of them (ACL P02-1040).

    An n-gram is confirmed at most as often as the one reference that has it most often has it.
    """
    counts = ngrams(candidate, n)
    most = functools.reduce(operator.or_, (ngrams(reference, n) for reference in references))
    return (counts & most).total(), counts.total()


def bleu(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """Score a whole corpus by BLEU-4, 0 to 1 (ACL P02-1040).

    The geometric mean of the clipped precisions for n = 1 to 4, counts summed over the images,
    times the brevity penalty by the references closest in length (the shorter of two).
    """
    pairs = list(zip(candidates, references, strict=True))
    precisions: list[float] = []
    for n in range(1, LONGEST + 1):
        matches = np.array([clipped_matches(*pair, n) for pair in pairs])  # [images 2]
        matched, total = matches.sum(axis=0).tolist()
        if not matched:
            return 0.0
        precisions.append(matched / total)
    length = sum(len(candidate) for candidate, _ in pairs)
    reference_length = sum(_closest(len(candidate), captions) for candidate, captions in pairs)
    return math.exp(min(0.0, 1 - reference_length / length)) * math.prod(precisions) ** (
        1 / LONGEST
    )


def _closest(length: int, references: Sequence[Words]) -> int:
    return min((abs(len(reference) - length), len(reference)) for reference in references)[1]


def rouge_l(candidate: Words, references: Sequence[Words], beta: float = ROUGE_BETA) -> float:
    """Score one caption by its longest common subsequences, 0 to 1 (ROUGE-L, ACL W04-1013).

    The F measure of the best precision and the best recall over the references, as COCO takes it.
    """
    common = [(_common_subsequence(candidate, reference), reference) for reference in references]
    if not any(length for length, _ in common):
        return 0.0
    precision = max(length for length, _ in common) / len(candidate)
    recall = max(length / len(reference) for length, reference in common if reference)
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def _common_subsequence(a: Words, b: Words) -> int:
    """Return the length of the longest common subsequence, row by row of the usual table."""
    row = [0] * (len(b) + 1)
    for token in a:
        before = row
        row = [0]
        for j, right in enumerate(b):
            row.append(before[j] + 1 if token == right else max(before[j + 1], row[j]))
    return row[-1]


def cider(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """Score a corpus by CIDEr-D, 0 to 10 (arXiv:1411.5726), the mean over n-grams of 1 to 4 words.

    For each n: the mean over images of the mean over references of the clipped TF-IDF cosine times
    a Gaussian of the difference in length.
    """
    scores = [_cider_of(candidates, references, n) for n in range(1, LONGEST + 1)]
    return 10 * float(np.mean(scores))


def _cider_of(candidates: Sequence[Words], references: Sequence[Sequence[Words]], n: int) -> float:
    grams = [[ngrams(caption, n) for caption in captions] for captions in references]
    images = Counter(gram for captions in grams for gram in set().union(*captions))

    def weigh(counts: Counter[Gram]) -> dict[Gram, float]:
        return {g: count * math.log(len(grams) / max(1, images[g])) for g, count in counts.items()}

    scores = []
    for candidate, captions, counts in zip(candidates, references, grams, strict=True):
        weights = weigh(ngrams(candidate, n))
        gaps = [len(candidate) - len(caption) for caption in captions]
        penalties = [math.exp(-(gap**2) / (2 * CIDER_SIGMA**2)) for gap in gaps]
        cosines = [_clipped_cosine(weights, weigh(count)) for count in counts]
        scores.append(np.mean(np.multiply(penalties, cosines)))
    return float(np.mean(scores))


def _clipped_cosine(candidate: Mapping[Gram, float], reference: Mapping[Gram, float]) -> float:
    """Return the cosine of two sparse vectors, the candidate's entries cut to the reference's."""
    shared = candidate.keys() & reference.keys()
    product = math.fsum(min(candidate[g], reference[g]) * reference[g] for g in shared)
    norms = math.hypot(*candidate.values()) * math.hypot(*reference.values())
    return product / norms if norms else 0.0
