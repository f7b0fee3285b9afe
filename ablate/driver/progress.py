"""Shows a running study: one calm table on a terminal, plain lines in a log, JSON to a program."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ablate.core.metrics import DECIDES, METRICS, SELECTION, compared
from ablate.core.trial import Trial

OUTPUTS = ("auto", "quiet", "json")
MOST_COLUMNS, MOST_ROWS = 12, 30  # of seeds and cells that are shown one by one


class Progress:
    """How far a study is: what runs, what is done, what failed, and when it will be over.

    Of itself it says nothing (``--quiet``); the other outputs show it.
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        done: dict[Trial, dict[str, float]],
        decides: str = DECIDES,
    ) -> None:
        self.decides = METRICS[decides]
        self.trials, self.total = [*trials], len(trials) + len(done)
        self.results, self.failures = dict(done), dict[Trial, str]()
        self.stops = dict[Trial, int]()
        self.reached = dict[Trial, float]()
        self.first = dict[Trial, float]()
        self.running, self.best = set[Trial](), (math.inf, "")
        self.steps, self.began = sum(trial.steps for trial in trials), time.monotonic()

    def __enter__(self) -> Progress:
        """Begin to show."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Show no more."""

    def started(self, trial: Trial) -> None:
        """Take a trial for running."""
        self.running.add(trial)

    def measured(self, trial: Trial, metrics: dict[str, float]) -> None:
        """Take note of how far a trial is, and of the best validation loss."""
        step = float(metrics.get("step", 0))
        self.first.setdefault(trial, step)
        self.reached[trial] = step
        if (loss := metrics.get(f"val/{SELECTION}", math.inf)) < self.best[0]:
            self.best = (loss, name(trial))

    def finished(self, trial: Trial, metrics: dict[str, float]) -> None:
        """Take a trial's result."""
        self.results[trial] = metrics
        self._end(trial)

    def failed(self, trial: Trial, reason: str) -> None:
        """Take note of why a trial failed."""
        self.failures[trial] = reason.strip().splitlines()[-1]
        self._end(trial)

    def stopped(self, trial: Trial, step: int) -> None:
        """Take note of where a trial was stopped."""
        self.stops[trial] = step
        self._end(trial)

    def _end(self, trial: Trial) -> None:
        self.first.setdefault(trial, 0.0)
        self.reached[trial] = trial.steps
        self.running.discard(trial)

    @property
    def ended(self) -> str:
        """Return how many trials have ended, as ``[3/27]``."""
        return f"[{len(self.results) + len(self.failures) + len(self.stops)}/{self.total}]"

    def seconds_left(self) -> float | None:
        """Return a guess of what is left, from the steps taken in this run; None before any."""
        # Steps of this run only: what was resumed took no time now.
        gained = sum(step - self.first[trial] for trial, step in self.reached.items())
        remaining = self.steps - sum(self.reached.values())
        if gained <= 0 or remaining <= 0:
            return None
        return (time.monotonic() - self.began) * remaining / gained

    def eta(self) -> str:
        """Return the guess in words, or nothing."""
        seconds = self.seconds_left()
        if seconds is None:
            return ""
        return f"about {seconds / 60:.0f} min left" if seconds > 90 else f"{seconds:.0f} s left"


class Lines(Progress):
    """A line for each trial that ends: for logs and pipes."""

    def __init__(
        self,
        trials: Sequence[Trial],
        done: dict[Trial, dict[str, float]],
        console: Console,
        decides: str = DECIDES,
    ) -> None:
        super().__init__(trials, done, decides)
        self.console = console

    def finished(self, trial: Trial, metrics: dict[str, float]) -> None:
        """Print a trial's result."""
        super().finished(trial, metrics)
        self._print(f"{name(trial)}: {losses(metrics)} ({metrics['train_seconds']:.0f} s)")

    def failed(self, trial: Trial, reason: str) -> None:
        """Print why a trial failed."""
        super().failed(trial, reason)
        self._print(f"{name(trial)}: FAILED: {self.failures[trial]}", style="red")

    def stopped(self, trial: Trial, step: int) -> None:
        """Print where a trial was stopped."""
        super().stopped(trial, step)
        self._print(f"{name(trial)}: stopped at step {step}")

    def _print(self, text: str, style: str = "") -> None:
        eta = self.eta()
        line = f"{self.ended} {text}{f', {eta}' if eta else ''}"
        self.console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)


class LiveTable(Progress):
    """One table of cells by seeds that is redrawn in place; failures stay above it as lines."""

    def __init__(
        self,
        trials: Sequence[Trial],
        done: dict[Trial, dict[str, float]],
        console: Console,
        decides: str = DECIDES,
    ) -> None:
        super().__init__(trials, done, decides)
        self.all_trials = sorted([*done, *trials], key=lambda trial: trial.seed)
        self.cells = list(dict.fromkeys(trial.name for trial in self.all_trials))
        self.seeds = sorted({trial.seed for trial in self.all_trials})
        self.live = Live(
            console=console, get_renderable=self.drawn, refresh_per_second=2, transient=True
        )

    def __enter__(self) -> LiveTable:
        """Show the table."""
        self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Remove the table; the report follows."""
        self.live.stop()

    def failed(self, trial: Trial, reason: str) -> None:
        """Say why a trial failed, above the table."""
        super().failed(trial, reason)
        line = f"{name(trial)} FAILED: {self.failures[trial]}"
        self.live.console.print(line, style="red", highlight=False, markup=False)

    def drawn(self) -> Group:
        """Return the table and the line under it."""
        table = Table(box=None, pad_edge=False)
        table.add_column(self.decides.label)
        wide = len(self.seeds) > MOST_COLUMNS
        for title in ("done", "mean") if wide else [f"seed {seed}" for seed in self.seeds]:
            table.add_column(title, justify="right", min_width=7)
        for cell in self.cells[:MOST_ROWS]:
            by_seed = {trial.seed: trial for trial in self.all_trials if trial.name == cell}
            table.add_row(cell, *(self._many(by_seed) if wide else self._each(by_seed)))
        if len(self.cells) > MOST_ROWS:
            table.add_row(f"... {len(self.cells) - MOST_ROWS} more", style="dim")
        return Group(table, Text(self.footer(), style="bold"))

    def _each(self, by_seed: dict[int, Trial]) -> list[Text]:
        return [self.shown(by_seed[seed]) if seed in by_seed else Text("") for seed in self.seeds]

    def _many(self, by_seed: dict[int, Trial]) -> list[Text]:
        name = f"test/{self.decides.key}"
        values = [r[name] for t in by_seed.values() if name in (r := self.results.get(t, {}))]
        mean = f"{sum(values) / len(values):.3f}" if values else ""
        return [Text(f"{len(values)}/{len(by_seed)}"), Text(mean)]

    def shown(self, trial: Trial) -> Text:
        """Return a trial as one word: its test loss, how far it is, failed, or waiting."""
        if trial in self.failures:
            return Text("failed", style="red")
        if trial in self.results:
            value = self.results[trial].get(f"test/{self.decides.key}", math.nan)
            return Text(f"{value:.3f}", style="green")
        if trial in self.stops:
            return Text(f"({self.stops[trial] / trial.steps:.0%})", style="dim")
        if trial in self.running or trial in self.reached:
            return Text(f"{self.reached.get(trial, 0) / trial.steps:.0%}", style="yellow")
        return Text(".", style="dim")

    def footer(self) -> str:
        """Return the line under the table: how many ended, what is best, when it will be over."""
        loss, who = self.best
        parts = [
            f"{self.ended} trials",
            f"{len(self.running)} running" if self.running else "starting",
            f"{len(self.failures)} failed" if self.failures else "",
            f"best validation {loss:.3f} ({who})" if who else "",
            self.eta(),
        ]
        return ", ".join(part for part in parts if part)


class JsonLines(Progress):
    """A JSON object on a line for everything that happens: for programs."""

    def started(self, trial: Trial) -> None:
        """Print that a trial runs."""
        super().started(trial)
        self._print("started", trial)

    def measured(self, trial: Trial, metrics: dict[str, float]) -> None:
        """Print a trial's new metrics."""
        super().measured(trial, metrics)
        self._print("measured", trial, metrics=metrics)

    def finished(self, trial: Trial, metrics: dict[str, float]) -> None:
        """Print a trial's result."""
        super().finished(trial, metrics)
        self._print("finished", trial, metrics=metrics)

    def failed(self, trial: Trial, reason: str) -> None:
        """Print why a trial failed."""
        super().failed(trial, reason)
        self._print("failed", trial, reason=self.failures[trial])

    def stopped(self, trial: Trial, step: int) -> None:
        """Print where a trial was stopped."""
        super().stopped(trial, step)
        self._print("stopped", trial, step=step)

    def _print(self, event: str, trial: Trial, **facts: Any) -> None:
        where = {"event": event, "cell": trial.name, "seed": trial.seed, "key": trial.key}
        line = where | facts | {"seconds_left": self.seconds_left()}
        print(json.dumps(line, default=float), flush=True)


def make_progress(
    trials: Sequence[Trial],
    done: dict[Trial, dict[str, float]],
    console: Console,
    output: str,
    decides: str = DECIDES,
) -> Progress:
    """Return the output asked for: ``auto`` is a table on a terminal and lines elsewhere."""
    assert output in OUTPUTS, output
    if output == "quiet":
        return Progress(trials, done, decides)
    if output == "json":
        return JsonLines(trials, done, decides)
    return (LiveTable if console.is_terminal else Lines)(trials, done, console, decides)


def losses(metrics: dict[str, float]) -> str:
    """Return the compared test metrics that a trial has, the first stage's, in words."""
    values = {metric.label: metrics.get(f"test/{metric.key}") for metric in compared()}
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items() if value is not None)


def name(trial: Trial) -> str:
    """Return a trial as it is shown."""
    return f"{trial.name} seed {trial.seed}"
