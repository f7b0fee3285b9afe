"""What the harness costs: `python benchmarks/overhead.py --seconds 30 --trials 16`.

The same trials are run twice in one call: as a study (plan, Ray, workers, MLflow, captions, report)
by the command in a process of its own, and some of them by a plain Python loop in one process. The
ideal time is what the trials took, divided by how many run side by side; the overhead is the wall
time over that, minus one. Two ideals are told apart. Over *trials*: a trial's seconds from start to
end, which is what the harness adds. Over *training*: steps and looks at the validation split only;
that counts a trial's own test split, captions and checkpoint as overhead, in the loop as well.

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

    from ablate.core.plan import read_plan
    from ablate.execution.tune_runner import launch_order
    from ablate.training.stages import run_trial
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
    return {"wall": wall, "spent": spent, "training": training, "count": count}


def command(study: Path, steps: int, trials: int, *more: str) -> list[str]:
    """Return the command of a study of that many trials."""
    settings = [f"--set=steps={steps}", "--set=evaluate=5"]
    where = ["--study", str(study), "--mlflow", f"sqlite:///{study.parent}/mlflow.db"]
    grid = ["--grid", "paper", "--stages", "pretrain", "--seeds", str(trials // 2)]
    return [sys.executable, "-m", "ablate.run", *grid, *settings, *where, *more]


def run_study(study: Path, steps: int, trials: int) -> dict[str, float]:
    """Run a study; return its wall time, its trials' time, and when the first and last ran."""
    began, started, found = time.monotonic(), dict[str, float](), list[tuple[float, float]]()
    training, ran = (
        0.0,
        subprocess.Popen(
            command(study, steps, trials, "--json"),
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            text=True,
        ),
    )
    assert ran.stdout is not None
    for line in ran.stdout:
        event, now = json.loads(line), time.monotonic() - began
        if event["event"] == "started":
            started[event["key"]] = now
        elif event["event"] == "finished":
            found.append((started[event["key"]], now))
            training += event["metrics"]["train_seconds"]
    assert ran.wait() == 0
    assert len(found) == trials
    return {
        "wall": time.monotonic() - began,
        "training": training,
        "spent": sum(end - start for start, end in found),
        "first": min(start for start, _ in found),
        "last": max(end for _, end in found),
    }


def steps_for(seconds: float, folder: Path) -> int:
    """Return the steps that train for so long; trying also fills the cache of decoded data."""
    short, long = (run_study(folder / str(n), n, 2)["training"] / 2 for n in (40, 160))
    return max(40, round(40 + 120 * (seconds - short) / (long - short)))


def measure(seconds: float, trials: int, in_loop: int) -> dict[str, Any]:
    """Return both ways' times and overheads."""
    from ablate.core.resources import cores

    slots = cores()
    with tempfile.TemporaryDirectory() as folder:
        steps = steps_for(seconds, Path(folder))
        study = run_study(Path(folder) / "study", steps, trials)
        again = [sys.executable, __file__, "--loop-only", str(Path(folder) / "study"), str(in_loop)]
        shown = subprocess.run(
            again, check=True, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
        )
        plain = json.loads(shown.stdout)
    return {
        "trials": trials,
        "side_by_side": slots,
        "steps": steps,
        "study": {
            "wall_seconds": study["wall"],
            "training_seconds_per_trial": study["training"] / trials,
            "seconds_per_trial": study["spent"] / trials,
            "seconds_before_the_first_trial": study["first"],
            "seconds_after_the_last_trial": study["wall"] - study["last"],
            "overhead_over_training": study["wall"] / (study["training"] / slots) - 1,
            "overhead_over_trials": study["wall"] / (study["spent"] / slots) - 1,
        },
        "loop": {
            "trials": plain["count"],
            "wall_seconds": plain["wall"],
            "training_seconds_per_trial": plain["training"] / plain["count"],
            "seconds_per_trial": plain["spent"] / plain["count"],
            "overhead_over_training": plain["wall"] / plain["training"] - 1,
            "overhead_over_trials": plain["wall"] / plain["spent"] - 1,
        },
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
