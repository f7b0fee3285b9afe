"""Trains trials in this process, into a ledger, as the executor does under Ray."""

from __future__ import annotations

import math
import traceback

from ablate.core.ledger import Ledger
from ablate.core.trial import Trial
from ablate.training.stages import run_trial
from blocks import Registry


class Trainer:
    """Trains what it is given, at most ``limit`` trials, and remembers them.

    ``backwards`` is for what must not depend on which trial ends first.
    """

    def __init__(
        self,
        ledger: Ledger,
        registry: Registry,
        *,
        limit: float = math.inf,
        backwards: bool = False,
    ) -> None:
        self.ledger, self.registry = ledger, registry
        self.limit, self.backwards = limit, backwards
        self.trained: list[Trial] = []

    def __call__(self, trials: list[Trial]) -> None:
        """Train; return early at the limit, as an interrupted executor does."""
        for trial in reversed(trials) if self.backwards else trials:
            if len(self.trained) >= self.limit:
                return
            self.trained.append(trial)
            try:
                for _ in run_trial(trial, self.ledger.folder(trial), self.registry):
                    continue
            except Exception:
                self.ledger.record_failure(trial, traceback.format_exc())
