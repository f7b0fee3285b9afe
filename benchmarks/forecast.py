"""Predicted against real time and memory of a study: `python benchmarks/forecast.py`.

Grid paper at size nano, pretraining only, 2 seeds, is run as a user does, with a forecast from
measured steps before it and another one after it, since other work on the machine comes and goes.
Compared are the seconds of the whole study, from the command to the report, and of a mean trial,
and the peak resident memory of a worker. Writes forecast.json beside itself.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ablate.cli.run import probe_conditions
from ablate.core.ledger import Ledger
from ablate.core.plan import read_plan
from ablate.core.provenance import device_name
from ablate.core.resources import Scheduling, cores
from ablate.planning.budget import total_seconds, work_left
from ablate.planning.forecast import forecast
from ablate.planning.planner import make_plan
from blocks import default_registry

SEEDS = 2
SAMPLING = 0.5  # seconds between looks at the workers' memory


def main() -> None:
    """Predict, run, predict again, compare, print and write the result."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "study"
        before = predict(Path(scratch) / "before")
        load = os.getloadavg()[0]
        real, peak = run(directory, Path(scratch))
        ended = os.getloadavg()[0]
        after = predict(Path(scratch) / "after")
        trials = real_trials(directory)
    mean = sum(trial["seconds"] for trial in trials) / len(trials)
    result = {
        "real": {"study": real, "trial": mean, "memory_mib": peak / 2**20, "trials": trials},
        "predicted_before": before,
        "predicted_after": after,
        "ratios_before": ratios(before, real, mean, peak),
        "ratios_after": ratios(after, real, mean, peak),
        "load": {"before": load, "after": ended, "cores": cores()},
        "device": device_name(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def predict(cache: Path) -> dict[str, Any]:
    """Return what `--plan` predicts for the study, measured anew."""
    registry, conditions = default_registry(), probe_conditions(Scheduling(), ())
    with own_cache(cache):
        plan = make_plan("paper", "nano", SEEDS, {}, registry, ())
        began = time.perf_counter()
        found = forecast(plan, Ledger(cache), registry, conditions)
        measuring = time.perf_counter() - began
    work = work_left(plan, Ledger(cache))
    return {
        "study": total_seconds(work, found, conditions.slots),
        "trial": {name: f.seconds for name, f in found.items()},
        "memory_mib": max(f.memory for f in found.values()) / 2**20,
        "side_by_side": conditions.slots,
        "seconds_to_measure": measuring,
    }


def ratios(predicted: dict[str, Any], study: float, trial: float, peak: int) -> dict[str, float]:
    """Return predicted over real: of the study's seconds, a mean trial's, and memory."""
    mean = sum(predicted["trial"].values()) / len(predicted["trial"])
    return {
        "study": predicted["study"] / study,
        "trial": mean / trial,
        "memory": predicted["memory_mib"] * 2**20 / peak,
    }


@contextlib.contextmanager
def own_cache(directory: Path) -> Iterator[None]:
    """Keep forecasts, and decoded data, in a cache that knows of none yet."""
    before = os.environ.get("COCA_BLOCKS_CACHE")
    os.environ["COCA_BLOCKS_CACHE"] = str(directory)
    try:
        yield
    finally:
        if before is None:
            del os.environ["COCA_BLOCKS_CACHE"]
        else:
            os.environ["COCA_BLOCKS_CACHE"] = before


def run(directory: Path, scratch: Path) -> tuple[float, int]:
    """Run the study as a user does; return its seconds, and the peak bytes of a worker."""
    command = [sys.executable, "-m", "ablate.run", "--grid", "paper", "--stages", "pretrain"]
    command += ["--seeds", str(SEEDS), "--study", str(directory)]
    command += ["--mlflow", f"sqlite:///{scratch}/mlflow.db"]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as study:
        peaks: list[int] = [0]
        watching = threading.Thread(target=watch, args=(study, peaks))
        watching.start()
        assert study.wait() == 0
        seconds = time.perf_counter() - began
        watching.join()
    return seconds, max(peaks)


def watch(study: subprocess.Popen[bytes], peaks: list[int]) -> None:
    """Note the peak resident bytes of the study's own workers, as the kernel counts them."""
    while study.poll() is None:
        found: dict[int, dict[str, str]] = {}
        for path in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError):
                lines = (line.partition(":") for line in path.read_text().splitlines())
                found[int(path.parent.name)] = {name: value.strip() for name, _, value in lines}
        for number, status in found.items():
            trains = status["Name"].startswith("ray::Implicit") and "VmHWM" in status  # and lives
            if trains and study.pid in ancestors(number, found):
                peaks.append(int(status["VmHWM"].split()[0]) * 1024)
        time.sleep(SAMPLING)


def ancestors(number: int, found: dict[int, dict[str, str]]) -> set[int]:
    """Return the processes that started this one, one after the other."""
    seen: set[int] = set()
    while number in found and number not in seen:
        seen.add(number)
        number = int(found[number]["PPid"])
    return seen


def real_trials(directory: Path) -> list[dict[str, Any]]:
    """Return the real seconds of each trial, its set-up of about a second aside."""
    plan, ledger = read_plan(directory), Ledger(directory)
    found = []
    for trial in plan.trials:
        folder, metrics = ledger.folder(trial), ledger.metrics(trial)
        assert metrics is not None
        ends = [(folder / name).stat().st_mtime for name in ("curve.jsonl", "result.json")]
        seconds = metrics["train_seconds"] + ends[1] - ends[0]
        found.append({"cell": trial.name, "seed": trial.seed, "seconds": seconds})
    return found


if __name__ == "__main__":
    main()
