"""What the harness costs: `python benchmarks/overhead.py --seconds 30 --trials 16`.

The same trials are run twice in one call: by a plain Python loop in one process (import once, then
one trial after the other), and as a study (plan, Ray, workers, MLflow, report) by the command in a
process of its own. The ideal time is what the trials spent in training (steps and looks at the
validation split), divided by how many run side by side; the overhead is the wall time over that,
minus one. The loop's own, by the same formula, is what any harness has: imports, decoding, building
the model, the test split, captions, and writing the model. Trials of about --seconds are made by
choosing the steps from a timed short trial. Adds its result to overhead.json beside itself.

At 30 s, 16 trials on two cores take about 4 minutes side by side and 8 minutes in the loop;
--loop 4 runs only so many trials in the loop. The 5 min case: --seconds 300 --trials 4 --loop 1.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BEGAN = time.monotonic()  # the loop imports torch too
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def loop(study: Path, count: int) -> dict[str, float]:
    """Train the first trials of a study's plan one after the other, in this process."""
    import torch

    from ablate.execute import launch_order
    from ablate.plan import read_plan
    from ablate.stages import run_trial
    from blocks import default_registry

    torch.set_num_threads(1)
    registry, spent, training = default_registry(), 0.0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        for trial in launch_order(read_plan(study).trials)[:count]:
            began = time.monotonic()
            *_, last = run_trial(trial, Path(folder) / trial.label, registry)
            spent += time.monotonic() - began
            training += last["train_seconds"]
    wall = time.monotonic() - BEGAN
    return {"wall": wall, "trials": spent, "training": training, "count": count}


def command(study: Path, steps: int, trials: int, *more: str) -> list[str]:
    """Return the command of a study of that many trials."""
    settings = [f"--set=steps={steps}", "--set=evaluate=5"]
    where = ["--study", str(study), "--mlflow", f"sqlite:///{study.parent}/mlflow.db"]
    grid = ["--grid", "paper", "--stages", "pretrain", "--seeds", str(trials // 2)]
    return [sys.executable, "-m", "ablate.run", *grid, *settings, *where, *more]


def run_study(study: Path, steps: int, trials: int) -> dict[str, float]:
    """Run a study and return its wall time, and what its trials took from start to end."""
    began = time.monotonic()
    subprocess.run(command(study, steps, trials), check=True, env=ENVIRONMENT, capture_output=True)
    wall = time.monotonic() - began
    found = [json.loads(p.read_text()) for p in study.glob("trials/*/result.json")]
    assert len(found) == trials
    spent = sum(record["metrics"]["train_seconds"] for record in found)
    return {"wall": wall, "training": spent}


def measure(seconds: float, trials: int, in_loop: int) -> dict[str, Any]:
    """Return both ways' times and overheads."""
    from ablate.resources import cores

    slots = cores()
    with tempfile.TemporaryDirectory() as folder:
        probe = run_study(Path(folder) / "probe", 40, 2)  # also fills the cache of decoded data
        steps = max(40, round(40 * seconds / (probe["training"] / 2)))
        study = run_study(Path(folder) / "study", steps, trials)
        again = [sys.executable, __file__, "--loop-only", str(Path(folder) / "study"), str(in_loop)]
        shown = subprocess.run(again, check=True, env=ENVIRONMENT, capture_output=True, text=True)
        plain = json.loads(shown.stdout)
    ideal = study["training"] / slots
    return {
        "trials": trials,
        "side_by_side": slots,
        "steps": steps,
        "training_seconds_per_trial": study["training"] / trials,
        "study_wall_seconds": study["wall"],
        "ideal_wall_seconds": ideal,
        "overhead": study["wall"] / ideal - 1,
        "loop_trials": plain["count"],
        "loop_training_seconds_per_trial": plain["training"] / plain["count"],
        "loop_seconds_per_trial": plain["trials"] / plain["count"],
        "loop_wall_seconds": plain["wall"],
        "loop_overhead": plain["wall"] / plain["training"] - 1,
    }


def main() -> None:
    """Measure, print, and add the result to the file."""
    if sys.argv[1:2] == ["--loop-only"]:
        print(json.dumps(loop(Path(sys.argv[2]), int(sys.argv[3]))))
        return
    top = argparse.ArgumentParser(description=__doc__)
    top.add_argument("--seconds", type=float, default=30.0)
    top.add_argument("--trials", type=int, default=16)
    top.add_argument("--loop", type=int, default=4)
    options = top.parse_args()
    result = {
        **measure(options.seconds, options.trials, options.loop),
        "device": f"cpu, {platform.machine()}",
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }
    path = Path(__file__).with_suffix(".json")
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, f"{options.seconds:g} s": result}, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
