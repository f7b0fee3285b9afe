"""Writes one small set in every format that can be read: for tests that compare them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from samples import COLOURS, SHAPES, draw, write_shard


class Item(NamedTuple):
    key: str
    image: bytes
    captions: list[str]


def items(count: int = 200) -> list[Item]:
    """Return pictures that all differ, with two captions each."""
    found = []
    for i in range(count):
        colour, shape = list(COLOURS)[i % 3], SHAPES[i // 3 % 4]
        captions = [f"the {colour} {shape}, number {i}", f'{shape} "{i}" in {colour}']
        found.append(Item(f"{i:06d}", draw(colour, shape, i), captions))
    return found


def write_images(directory: Path, given: Sequence[Item]) -> Path:
    directory.mkdir(parents=True)
    for item in given:
        (directory / f"{item.key}.png").write_bytes(item.image)
    return directory


def as_webdataset(directory: Path, given: Sequence[Item]) -> str:
    directory.mkdir(parents=True)
    for number, start in enumerate(range(0, len(given), 77)):
        members = []
        for item in given[start : start + 77]:
            facts = {"captions": item.captions, "status": "success", "width": 32}
            members += [
                (f"{item.key}.png", item.image),
                (f"{item.key}.json", json.dumps(facts).encode()),
            ]
        write_shard(directory / f"{number:05d}.tar", members)
    return f"webdataset:{directory}/{{00000..{number:05d}}}.tar"


def as_embedded(directory: Path, given: Sequence[Item]) -> str:
    """Write a set into a directory that the test then names as the place of embedded sets."""
    members = []
    for item in given:
        facts = json.dumps({"caption": item.captions[0], "captions": item.captions}).encode()
        members += [(f"{item.key}.png", item.image), (f"{item.key}.json", facts)]
    directory.mkdir(parents=True)
    write_shard(directory / "drawn-64.tar.gz", members, "w:gz")
    return "embedded:drawn"


def as_coco(directory: Path, given: Sequence[Item]) -> str:
    images = write_images(directory / "val2017", given)
    listed = [{"id": 7 * i, "file_name": f"{x.key}.png"} for i, x in enumerate(given)]
    annotations = [
        {"image_id": 7 * i, "id": 1000 * which + i, "caption": f" {x.captions[which]}\n"}
        for which in (1, 0)
        for i, x in reversed(list(enumerate(given)))
    ]
    content = {"info": {}, "licenses": [], "images": listed[::-1], "annotations": annotations}
    path = directory / "captions_val2017.json"
    path.write_text(json.dumps(content))
    return f"coco:{images},{path}"


def as_karpathy(directory: Path, given: Sequence[Item]) -> str:
    write_images(directory / "images" / "val2014", given)
    listed = [
        {
            "filename": f"{item.key}.png",
            "filepath": "val2014",
            "sentences": [{"tokens": text.split(), "raw": text} for text in item.captions],
        }
        for item in given[::-1]
    ]
    path = directory / "dataset_coco.json"
    path.write_text(json.dumps({"images": listed, "dataset": "coco"}))
    return f"karpathy:{directory}/images,{path}"


def as_flickr30k(directory: Path, given: Sequence[Item]) -> str:
    images = write_images(directory / "flickr30k_images", given)
    lines = ["image_name| comment_number| comment"]
    for i, item in enumerate(given):
        for number, text in enumerate(item.captions):
            bar = "  " if (i, number) == (19, 1) else "|"  # the published file's broken line
            lines.append(f"{item.key}.png| {number}{bar} {text} ")
    (directory / "results.csv").write_text("\n".join(lines) + "\n")
    return f"flickr30k:{images},{directory}/results.csv"


def as_csv(directory: Path, given: Sequence[Item]) -> str:
    write_images(directory / "images", given)
    with (directory / "data.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "name", "caption"])
        for item in given:
            writer.writerows([item.key, f"images/{item.key}.png", text] for text in item.captions)
    return f"csv:{directory}/data.csv?image=name&caption=caption"


def as_tsv(directory: Path, given: Sequence[Item]) -> str:
    images = write_images(directory / "elsewhere", given)
    lines = ["filepath\ttitle"]
    for which in (0, 1):
        for item in given:
            text = item.captions[which].replace('"', '""')
            lines.append(f'{item.key}.png\t"{text}"')
    (directory / "data.tsv").write_text("\r\n".join(lines))
    return f"csv:{directory}/data.tsv?image=filepath&caption=title&separator=tab&images={images}"


def as_parquet(directory: Path, given: Sequence[Item]) -> str:
    directory.mkdir(parents=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for number, start in enumerate(range(0, len(given), 77)):
        part = given[start : start + 77]
        images = pa.array([{"bytes": x.image, "path": f"{x.key}.png"} for x in part], kind)
        table = pa.table({"image": images, "caption": [x.captions for x in part]})
        pq.write_table(table, directory / f"train-{number:05d}-of-00003.parquet")
    return f"parquet:{directory}/train-*.parquet"


def as_folder(directory: Path, given: Sequence[Item]) -> str:
    for number, start in enumerate(range(0, len(given), 77)):
        part = write_images(directory / f"{number:05d}", given[start : start + 77])
        for item in given[start : start + 77]:
            (part / f"{item.key}.txt").write_text(item.captions[0])
            (part / f"{item.key}.json").write_text(json.dumps({"captions": item.captions}))
        (directory / f"{number:05d}_stats.json").write_text("{}")  # as img2dataset leaves one
    return f"folder:{directory}"


def as_mixture(directory: Path, given: Sequence[Item]) -> str:
    half = len(given) // 2
    first = as_csv(directory / "first", given[:half])
    return f"mixture:1*{first}; {as_parquet(directory / 'second', given[half:])}"


WRITERS: dict[str, Callable[[Path, Sequence[Item]], str]] = {
    name.removeprefix("as_"): function
    for name, function in list(globals().items())
    if name.startswith("as_")
}
