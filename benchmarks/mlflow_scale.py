"""Whether MLflow stays usable with a large study: `python benchmarks/mlflow_scale.py`.

A ledger of 200 trials with 200 logged steps each is made up from one real, short trial (its metrics
with noise), and followed through the Tracker as a study would be. Measured are how long a call
keeps its caller, how long writing takes, the size of the sqlite file, how long `ablate sync` needs
to find nothing to do, and the seconds until the UI's pages show their rows in headless Chromium
(chromium and chromedriver must be installed). Writes mlflow_scale.json beside itself.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import random
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ablate.analysis.results import make_results
from ablate.core.ledger import Ledger
from ablate.core.plan import Plan, write_plan
from ablate.core.provenance import launch_note
from ablate.core.records import read_curve
from ablate.planning.planner import make_plan
from ablate.tracking.tracker import Tracker
from ablate.training.stages import run_trial
from blocks import default_registry

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from browser import Browser

SEEDS, STEPS, LOOKS = 20, 200, 20  # the grid "full" has ten cells
MODEL_BYTES = 2**16
LOADS = 3  # of each page; the first one finds nothing in the browser's cache


def make_ledger(folder: Path) -> tuple[Plan, Ledger]:
    """Write a study with results, curves and small model folders, as if it had run."""
    registry, ledger = default_registry(), Ledger(folder / "study")
    short = {"steps": 6, "evaluate": 2, "batch": 16}
    (sample, *_) = make_plan("full", "nano", 1, short, registry, []).trials
    for _ in run_trial(sample, folder / "sample", registry):
        pass
    record = json.loads((folder / "sample/result.json").read_text())
    curve = read_curve(folder / "sample/curve.jsonl")
    settings = {**short, "steps": STEPS, "evaluate": LOOKS}
    plan = make_plan("full", "nano", SEEDS, settings, registry, [])
    write_plan(plan, ledger.directory, launch_note([]))
    for number, trial in enumerate(plan.trials):
        chance, own = random.Random(number), ledger.folder(trial)
        (own / "model").mkdir(parents=True)
        for name in ("config.json", "tokenizer.json"):
            shutil.copy(folder / "sample/model" / name, own / "model")
        (own / "model/model.safetensors").write_bytes(chance.randbytes(MODEL_BYTES))
        lines = [json.dumps(made_up(curve, step, chance)) for step in range(1, STEPS + 1)]
        (own / "curve.jsonl").write_text("\n".join(lines) + "\n")
        metrics = {k: v * chance.uniform(0.99, 1.01) for k, v in record["metrics"].items()}
        found = {**record, "key": trial.key, "metrics": metrics, "outputs": number}
        (own / "result.json").write_text(json.dumps(found))
    return plan, ledger


def made_up(curve: list[dict[str, Any]], step: int, chance: random.Random) -> dict[str, Any]:
    """Return a line of a curve: every tenth one with validation."""
    looked = step % (STEPS // LOOKS) == 0
    like = next(line for line in curve if looked == any("val/" in name for name in line))
    noisy = {k: v * chance.uniform(0.9, 1.1) for k, v in like.items()}
    return {**noisy, "step": step, "seconds": 0.05 * step}


def follow(plan: Plan, ledger: Ledger, uri: str) -> dict[str, Any]:
    """Pass a study through the Tracker; returns seconds of its calls and of all writing."""
    said: list[str] = []
    found = make_results(plan, ledger)
    began, busy = time.perf_counter(), time.process_time()
    tracker = Tracker(plan, ledger, uri, said.append)
    calls = [timed(tracker.open)]
    for trial in plan.trials:
        calls.append(timed(lambda trial=trial: tracker.started(trial)))
        for _ in range(STEPS):
            calls.append(timed(lambda trial=trial: tracker.measured(trial, {})))
        calls.append(timed(lambda trial=trial: tracker.finished(trial, {})))
    told = time.perf_counter() - began
    tracker.close([*found.effects, *found.noise], [], plan.trials)
    assert not said, said
    return {
        "calls": len(calls),
        "open_ms": 1e3 * calls[0],
        "median_call_us": 1e6 * statistics.median(calls),
        "longest_call_after_open_ms": 1e3 * max(calls[1:]),
        "seconds_until_all_calls_returned": told,
        "seconds_until_all_was_written": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - busy,
    }


def timed(call: Callable[[], None]) -> float:
    """Return the seconds that a call keeps its caller."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def browse(uri: str, cells: list[str]) -> dict[str, list[float]]:
    """Return the seconds until pages of the UI show what they are for, load by load."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "ablate", "ui", "--mlflow", uri, "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, Browser() as page:
        try:
            assert server.stdout is not None
            links: dict[str, str] = {}
            while "all trials, best first" not in links:
                if found := re.fullmatch(r" *(.*?): (http\S+)\n", server.stdout.readline()):
                    links[found[1]] = found[2]
            wait_for_server(port)
            view = next(link for words, link in links.items() if "cells compared" in words)
            table = view.replace("&compareRunsMode=CHART", "")
            some, compared = f"{cells[0]} seed ", next(k for k in links if "side by side" in k)
            grouped = f"Group: {cells[0]}"
            pages = {
                "all trials": (links["all trials, best first"], (some, "matching runs")),
                "view: table by cell": (table, (grouped, "100 matching runs")),
                "view: charts by cell": (view, (grouped, "test/coca")),
                "effects": (links["effects"], ("->", "coca/estimate")),
                "50 trials side by side": (links[compared], ("Comparing 50 Runs", "seed")),
            }
            return {name: load(page, link, words) for name, (link, words) in pages.items()}
        finally:
            server.terminate()


def load(page: Browser, link: str, words: tuple[str, ...]) -> list[float]:
    """Return the seconds until a page shows words, for several loads."""
    seconds = []
    for _ in range(LOADS):
        began = time.perf_counter()
        page.open(link)
        page.wait(*words)
        seconds.append(round(time.perf_counter() - began, 2))
    return seconds


def wait_for_server(port: int) -> None:
    """Wait until the UI listens."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError("the UI does not listen")


def main() -> None:
    """Measure, print and write the result."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        uri = f"sqlite:///{folder}/mlflow.db"
        plan, ledger = make_ledger(folder)
        points = sum(len(line) - 2 for trial in plan.trials for line in ledger.curve(trial))
        result: dict[str, Any] = {
            "study": {"trials": len(plan.trials), "steps": STEPS, "curve_points": points},
            "writing": follow(plan, ledger, uri),
            "sqlite_megabytes": (folder / "mlflow.db").stat().st_size / 1e6,
        }
        sync = [sys.executable, "-m", "ablate", "sync", str(ledger.directory), "--mlflow", uri]
        result["sync_with_nothing_to_do_seconds"] = timed(lambda: subprocess.check_call(sync))
        cells = list(plan.cells)
        result["page_seconds"] = browse(uri, cells)
        chromium = subprocess.check_output(["chromium", "--version"], text=True, stderr=-3)
    result |= {
        "device": f"cpu, {os.cpu_count()} cores ({platform.machine()}), shared",
        "load_average": os.getloadavg()[0],
        "mlflow": version("mlflow"),
        "browser": chromium.strip(),
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
