"""Shows a running study: a progress bar on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ablate.trial import Trial


class Watcher(Protocol):
    """What the executor tells while trials run."""

    def started(self, trial: Trial) -> None:
        """A trial begins or goes on."""

    def measured(self, trial: Trial, metrics: dict[str, float]) -> None:
        """A trial has new metrics."""

    def finished(self, trial: Trial, metrics: dict[str, float]) -> None:
        """A trial has its result."""

    def failed(self, trial: Trial, reason: str) -> None:
        """A trial has failed for good."""


class ProgressWatcher:
    """Says what runs, what is left, and when it will be over."""

    def __init__(self, trials: list[Trial], *, done: int, console: Console) -> None:
        self.console, self.total = console, len(trials) + done
        self.done, self.began = done, time.monotonic()
        self.steps = sum(trial.steps for trial in trials)
        self.reached: dict[str, float] = {}
        self.first: dict[str, float] = {}
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[eta]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("starting Ray", total=max(self.steps, 1), eta="")
        self.running: set[str] = set()

    def __enter__(self) -> ProgressWatcher:
        """Show the bar."""
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Remove the bar."""
        self.bar.stop()

    def started(self, trial: Trial) -> None:
        """Show a trial as running."""
        self.running.add(_name(trial))
        self._update()

    def measured(self, trial: Trial, metrics: dict[str, float]) -> None:
        """Move the bar."""
        step = float(metrics.get("step", 0))
        self.first.setdefault(trial.key, step)
        self.reached[trial.key] = step
        self._update()

    def finished(self, trial: Trial, metrics: dict[str, float]) -> None:
        """Print a line with the trial's result."""
        self._end(trial)
        self.console.print(
            f"[{self.done}/{self.total}] {_name(trial)}: {_losses(metrics)} "
            f"({metrics['train_seconds']:.0f} s){self.eta(', ')}",
            highlight=False,
            markup=False,
        )

    def failed(self, trial: Trial, reason: str) -> None:
        """Print why a trial failed."""
        self._end(trial)
        last = reason.strip().splitlines()[-1]
        self.console.print(
            f"[{self.done}/{self.total}] {_name(trial)}: FAILED: {last}{self.eta(', ')}",
            style="red",
            highlight=False,
            markup=False,
        )

    def eta(self, before: str = "") -> str:
        """Return a guess of what is left, from the steps done in this run."""
        gained = sum(step - self.first[key] for key, step in self.reached.items())
        done = sum(self.reached.values())
        if not gained or done >= self.steps:
            return ""
        left = (time.monotonic() - self.began) * (self.steps - done) / gained
        return (
            f"{before}about {left / 60:.0f} min left" if left > 90 else f"{before}{left:.0f} s left"
        )

    def _end(self, trial: Trial) -> None:
        self.done += 1
        self.reached[trial.key] = trial.steps
        self.first.setdefault(trial.key, 0.0)
        self.running.discard(_name(trial))
        self._update()

    def _update(self) -> None:
        names = ", ".join(sorted(self.running)) or "waiting"
        self.bar.update(
            self.task,
            completed=sum(self.reached.values()),
            description=f"[{self.done}/{self.total}] {names}".replace("[", r"\["),
            eta=self.eta(),
        )


def _losses(metrics: dict[str, float]) -> str:
    """Return the test losses that a trial has, the first stage's."""
    shown = {"contrastive": "contrastive", "perplexity": "perplexity", "coca": "CoCa loss"}
    found = {words: metrics.get(f"test/{name}") for name, words in shown.items()}
    return ", ".join(f"{words} {value:.4g}" for words, value in found.items() if value is not None)


def _name(trial: Trial) -> str:
    return f"{trial.name} seed {trial.seed}"
