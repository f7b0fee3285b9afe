"""Every command of docs/data.md, on small sets that stand where the document says."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import options_of
from packings import (
    as_coco,
    as_csv,
    as_flickr30k,
    as_folder,
    as_karpathy,
    as_webdataset,
    items,
    write_images,
)

from ablate.cli.command import main
from ablate.data import open_pairs

DOCUMENT = Path(__file__).parents[3] / "docs/data.md"


def write_sets(data: Path) -> None:
    """Write what the document's paths name."""
    train, val, test = items()[:120], items()[120:160], items()[160:]
    as_webdataset(data / "cc12m", items()[:100])  # two shards
    for part, given in (("train", train), ("val", val)):
        as_coco(data / part, given)
        shutil.copytree(data / part / "val2017", data / f"coco/{part}2017")
        (data / "coco/annotations").mkdir(exist_ok=True)
        listing = data / f"coco/annotations/captions_{part}2017.json"
        shutil.copy(data / part / "captions_val2017.json", listing)
    as_karpathy(data / "karpathy", val)
    shutil.copytree(data / "karpathy/images/val2014", data / "coco/val2014")
    shutil.copy(data / "karpathy/dataset_coco.json", data / "coco")
    as_flickr30k(data / "flickr30k", train)
    listing = (data / "karpathy/dataset_coco.json").read_text().replace('"val2014"', "null")
    (data / "flickr30k/dataset_flickr30k.json").write_text(listing)
    for item in val:
        (data / f"flickr30k/flickr30k_images/{item.key}.png").write_bytes(item.image)
    names = {"train": "train", "validation": "val", "test": "test"}
    for (part, name), given in zip(names.items(), (train, val, test), strict=True):
        as_csv(data / part / "table", given)
        place = data / "roco/all_data" / part
        write_images(place / "radiology/images", given)
        table = (data / part / "table/data.csv").read_text().replace("images/", "")
        (place / f"radiology{name}data.csv").write_text(table)
        for where, column in (("set", "caption"), ("flickr8k/data", "caption_0")):
            (data / where).mkdir(parents=True, exist_ok=True)
            columns = {"image": [x.image for x in given], column: [x.captions[0] for x in given]}
            path = data / where / f"{part}-00000-of-00001.parquet"
            pq.write_table(pa.table(columns), path)
    as_folder(data / "mine", train)


def test_the_commands_of_the_document_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    write_sets(data)
    monkeypatch.chdir(tmp_path)
    text = re.sub(r"(?<!\w)/data/", f"{data}/", DOCUMENT.read_text(encoding="utf-8"))
    fences = re.findall(r"^```sh\n(.*?)^```$", text.replace("01242", "00001"), re.M | re.S)
    commands = [shlex.split(line) for fence in fences for line in fence.splitlines()]
    for command in commands:
        if command[0] == "cd":
            monkeypatch.chdir(command[1])
        elif command[:3] == ["python", "-m", "ablate.run"]:
            open_pairs(options_of(*command[3:]).set["data"], 16)
        else:
            assert command[:2] == ["ablate", "data"]
            small = [] if "--size" in command else ["--size", "16"]
            assert main([*command[1:], *small]) == 0, command
            assert "skipped: " not in capsys.readouterr().out, command
    assert len(commands) > 12
