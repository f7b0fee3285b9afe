"""Runs probes side by side, as many as trials will run, and collects what they measured."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

from ablate.core.resources import ProbeConditions
from ablate.core.trial import Trial, to_dict

PATIENCE = 240.0  # seconds that a probe may take


def measure(
    trials: Sequence[Trial], conditions: ProbeConditions, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Return a probe's answer for each trial; ``error`` says why there is nothing else.

    Trials that run side by side slow each other down, so each is measured beside as many others as
    there will be: at the end some are measured again to keep the slots busy.
    """
    if not trials:
        return []
    again = itertools.islice(itertools.cycle(trials), -len(trials) % conditions.slots)
    waiting = deque(enumerate([*trials, *again]))
    answers: dict[int, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(_probe(i, conditions)) for i in range(conditions.slots)]
        busy: list[_Probe] = []
        while busy or (idle and waiting):
            while idle and waiting:
                number, trial = waiting.popleft()
                if number < len(trials):
                    say(f"measuring cell {number + 1} of {len(trials)}: {trial.name}")
                busy.append(idle.pop(0).ask(number, trial, conditions))
            for probe in _ready(busy):
                busy.remove(probe)
                answers[probe.number] = probe.answer()
                if probe.alive:
                    idle.append(probe)
    lost = {"error": "no probe was left to measure it"}
    return [answers.get(number, lost) for number in range(len(trials))]


class _Probe:
    """One process of `ablate.planning.probe`, and the job that it has."""

    def __init__(self, process: subprocess.Popen[str], errors: IO[str]) -> None:
        self.process, self.errors = process, errors
        self.number, self.until, self.alive = -1, 0.0, True

    def ask(self, number: int, trial: Trial, conditions: ProbeConditions) -> _Probe:
        """Hand over a job."""
        job = {
            "trial": to_dict(trial),
            "plugins": conditions.plugins,
            "threads": conditions.threads,
        }
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then it has died, which its answer will tell
            print(json.dumps(job), file=self.process.stdin, flush=True)
        self.number, self.until = number, time.monotonic() + PATIENCE
        return self

    def answer(self) -> dict[str, Any]:
        """Return the answer to the job, which is there or will not come."""
        assert self.process.stdout is not None
        if time.monotonic() >= self.until:
            self.alive = False
            return {"error": f"measuring it took more than {PATIENCE:.0f} s"}
        if line := self.process.stdout.readline():
            return dict(json.loads(line))
        self.alive = False
        self.errors.seek(0)
        last = self.errors.read().strip().rpartition("\n")[2]
        return {"error": f"the process that measures died: {last or 'it left no word'}"}


def _ready(busy: Sequence[_Probe]) -> list[_Probe]:
    """Return the probes that have answered, have died, or have run out of time."""
    patience = max(0.0, min(probe.until for probe in busy) - time.monotonic())
    streams = [probe.process.stdout for probe in busy if probe.process.stdout is not None]
    answered, _, _ = select.select(streams, [], [], patience)
    now = time.monotonic()
    return [p for p in busy if p.process.stdout in answered or now >= p.until]


@contextlib.contextmanager
def _probe(number: int, conditions: ProbeConditions) -> Iterator[_Probe]:
    """Hold a process that measures, on the GPU that this slot's trials will have."""
    environment = os.environ | conditions.environment
    if conditions.per_gpu:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        place = number // conditions.per_gpu
        named = place < len(visible) and visible[place]
        environment["CUDA_VISIBLE_DEVICES"] = named or str(place)
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "ablate.planning.probe"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
            start_new_session=True,  # Ctrl-C is for us, and a fork of it ends with it
        )
        try:
            yield _Probe(process, errors)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
