"""How much faster captions come with keys and values cached: `python benchmarks/generation.py`.

Both ways are timed in turn in one process, on the same images and with the same model (random
weights), until each caption has exactly 32 tokens. ``decoding`` leaves out the image tower, which
is the same work for both; ``whole`` is `generate` as a user calls it. Ratios are medians of the
rounds' ratios. Writes generation.json beside itself.
"""

from __future__ import annotations

import datetime
import json
import platform
import statistics
import time
from pathlib import Path

import torch

from assemblies import CoCa, Decoding, Marks, generate, preset
from assemblies.generate import Decoder, follow

SIZE, IMAGES, TOKENS, ROUNDS = "base", 8, 32, 3


def timed(model: CoCa, images: torch.Tensor, *, cache: bool) -> tuple[float, float, torch.Tensor]:
    """Return the seconds of decoding alone, and of all, and the tokens."""
    decoding = Decoding(minimum=TOKENS, maximum=TOKENS, cache=cache)
    with torch.no_grad():
        decoder = Decoder(model, images, cache=cache)
        synchronise(images)
        began = time.perf_counter()
        tokens = follow(decoder, Marks(), decoding, TOKENS).tokens
        synchronise(images)
        alone = time.perf_counter() - began
    began = time.perf_counter()
    generate(model, images, decoding=decoding)
    synchronise(images)
    return alone, time.perf_counter() - began, tokens


def synchronise(images: torch.Tensor) -> None:
    """Wait for the GPU, if that is where the work is done."""
    if images.is_cuda:
        torch.cuda.synchronize()


def main() -> None:
    """Time, print and write the result."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cell = preset("grr", SIZE)
    model = CoCa(cell).to(device).eval()
    images = torch.randn(IMAGES, 3, cell.image.size, cell.image.size, device=device)
    rounds = []
    for _ in range(ROUNDS):
        cached = timed(model, images, cache=True)
        uncached = timed(model, images, cache=False)
        assert torch.equal(cached[2], uncached[2]), "the cache must not change what is said"
        rounds.append({"cached": cached[:2], "uncached": uncached[:2]})
        print(rounds[-1], flush=True)
    ratios = [[r["uncached"][i] / r["cached"][i] for r in rounds] for i in range(2)]
    result = {
        "size": SIZE,
        "images": IMAGES,
        "tokens": TOKENS,
        "speedup_decoding": statistics.median(ratios[0]),
        "speedup_whole": statistics.median(ratios[1]),
        "seconds": rounds,
        "device": torch.cuda.get_device_name()
        if device == "cuda"
        else f"cpu ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({k: v for k, v in result.items() if "speedup" in k}))


if __name__ == "__main__":
    main()
