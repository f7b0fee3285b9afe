"""Whether loading limits training: `python benchmarks/loader.py`.

Steps on real batches (cached images, captions drawn, cropped, padded) and on one cached batch are
timed in turn in one process, one thread as in a trial on a CPU. The ratio of the medians is what
loading costs. Writes loader.json beside itself.
"""

from __future__ import annotations

import datetime
import json
import platform
import statistics
import time
from pathlib import Path

import torch

from ablate.core.recipe import RECIPES
from ablate.core.trial import make_trial
from ablate.data import open_pairs
from ablate.training.train import Training
from assemblies import preset
from blocks import default_registry

STEPS = {"nano": 60, "tiny": 12}


def compare(size: str) -> dict[str, float]:
    """Return the median seconds of a step either way, and their ratio."""
    registry, cell, recipe = default_registry(), preset("grr", size), RECIPES[size]
    fingerprint = open_pairs(recipe.data, cell.image.size).fingerprint
    trial = make_trial("grr", cell, recipe, 0, fingerprint, registry)
    training = Training(trial, trial.stages[0], registry)
    real, seconds = training.batches, {"real": list[float](), "one": list[float]()}
    for step in range(STEPS[size]):
        batch = real[step]  # the batch that `real` will load: steps of equal work are compared
        ways = [("real", real), ("one", {step: batch})]
        for name, source in ways if step % 2 else reversed(ways):
            training.batches, training.state.step = source, step  # type: ignore[assignment]
            began = time.process_time()
            training.step()
            seconds[name].append(time.process_time() - began)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {**medians, "ratio": medians["real"] / medians["one"]}


def main() -> None:
    """Measure, print and write the result."""
    torch.set_num_threads(1)
    result = {
        "cpu_seconds_per_step": {size: compare(size) for size in STEPS},
        "device": f"cpu, one thread ({platform.machine()})",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["cpu_seconds_per_step"], indent=2))


if __name__ == "__main__":
    main()
