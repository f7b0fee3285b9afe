"""What is known of a study before it runs, beside its plan: work left, what it takes, noise."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ablate.analysis.losses import stage_losses
from ablate.core.grid import Contrast
from ablate.core.ledger import Ledger
from ablate.core.metrics import METRICS
from ablate.core.plan import Plan, read_plan
from ablate.core.resources import (
    ProbeConditions,
    choose_resources,
    gpu_memory,
    host_memory,
)
from ablate.core.search_results import trials_left
from ablate.core.trial import PRETRAIN
from ablate.planning.budget import (
    Proposal,
    Work,
    propose,
    smallest_seconds,
    total_seconds,
    work_left,
)
from ablate.planning.forecast import ESTIMATED, Forecast
from ablate.stats.effects import FEWEST_SEEDS, DecisionRule, effect
from ablate.stats.sequential import detectable_at
from ablate.stats.tests_and_intervals import ALPHA
from blocks import UsageError

ASSUMED = 1.0  # percent: about what the nano studies in docs/results show


@dataclass(frozen=True, kw_only=True)
class StudyPrediction:
    """What is known of a plan before it runs: time, memory, and the noise to expect."""

    standard_deviation: float
    """Of paired improvements over seeds, in percent of the deciding metric."""

    source: str
    """Where that number comes from, in words."""

    work: list[Work]
    """What the ledger has not."""

    search: list[Work] = field(default_factory=list)
    """What a search trains before it; a cell's first trial stands for each training."""

    forecasts: Mapping[str, Forecast] = field(default_factory=dict)
    """What a trial of each cell takes."""

    slots: int = 1
    """How many trials run side by side."""

    measured: int = 1
    """How many did when they were timed."""

    sharing: int = 1
    """How many trials share ``memory``."""

    memory: int = 0
    """The bytes that the machine has for all trials, or a GPU for those on it."""

    began: datetime.datetime = field(default_factory=datetime.datetime.now)
    """When the study would start."""

    @property
    def seconds(self) -> float:
        """Return the predicted seconds of all that is left."""
        return total_seconds([*self.search, *self.work], self.forecasts, self.slots)

    @property
    def needed(self) -> int:
        """Return the bytes that the trials side by side need of ``memory``."""
        return self.sharing * max(f.gpu_memory or f.memory for f in self.forecasts.values())

    @property
    def end(self) -> datetime.datetime:
        """Return the predicted time of the report."""
        return self.began + datetime.timedelta(seconds=self.seconds)

    def propose(self, plan: Plan, budget: float) -> Proposal | None:
        """Return the largest design that fits into so many seconds, or None."""
        return propose(plan, [*self.search, *self.work], self.forecasts, self.slots, budget)

    def least(self, plan: Plan) -> float:
        """Return the seconds of the smallest design."""
        return smallest_seconds(plan, [*self.search, *self.work], self.forecasts, self.slots)


def expected_deviation(text: str, plan: Plan, ledger: Ledger) -> tuple[float, str]:
    """Return the paired deviation to expect, and its source.

    ``text`` is a number in percent, an earlier study's directory, or nothing: then it is this
    study's own so far, or else an assumption. Raises `UsageError` for anything else.
    """
    if not text:
        measured = _measured_deviation(plan, ledger)
        return (
            (measured, "this study so far")
            if measured
            else (ASSUMED, "assumed; --deviation says better")
        )
    try:
        stated = float(text.removesuffix("%"))
    except ValueError:
        directory = Path(text)
        earlier = _measured_deviation(read_plan(directory), Ledger(directory))
        if earlier is None:
            raise UsageError(
                f"--deviation {text!r}: that study has fewer than {FEWEST_SEEDS} pairs of its "
                "primary contrast"
            ) from None
        return earlier, text
    if not 0 < stated < 100:
        raise UsageError(f"--deviation must be above 0 and below 100 percent, got {text}")
    return stated, "as stated"


def _measured_deviation(plan: Plan, ledger: Ledger) -> float | None:
    if plan.primary is None:
        return None
    losses = stage_losses(plan, ledger)[plan.decides]
    measured = effect(
        plan.primary,
        plan.decides,
        losses,
        rule=DecisionRule(),
        direction=METRICS[plan.decides].direction,
    )
    enough = len(measured.seeds) >= FEWEST_SEEDS and 0 < measured.standard_deviation < math.inf
    return measured.standard_deviation if enough else None


def smallest_effects(
    seeds: int, contrasts: Sequence[Contrast], deviation: float, looks: tuple[int, ...] = ()
) -> dict[str, float]:
    """Return the effects found with 80% power, in percent: the primary's, and the first other's.

    The primary contrast has its share of alpha, the others the rest by Holm's method; in a race of
    so many seeds, what is left of it at the last of the ``looks``.
    """
    others = sum(not contrast.primary for contrast in contrasts)
    share = DecisionRule().primary_share if others else 1.0
    detectable = {}
    if others < len(contrasts):
        detectable["primary"] = detectable_at(looks, seeds, deviation, ALPHA * share)
    else:
        share = 0.0
    if others:
        alpha = ALPHA * (1 - share) / others
        detectable["other"] = detectable_at(looks, seeds, deviation, alpha)
    return detectable


def _side_by_side(
    conditions: ProbeConditions, forecasts: Mapping[str, Forecast]
) -> tuple[int, int]:
    """Return how many trials will run side by side, and on each GPU, by their predicted memory.

    It is what the run chooses too. Raises `UsageError` where a trial fits nowhere.
    """
    if not conditions.nodes:
        return conditions.slots, conditions.per_gpu
    needs = largest_needs(forecasts)
    resources = choose_resources(conditions.asked, conditions.nodes, **needs)
    return resources.slots, resources.per_gpu


def predict_study(
    plan: Plan,
    ledger: Ledger,
    conditions: ProbeConditions,
    forecasts: Mapping[str, Forecast],
    deviation: str = "",
) -> StudyPrediction:
    """Return the outlook of a plan; ``deviation`` is what `expected_deviation` takes."""
    expected, source = expected_deviation(deviation, plan, ledger)
    slots, per_gpu = _side_by_side(conditions, forecasts)
    return StudyPrediction(
        standard_deviation=expected,
        source=source,
        work=work_left(plan, ledger),
        search=[
            Work(trial=plan.of_cell(name)[0], stages=(PRETRAIN,))
            for name, count in trials_left(plan, ledger).items()
            for _ in range(count)
        ],
        forecasts=forecasts,
        slots=slots,
        measured=conditions.slots,
        sharing=per_gpu or slots,
        memory=gpu_memory() if per_gpu else host_memory(),
    )


def largest_needs(forecasts: Mapping[str, Forecast]) -> dict[str, int]:
    """Return the ``memory`` and ``gpu_memory`` that a trial needs at most; 0 if all is a guess."""
    sound = [forecast for forecast in forecasts.values() if forecast.basis != ESTIMATED]
    return {
        "memory": max((forecast.memory for forecast in sound), default=0),
        "gpu_memory": max((forecast.gpu_memory for forecast in sound), default=0),
    }
