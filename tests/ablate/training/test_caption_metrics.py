from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest

from ablate.training.caption_metrics import (
    bleu,
    caption_metrics,
    cider,
    clipped_matches,
    rouge_l,
    words,
)
from blocks import UsageError

VOCABULARY = words("a the cat dog bird sits stands on under near red green mat tree")
DIFFERENT = ["A red cat sits on a mat.", "Two birds fly over the sea", "one tree, no leaves at all"]


def corpus(images: int, seed: int) -> tuple[list[str], list[list[str]]]:
    """Make up captions: 1 to 5 references, and a candidate that is one of them with edits."""
    rng = random.Random(seed)
    candidates, references = [], []
    for _ in range(images):
        captions = [rng.choices(VOCABULARY, k=rng.randint(1, 14)) for _ in range(rng.randint(1, 5))]
        edited = [w if rng.random() < 0.8 else rng.choice(VOCABULARY) for w in captions[0]]
        candidates.append(" ".join(edited[: rng.randint(0, 14)]))
        references.append([" ".join(caption) for caption in captions])
    return candidates, references


def test_words() -> None:
    text = "A man's T-shirt \u2014 \u201cred\u201d, (not 'blue'): it\u2019s no. 5!"
    expected = ["a", "man", "'s", "t-shirt", "red", "not", "blue", "it", "'s", "no", "5"]
    assert words(text) == expected
    assert words(" ...!? ") == []


def test_the_bleu_papers_clipped_precisions() -> None:
    cat = [words("The cat is on the mat."), words("There is a cat on the mat.")]
    assert Fraction(*clipped_matches(["the"] * 7, cat, 1)) == Fraction(2, 7)
    first = words(
        "It is a guide to action which ensures that the military always obeys the commands of the "
        "party."
    )
    second = words(
        "It is to insure the troops forever hearing the activity guidebook that party direct."
    )
    people = [
        words("It is a guide to action that ensures that the military will forever heed Party "
              "commands."),
        words("It is the guiding principle which guarantees the military forces always being under "
              "the command of the Party."),
        words("It is the practical guide for the army always to heed the directions of the party."),
    ]  # fmt: skip
    assert clipped_matches(first, people, 1) == (17, 18)
    assert clipped_matches(second, people, 1) == (8, 14)
    assert clipped_matches(first, people, 2) == (10, 17)
    assert clipped_matches(second, people, 2) == (1, 13)


def test_bleu_sums_counts_over_the_corpus_and_punishes_brevity() -> None:
    # Matches of 1 to 4 words: 5+1 of 6+1, 4+0 of 5, 3 of 4, 2 of 3; 7 words said, 5+3 wanted:
    # the first candidate is as far from 5 as from 7 words, and the shorter counts.
    candidates = [words("a b c d e x"), words("f")]
    references = [[words("a b c d e"), words("p q r s t u v")], [words("f g h")]]
    expected = (6 / 7 * 4 / 5 * 3 / 4 * 2 / 3) ** (1 / 4) * math.exp(1 - 8 / 7)
    assert bleu(candidates, references) == pytest.approx(expected)


def test_a_long_candidate_earns_no_bonus_and_one_without_a_run_of_four_has_bleu_zero() -> None:
    long = bleu([words("a b c d e")], [[words("a b c d")]])
    assert long == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4))
    assert bleu([words("a b c x d e f")], [[words("a b c d e f")]]) == 0


@pytest.mark.parametrize(
    ("candidate", "score"),
    [("police kill the gunman", 3 / 4), ("the gunman kill police", 1 / 2),
     ("the gunman police killed", 1 / 2)],
)  # fmt: skip
def test_the_rouge_papers_sentences(candidate: str, score: float) -> None:
    reference = words("police killed the gunman")
    assert rouge_l(words(candidate), [reference], beta=1) == pytest.approx(score)


def test_rouge_takes_the_best_precision_and_the_best_recall_with_cocos_beta() -> None:
    # Precision 3/4 from the first reference, recall 2/2 from the second.
    found = rouge_l(words("a b c d"), [words("a b x c y z"), words("c d")])
    assert found == pytest.approx(2.44 * (3 / 4) * 1 / (1 + 1.44 * (3 / 4)))


def test_a_hand_computed_cider_d() -> None:
    # "the" and "a" are in both images and weigh 0; all else weighs log 2, which the cosines cancel.
    candidates = [words("cat cat the"), words("dog")]
    references = [[words("cat sat the"), words("cat a")], [words("the a dog")]]
    # In words, the first image: (2, 0) cut to (1, 0) against (1, 1), then against (1), which is
    # one word shorter. The second: 1 against 1, two words longer. No longer n-gram is shared.
    first = (1 / (2 * math.sqrt(2)) + math.exp(-(1**2) / 72) * 1 / 2) / 2
    second = math.exp(-(2**2) / 72)
    assert cider(candidates, references) == pytest.approx(10 / 4 * (first + second) / 2)


def test_a_caption_that_equals_its_reference_is_perfect() -> None:
    found = caption_metrics([c.upper() for c in DIFFERENT], [[c] for c in DIFFERENT])
    assert found == pytest.approx({"bleu4": 1, "rouge_l": 1, "cider": 10})


def test_an_empty_caption_scores_zero() -> None:
    references = [[c] for c in DIFFERENT]
    assert caption_metrics(["", "...", ""], references) == {"bleu4": 0, "rouge_l": 0, "cider": 0}
    found = caption_metrics([*DIFFERENT[:2], ""], references)
    assert (found["rouge_l"], found["cider"]) == pytest.approx((2 / 3, 20 / 3))
    assert found["bleu4"] == pytest.approx(math.exp(1 - 19 / 13))  # words of all three, of two


def test_wrong_captions_score_less_than_right_ones() -> None:
    candidates, references = corpus(50, seed=1)
    right = caption_metrics(candidates, references)
    wrong = caption_metrics(candidates[1:] + candidates[:1], references)
    assert all(right[name] > 1.5 * wrong[name] for name in right)


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        (["a"], [["a"], ["b"]], "got 1 candidates and references of 2 images"),
        ([], [], "no image"),
        (["a", "b"], [["a"], []], r"image 1 needs a reference.*got \[\]"),
        (["a"], [["..."]], r"image 0 needs a reference with a word.*got \['...'\]"),
    ],
)
def test_errors(candidates: list[str], references: list[list[str]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        caption_metrics(candidates, references)


@pytest.mark.peer
@pytest.mark.parametrize("seed", range(5))
def test_against_the_coco_evaluation(seed: int) -> None:
    Bleu = pytest.importorskip("pycocoevalcap.bleu.bleu").Bleu  # noqa: N806
    Rouge = pytest.importorskip("pycocoevalcap.rouge.rouge").Rouge  # noqa: N806
    Cider = pytest.importorskip("pycocoevalcap.cider.cider").Cider  # noqa: N806
    candidates, references = corpus(60, seed)
    theirs = dict(enumerate(references)), {i: [c] for i, c in enumerate(candidates)}
    expected = {
        "bleu4": Bleu(4).compute_score(*theirs)[0][3],
        "rouge_l": Rouge().compute_score(*theirs)[0],
        "cider": Cider().compute_score(*theirs)[0],
    }
    assert caption_metrics(candidates, references) == pytest.approx(expected, abs=1e-6, rel=0)
