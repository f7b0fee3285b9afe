from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from packings import WRITERS, as_coco, as_csv, as_folder, as_parquet, items, write_images
from samples import draw, write_shard

from ablate.core.recipe import Recipe
from ablate.data import Pairs, TrainBatches, encode_split, open_pairs, open_tokenizer
from ablate.data import sources as sources_module
from ablate.data.batches import Batch
from ablate.data.pack import pack
from ablate.data.sources import SCHEMES, find_files, open_source
from blocks import UsageError

SIZE = 24


def first_batches(pairs: Pairs) -> list[Batch]:
    split = encode_split(pairs, "train", open_tokenizer(pairs, 400), 24)
    stream = TrainBatches(split, Recipe(batch=16), 0)
    return [stream[step] for step in range(stream.per_epoch + 2)]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    return as_folder(tmp_path_factory.mktemp("formats") / "reference", items()[::-1])


def assert_same(pairs: Pairs, reference: Pairs) -> None:
    assert pairs.fingerprint == reference.fingerprint
    assert np.array_equal(pairs.images, reference.images)
    for name in ("captions", "splits", "groups", "weights", "skipped"):
        assert getattr(pairs, name) == getattr(reference, name), name
    for ours, theirs in zip(first_batches(pairs), first_batches(reference), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", [*WRITERS, "packed"])
def test_the_same_set_in_every_format_gives_identical_batches(
    name: str, reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "packed":
        pack(reference, tmp_path / "out", SIZE, 60, lambda shard: None)
        uri = f"webdataset:{tmp_path}/out/*.tar"
    else:
        uri = WRITERS[name](tmp_path / name, items())
    if name == "embedded":
        monkeypatch.setattr(sources_module, "EMBEDDED", tmp_path / "embedded")
    pairs = open_pairs(uri, SIZE)
    assert len(pairs.captions) == 200
    assert Counter(pairs.splits).keys() == {"train", "val", "test"}
    assert_same(pairs, open_pairs(reference, SIZE))


def test_every_scheme_is_among_the_formats_compared() -> None:
    assert set(SCHEMES) <= set(WRITERS)


def test_the_fingerprint_sees_every_change(tmp_path: Path, reference: str) -> None:
    base, changed = items(), items()
    changed[3] = changed[3]._replace(captions=["another", *changed[3].captions[1:]])
    swapped = [x._replace(captions=x.captions[::-1]) if x.key == "000004" else x for x in base]
    redrawn = [x._replace(image=draw("red", "bar", 24)) if x.key == "000005" else x for x in base]
    prints = {open_pairs(reference, SIZE).fingerprint}
    for i, given in enumerate((changed, swapped, redrawn, base[1:])):
        prints.add(open_pairs(as_folder(tmp_path / str(i), given), SIZE).fingerprint)
    prints.add(open_pairs(reference, SIZE - 1).fingerprint)
    assert len(prints) == 6


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    uri = as_folder(tmp_path / "set", items(20))
    before = open_pairs(uri, SIZE)
    (tmp_path / "set/00000/000003.json").write_text('{"caption": "now something else"}')
    after = open_pairs(uri, SIZE)
    assert after.fingerprint != before.fingerprint
    assert ["now something else"] in after.captions


def splits_by_caption(pairs: Pairs) -> dict[str, str]:
    return {captions[0]: s for captions, s in zip(pairs.captions, pairs.splits, strict=True)}


def test_karpathys_splits_count_restval_as_training(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", items(4))
    listed = [
        {"filename": f"{x.key}.png", "split": split, "sentences": [{"raw": split}]}
        for x, split in zip(items(4), ("train", "restval", "val", "test"), strict=True)
    ]
    (tmp_path / "k.json").write_text(json.dumps({"images": listed}))
    found = splits_by_caption(open_pairs(f"karpathy:{images},{tmp_path}/k.json", SIZE))
    assert found == {"train": "train", "restval": "train", "val": "val", "test": "test"}


def test_csv_and_parquet_splits_are_columns(tmp_path: Path) -> None:
    write_images(tmp_path / "images", items(3))
    splits = ("train", "validation", "test")
    lines = [f"images/{x.key}.png;{s};{s}" for x, s in zip(items(3), splits, strict=True)]
    (tmp_path / "data.csv").write_text("\n".join(["file;text;part", *lines]))
    uri = f"csv:{tmp_path}/data.csv?image=file&caption=text&split=part"
    expected = {"train": "train", "validation": "val", "test": "test"}
    assert splits_by_caption(open_pairs(uri, SIZE)) == expected
    columns = {"jpg": [x.image for x in items(3)], "txt": splits, "part": splits}
    pq.write_table(pa.table(columns), tmp_path / "data.parquet")
    uri = f"parquet:{tmp_path}/data.parquet?split=part"
    assert splits_by_caption(open_pairs(uri, SIZE)) == expected


def test_a_mixture_names_splits_and_draws_by_weight(tmp_path: Path) -> None:
    first = as_csv(tmp_path / "first", items(60)[:30])
    second = as_parquet(tmp_path / "second", items(60)[30:50])
    third = as_coco(tmp_path / "third", items(60)[50:])
    pairs = open_pairs(f"mixture:train=2*{first};train={second};test={third}", SIZE)
    assert Counter(pairs.splits) == {"train": 50, "test": 10}
    numbers = Counter(pairs.indices("train"))
    assert Counter(numbers.values()) == {2: 30, 1: 20}
    split = encode_split(pairs, "train", open_tokenizer(pairs, 400), 24)
    stream = TrainBatches(split, Recipe(batch=8), 0)
    seen = Counter(g for step in range(stream.per_epoch) for g in stream[step].groups.tolist())
    heavy = {pairs.groups[i] for i, count in numbers.items() if count == 2}
    assert sum(seen[group] for group in heavy) == 60
    assert sum(seen.values()) == 80
    plain = open_pairs(f"mixture:train={first};train={second};test={third}", SIZE)
    assert plain.fingerprint != pairs.fingerprint
    assert plain.indices("test") == pairs.indices("test")


def test_no_caption_stands_in_two_splits_and_held_out_ones_are_kept(tmp_path: Path) -> None:
    members = []
    texts = [("train", ["Shared", "own"]), ("val", ["kept"]), ("test", ["shared "])]
    texts += [("train", [f"more {i}"]) for i in range(200)]
    texts += [("train", ["SHARED"])]
    for i, (split, captions) in enumerate(texts):
        facts = json.dumps({"captions": captions, "split": split}).encode()
        members += [(f"{i}.png", draw("red", "dot", i)), (f"{i}.json", facts)]
    pairs = open_pairs(f"webdataset:{write_shard(tmp_path / 'x.tar', members)}", SIZE)
    assert pairs.skipped == {"all its captions also stand in a held-out split": 1}
    assert splits_by_caption(pairs)["shared"] == "test"
    assert splits_by_caption(pairs)["own"] == "train"
    assert len(pairs.captions) == 203


def test_hashed_splits_depend_on_captions_alone(tmp_path: Path) -> None:
    few = splits_by_caption(open_pairs(as_folder(tmp_path / "few", items(50)), SIZE))
    many = splits_by_caption(open_pairs(as_folder(tmp_path / "many", items(200)), SIZE))
    assert few.items() <= many.items()


def test_patterns_expand_braces_and_stars(tmp_path: Path) -> None:
    for i in range(12):
        (tmp_path / f"{i:05d}.tar").touch()
    (tmp_path / "odd{1}.tar").touch()
    assert len(find_files(f"{tmp_path}/{{00003..00010}}.tar")) == 8
    assert len(find_files(f"{tmp_path}/{{00003,0000[0-2]}}.tar")) == 4
    assert len(find_files(f"{tmp_path}/0000?.tar")) == 10
    assert [path.name for path in find_files(f"{tmp_path}/odd{{1}}.tar")] == ["odd{1}.tar"]
    with pytest.raises(UsageError, match=r"no file '.*/00012.tar' \(of "):
        find_files(f"{tmp_path}/{{00000..00012}}.tar")


@pytest.mark.parametrize(("uri", "message"), [
    ("embedded:picture", "no embedded data set named 'picture'; did you mean 'pictures'"),
    ("pictures", "cannot read data 'pictures'; did you mean 'embedded:pictures'"),
    ("webdatset:x", "no kind of data source named 'webdatset'; did you mean 'webdataset'"),
    ("webdataset:/nowhere/*.tar", r"no file matches '/nowhere/\*.tar'"),
    ("webdataset:", "names nothing; write webdataset:PATTERN"),
    ("webdataset:/x/{1..", "cannot expand .*: Unbalanced braces"),
    ("coco:only-one", "write coco:IMAGES,ANNOTATIONS.json"),
    ("coco:{d}/imagse,{d}/data.csv", "no directory '.*imagse'; did you mean '.*/images'"),
    ("coco:{d}/images,{d}/dta.csv", "no file '.*dta.csv'; did you mean '.*/data.csv'"),
    ("coco:{d}/images,{d}/data.csv", "data.csv' is no JSON"),
    ("coco:{d}/images,{d}/k.json", "no list in '.*' named 'annotations'.*known: images"),
    ("karpathy:{d}/images,{d}/list.json", "no list in '.*' named 'images'"),
    ("flickr30k:{d}/images,{d}/data.csv", "no Flickr30k results.csv: its first line is 'id,name"),
    ("csv:{d}/data.csv", "does not say image=COLUMN"),
    ("csv:{d}/data.csv?image=names&caption=caption",
     r"no column of '.*' named 'names'; did you mean 'name'\? \(known: caption, id, name\)"),
    ("csv:{d}/data.csv?image=name&capton=x", "no option named 'capton'; did you mean 'caption'"),
    ("csv:{d}/data.csv?image=name&image=id", "'image' is given twice"),
    ("csv:{d}/data.csv?image=name&caption=caption&separator=comm", "did you mean 'comma'"),
    ("csv:{d}/data.csv?image=name&caption=caption&images=/nowhere", "no directory '/nowhere'"),
    ("csv:{d}/empty.csv?image=a&caption=b", "is empty"),
    ("parquet:{d}/data.csv", "Parquet file '.*' cannot be read"),
    ("parquet:{d}/x.parquet", r"named 'caption'.*known: image, words"),
    ("parquet:{d}/x.parquet?caption=word", "named 'word'; did you mean 'words'"),
    ("folder:{d}/imags", "no directory '.*imags'; did you mean"),
    ("mixture:0.5*embedded:icons;1*embedded:tiles", "a weight must be a whole number.*got '0.5'"),
    ("mixture:0*embedded:icons", "a weight must be a whole number.*got '0'"),
    ("mixture:trian=embedded:icons", "no split named 'trian'; did you mean 'train'"),
    ("mixture:test=2*embedded:icons", "trains nothing"),
    ("mixture:mixture:embedded:icons", "a mixture cannot hold another"),
    ("mixture:;", "names nothing"),
])  # fmt: skip
def test_mistakes_are_named_with_the_nearest_right_thing(
    uri: str, message: str, tmp_path: Path
) -> None:
    as_csv(tmp_path / "d", items(2))
    (tmp_path / "d/empty.csv").write_text("\n")
    (tmp_path / "d/k.json").write_text('{"images": []}')
    (tmp_path / "d/list.json").write_text("[1]")
    table = pa.table({"image": [items(1)[0].image], "words": ["a"]})
    pq.write_table(table, tmp_path / "d/x.parquet")
    with pytest.raises(UsageError, match=message) as caught:
        open_pairs(uri.replace("{d}", str(tmp_path / "d")), SIZE)
    assert "\n" not in str(caught.value)


def test_a_source_yields_rows_as_the_documents_say(tmp_path: Path) -> None:
    row = next(open_source(as_coco(tmp_path / "x", items(3))).rows())
    assert row.image in [item.image for item in items(3)]
    assert (row.split, row.problem, row.weight) == (None, "", 1)


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it closes no file
def test_webdataset_reads_what_pack_writes(tmp_path: Path, reference: str) -> None:
    import webdataset  # type: ignore[import-untyped]

    pack(reference, tmp_path, 32, 150, lambda shard: None)
    samples = list(webdataset.WebDataset(f"{tmp_path}/{{00000..00001}}.tar", shardshuffle=False))
    assert len(samples) == 200
    assert {"webp", "txt", "json", "__key__"} <= set(samples[0])
