"""Speed of decoding a set for the first time, of opening it again, and of ten processes at once.

    python benchmarks/data_decoding.py        writes benchmarks/data_decoding.json

Everything happens in a cache of its own. Wall seconds: decoding runs in threads.
"""

from __future__ import annotations

import datetime
import json
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image

from ablate.core.recipe import Recipe
from ablate.data import TrainBatches, encode_split, images, open_pairs, open_tokenizer

PHOTOGRAPHS = 1000
PROCESSES = 10
BATCHES = 200


def main() -> None:
    """Measure everything and write the file."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        photographs = f"folder:{write_photographs(Path(place, 'photographs'))}"
        os.environ["COCA_BLOCKS_CACHE"] = str(Path(place, "cache"))
        facts: dict[str, Any] = {
            "date": datetime.date.today().isoformat(),
            "device": f"{platform.machine()}, {os.cpu_count()} CPUs",
            "pillow": PIL.__version__,
            "sets": [
                measure("8,838 WebP of 64 px at 64", "embedded:pictures", 64),
                measure("1,000 JPEG of 640x480 at 64", photographs, 64),
                measure("1,000 JPEG of 640x480 at 224", photographs, 224),
            ],
            "ten processes at once, embedded:icons at 64": at_once("embedded:icons", 64),
        }
    text = json.dumps(facts, indent=2) + "\n"
    Path(__file__).with_suffix(".json").write_text(text, encoding="utf-8")
    print(text)


def write_photographs(directory: Path) -> Path:
    """Write smooth coloured noise as JPEG, about as large as photographs of that size are."""
    directory.mkdir()
    random = np.random.default_rng(0)
    for i in range(PHOTOGRAPHS):
        noise = Image.fromarray(random.integers(0, 255, (60, 80, 3), dtype=np.uint8))
        photograph = noise.resize((640, 480), Image.Resampling.BICUBIC)
        photograph.save(directory / f"{i}.jpg", quality=90)
        (directory / f"{i}.txt").write_text(f"photograph {i}")
    return directory


def measure(name: str, uri: str, size: int) -> dict[str, Any]:
    """Time a set that is decoded, opened again, and read in batches."""
    pairs, cold = timed(lambda: open_pairs(uri, size))
    _, warm = timed(lambda: open_pairs(uri, size))
    split = encode_split(pairs, "train", open_tokenizer(pairs, 1000), 24)
    stream = TrainBatches(split, Recipe(batch=64, crop=1.0), 0)
    _, reading = timed(lambda: [stream[step] for step in range(BATCHES)])
    return {
        "set": name,
        "decoded images per second": round(len(pairs.captions) / cold),
        "opened again in ms": round(1000 * warm, 1),
        "images per second from the cache, in batches of 64": round(64 * BATCHES / reading),
    }


def at_once(uri: str, size: int) -> dict[str, Any]:
    """Count what ten processes that open the same set at the same time decode together."""
    context = multiprocessing.get_context("fork")
    count, decode = context.Value("i", 0), images.decode

    def counted(image: bytes, pixels: int) -> images.Pixels:
        with count.get_lock():
            count.value += 1
        return decode(image, pixels)

    def race() -> None:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    images.decode = counted
    workers = [context.Process(target=open_pairs, args=(uri, size)) for _ in range(PROCESSES)]
    _, seconds = timed(race)
    images.decode = decode
    total = len(open_pairs(uri, size).captions)
    return {"pairs": total, "images decoded": count.value, "seconds": round(seconds, 2)}


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return what some work gives, and the seconds it took."""
    began = time.perf_counter()
    result = work()
    return result, time.perf_counter() - began


if __name__ == "__main__":
    main()
