from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from samples import draw, foreign_tokenizer, shapes_rows, small, write_shard

from ablate.core.recipe import Recipe
from ablate.data import TrainBatches, encode_split, evaluation_batches, open_pairs, open_tokenizer
from ablate.data.batches import Prefetched, augment
from ablate.data.dataset import open_dataset
from ablate.data.pairs import group_by_caption
from ablate.data.sources import EMBEDDED, embedded_names
from ablate.data.tokenizer import encode, marks_of, read_tokenizer
from blocks import UsageError

Shard = Callable[..., str]


def test_embedded_sets_have_the_counts_of_their_readme() -> None:
    counts = {"pictures": 8838, "icons": 6699, "tiles": 3868, "figures": 1552, "stamps": 864}
    assert embedded_names() == sorted(counts)
    assert len(open_pairs("embedded:stamps", 16).captions) == counts["stamps"]


@pytest.mark.parametrize("name", ["stamps", "figures"])
def test_no_caption_stands_in_two_splits(name: str) -> None:
    pairs = open_pairs(f"embedded:{name}", 16)
    where: dict[str, set[str]] = {}
    for captions, split in zip(pairs.captions, pairs.splits, strict=True):
        for caption in captions:
            where.setdefault(caption.casefold(), set()).add(split)
    assert {c for c, splits in where.items() if len(splits) > 1} == set()
    assert set(pairs.splits) == {"train", "val", "test"}


def test_embedded_sets_carry_their_licences() -> None:
    text = (EMBEDDED / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in embedded_names())
    for licence in (EMBEDDED / "LICENSES").iterdir():
        assert f"LICENSES/{licence.name}" in text


def test_a_set_is_decoded_once(shapes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_pairs(shapes, 24)
    monkeypatch.setattr("ablate.data.images.decode", None)
    again = open_pairs(shapes, 24)
    assert isinstance(again.images, np.memmap)
    assert again.fingerprint == first.fingerprint
    assert np.array_equal(again.images, first.images)


def test_the_fingerprint_is_of_content_not_of_place(tmp_path: Path, shapes: str) -> None:
    members = shapes_rows()
    moved = write_shard(tmp_path / "other.tar.gz", members, "w:gz")
    assert open_pairs(f"webdataset:{moved}", 24).fingerprint == open_pairs(shapes, 24).fingerprint
    half = write_shard(tmp_path / "half.tar", members[:200])
    fewer = open_pairs(f"webdataset:{half}", 24)
    assert fewer.fingerprint != open_pairs(shapes, 24).fingerprint


def test_pairs_that_share_a_caption_are_one_group() -> None:
    groups = group_by_caption([["A cat", "cat"], ["dog"], ["Cat"], ["a  dog"], ["DOG", "hound"]])
    assert groups[0] == groups[2]
    assert groups[1] == groups[4]
    assert len(set(groups)) == 3


def test_sets_without_splits_are_split_by_caption(shard: Shard) -> None:
    members = [(f"{i}.png", draw("red", "dot", i)) for i in range(200)]
    members += [(f"{i}.txt", f"thing {i // 2}".encode()) for i in range(200)]
    pairs = open_pairs(shard(sorted(members)), 16)
    assert set(pairs.splits) == {"train", "val", "test"}
    for i in range(0, 200, 2):
        same = [s for s, c in zip(pairs.splits, pairs.captions, strict=True) if c == [f"thing {i}"]]
        assert len(set(same)) <= 1


def test_tokenizer_round_trip_and_cache(shapes: str) -> None:
    pairs = open_pairs(shapes, 24)
    tokenizer = open_tokenizer(pairs, 400)
    assert tokenizer.get_vocab_size() <= 400
    text = "a red square number 7, unseen 漢字"
    (ids,) = encode(tokenizer, [text], 200)
    assert (ids[0], ids[-1]) == (1, 2)
    assert tokenizer.decode(ids).strip() == text
    (cut,) = encode(tokenizer, [text], 6)
    assert len(cut) == 6
    assert cut[-1] == 2
    assert open_tokenizer(pairs, 400).to_str() == tokenizer.to_str()


def batches(shapes: str, seed: int = 0, **recipe: object) -> TrainBatches:
    pairs = open_pairs(shapes, 24)
    split = encode_split(pairs, "train", open_tokenizer(pairs, 400), 24)
    return TrainBatches(split, Recipe(**{"batch": 16, **recipe}), seed)  # type: ignore[arg-type]


def test_batches_depend_on_seed_and_step_alone(shapes: str) -> None:
    first, second = batches(shapes), batches(shapes)
    expected = [first[step] for step in range(25)]
    for step in (24, 3, 11):  # any order: training goes on at any step
        for got, wanted in zip(second[step], expected[step], strict=True):
            assert torch.equal(got, wanted)
    assert not torch.equal(batches(shapes, seed=1)[0].tokens, expected[0].tokens)


def test_an_epoch_shows_each_pair_once_with_either_caption(shapes: str) -> None:
    stream = batches(shapes)
    seen = [g for step in range(stream.per_epoch) for g in stream[step].groups.tolist()]
    assert len(seen) == len(set(seen)) == 160
    lengths = {int(n) for step in range(20) for n in stream[step].lengths}
    assert len(lengths) > 2


def test_batches_are_padded_to_the_longest_caption_only(shapes: str) -> None:
    batch = batches(shapes)[0]
    longest = int(batch.lengths.max())
    assert longest <= batch.tokens.shape[1] < longest + 4
    for row, length in zip(batch.tokens, batch.lengths, strict=True):
        assert (row[length:] == 0).all()
        assert row[length - 1] == 2
    assert batch.images.shape == (16, 3, 24, 24)
    assert batch.images.min() >= -1
    assert batch.images.max() <= 1


def test_batches_made_ahead_are_the_same(shapes: str) -> None:
    plain = batches(shapes)
    ahead = Prefetched(batches(shapes), threads=3, steps=25)
    for step in [*range(25), 4, 5]:  # training may go on at any step
        for got, expected in zip(ahead[step], plain[step], strict=True):
            assert torch.equal(got, expected)
    ahead.close()


def test_buckets_put_lengths_together_and_show_each_pair_once(tmp_path: Path) -> None:
    members = []
    for i in range(128):
        text = " ".join(["word"] * (1 + 7 * i % 20)) + f" {i}"
        facts = {"caption": text, "split": ("train", "val", "test")[(i > 120) + (i > 123)]}
        members += [(f"{i:03d}.png", draw("red", "dot", i)),
                    (f"{i:03d}.json", json.dumps(facts).encode())]  # fmt: skip
    data = f"webdataset:{write_shard(tmp_path / 'a.tar', members)}"

    def spread(bucket: int) -> float:
        stream = batches(data, bucket=bucket)
        every = [stream[step] for step in range(stream.per_epoch)]
        seen = [g for batch in every for g in batch.groups.tolist()]
        assert len(seen) == len(set(seen)) == 112
        return sum(float(b.lengths.float().std()) for b in every)

    assert spread(7) < 0.4 * spread(0)
    windowed = batches(data, bucket=2)
    assert torch.equal(windowed[3].tokens, batches(data, bucket=2)[3].tokens)


def test_any_tokenizer_with_marks_can_be_used(shapes: str, tmp_path: Path) -> None:
    path = foreign_tokenizer(tmp_path / "t.json", "<|startoftext|>", "<|endoftext|>")
    tokenizer = read_tokenizer(path, 100)
    marks = marks_of(tokenizer)
    assert (marks.begin, marks.end) == (6, 7)
    assert encode(tokenizer, ["a red square"], 24) == [[6, 1, 2, 5, 7]]
    recipe = Recipe(data=shapes, tokenizer=str(path))
    cell = small(vocabulary=100)
    data = open_dataset(recipe, cell)
    assert data.splits["train"].ids[0][0][0] == 6
    with pytest.raises(UsageError, match="has 9 ids, the model 8"):
        read_tokenizer(path, 8)
    with pytest.raises(UsageError, match="must have a begin mark"):
        read_tokenizer(foreign_tokenizer(tmp_path / "u.json", "<x>"), 100)
    with pytest.raises(UsageError, match="there is no tokenizer"):
        open_dataset(Recipe(data=shapes, tokenizer="nowhere.json"), cell)
    with pytest.raises(UsageError, match="leave tokenizer empty"):
        Recipe(initial="model", tokenizer=str(path))


def test_augmentation_crops_and_flips() -> None:
    images = torch.rand(4, 3, 8, 8)
    generator = torch.Generator().manual_seed(0)
    assert augment(images, 1.0, 0.0, generator) is images
    flipped = augment(images, 1.0, 1.0, generator)
    torch.testing.assert_close(flipped, images.flip(-1), atol=1e-5, rtol=1e-5)
    cropped = augment(images, 0.5, 0.0, generator)
    assert not torch.allclose(cropped, images, atol=0.05)
    assert cropped.min() >= images.min() - 1e-6
    assert cropped.max() <= images.max() + 1e-6


def test_a_set_smaller_than_a_batch_is_refused(shapes: str) -> None:
    with pytest.raises(UsageError, match="has 160 pairs, fewer than a batch of 500"):
        batches(shapes, batch=500)


def test_evaluation_order_is_fixed_and_whole(shapes: str) -> None:
    pairs = open_pairs(shapes, 24)
    split = encode_split(pairs, "val", open_tokenizer(pairs, 400), 24)
    found = list(evaluation_batches(split, 8))
    assert [full for _, full in found] == [True, True, False]
    groups = [g for batch, _ in found for g in batch.groups.tolist()]
    assert sorted(groups) == sorted(split.groups.tolist())


def test_a_single_string_is_one_caption(shard: Shard) -> None:
    pair = [("x.png", draw("red", "dot", 1)), ("x.json", b'{"captions": "only one"}')]
    assert open_pairs(shard(pair), 16).captions == [["only one"]]
