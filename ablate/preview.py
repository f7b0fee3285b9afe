"""What `--plan` prints: cells, what they cost and take, and what the study will be able to tell."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ablate.budget import spell_duration, total_seconds
from ablate.effects import Rule, effect
from ablate.findings import DECISIVE, stage_losses
from ablate.forecast import Forecast
from ablate.ledger import Ledger
from ablate.plan import Plan, read_plan
from ablate.statistics import ALPHA, detectable_effect, smallest_p
from blocks import UsageError

SHOWN = ("norm", "ffn", "position")  # blocks of the image tower that the table has
ASSUMED = 1.0  # percent: about what the nano studies in docs/results show


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What is known before a study runs, beside its plan.

    ``deviation`` is how much paired improvements in CoCa loss vary from seed to seed, in percent,
    and ``source`` where that number comes from. ``slots`` trials run side by side.
    """

    deviation: float
    source: str
    done: int = 0
    done_stages: int = 0
    forecasts: Mapping[str, Forecast] = field(default_factory=dict)
    slots: int = 1


def expected_deviation(given: str, plan: Plan, ledger: Ledger) -> tuple[float, str]:
    """Return the paired deviation to expect, and its source.

    ``given`` is a number in percent, an earlier study's directory, or nothing: then it is this
    study's own so far, or else an assumption. Raises `UsageError` for anything else.
    """
    if not given:
        own = _measured_deviation(plan, ledger)
        return (own, "this study so far") if own else (ASSUMED, "assumed; --deviation says better")
    try:
        stated = float(given)
    except ValueError:
        directory = Path(given)
        found = _measured_deviation(read_plan(directory), Ledger(directory))
        if found is None:
            raise UsageError(
                f"--deviation {given!r}: that study has fewer than 3 pairs of its primary contrast"
            ) from None
        return found, given
    if not 0 < stated < 100:
        raise UsageError(f"--deviation must be above 0 and below 100 percent, got {given}")
    return stated, "as stated"


def _measured_deviation(plan: Plan, ledger: Ledger) -> float | None:
    if plan.primary is None:
        return None
    found = effect(plan.primary, DECISIVE, stage_losses(plan, ledger)[DECISIVE], rule=Rule())
    return found.deviation if len(found.seeds) >= 3 and found.deviation > 0 else None


def count_done(plan: Plan, ledger: Ledger) -> tuple[int, int]:
    """Return how many trials are in the ledger, and how many stages of others."""
    done = [t for t in plan.trials if ledger.result(t) is not None]
    labels = {t.label for t in done}
    rest = [t for t in plan.trials if t.label not in labels]
    stages = sum(ledger.record(t, stage) is not None for t in rest for stage in t.stages)
    return len(done), stages


def describe(plan: Plan, outlook: Outlook | None = None) -> str:
    """Return the plan as text for a terminal."""
    recipe = plan.stages[0].recipe
    head = [
        f"grid {plan.grid}: {plan.summary}",
        f"size {plan.size}, data {recipe.data}, {recipe.steps} steps of {recipe.batch} pairs, "
        f"{len(plan.costs)} cells x {plan.seeds} seeds = {len(plan.trials)} trials",
        *(
            f"then {stage.name}: {stage.recipe.data}, {stage.recipe.steps} steps of "
            f"{stage.recipe.batch} pairs, lr {stage.recipe.lr:g}"
            for stage in plan.stages[1:]
        ),
    ]
    foot = [f"skipped {name}: {reason}" for name, reason in plan.skipped.items()]
    foot += [f"same cell {name}: equals {other}" for name, other in plan.same.items()]
    foot += [f"data skipped: {count} x {why}" for why, count in plan.data_skipped.items()]
    if outlook:
        foot += ["", *_effort(plan, outlook), *_evidence(plan, outlook)]
    return "\n".join([*head, "", *_align(_rows(plan, outlook)), *foot])


def _rows(plan: Plan, outlook: Outlook | None) -> list[list[str]]:
    base = plan.costs[plan.reference]
    forecasts = outlook.forecasts if outlook else {}
    measured = ["s/trial", "MiB"] if forecasts else []
    rows = [["cell", *SHOWN, "parameters", f"vs {plan.reference}", "GFLOP/step", *measured]]
    for name, price in plan.costs.items():
        image = plan.cells[name].image
        mismatch = 100 * (price.parameters / base.parameters - 1)
        numbers = [f"{price.parameters:,}", f"{mismatch:+.2f}%", f"{price.step_flops / 1e9:,.2f}"]
        if forecasts:
            expected = forecasts[name]
            memory = expected.gpu_memory or expected.memory
            numbers += [f"{expected.seconds:.0f}", f"{memory / 2**20:,.0f}"]
        rows.append([name, *(getattr(image, kind) for kind in SHOWN), *numbers])
    return rows


def _effort(plan: Plan, outlook: Outlook) -> list[str]:
    """Return what is done, and the time and memory that the rest is predicted to take."""
    lines = []
    if outlook.done or outlook.done_stages:
        others = f", and {outlook.done_stages} stages of others" * bool(outlook.done_stages)
        lines.append(f"in the ledger: {outlook.done} of {len(plan.trials)} trials{others}")
    if outlook.forecasts:
        left = plan.trials[outlook.done :]
        seconds = total_seconds(left, outlook.forecasts, outlook.slots)
        largest = max(f.gpu_memory or f.memory for f in outlook.forecasts.values())
        lines.append(
            f"predicted: {spell_duration(seconds)} for {len(left)} trials, {outlook.slots} side by "
            f"side, which need {outlook.slots * largest / 2**20:,.0f} MiB"
        )
    return lines


def _evidence(plan: Plan, outlook: Outlook) -> list[str]:
    """Return the smallest p and the smallest effects that the seeds can show."""
    share = Rule().primary_share
    others = len(plan.contrasts) - 1
    alpha = ALPHA * share if others > 0 else ALPHA
    words = [f"{detectable_effect(plan.seeds, outlook.deviation, alpha):.2g}% for the primary"]
    if others > 0:
        small = detectable_effect(plan.seeds, outlook.deviation, ALPHA * (1 - share) / others)
        words.append(f"{small:.2g}% for the first of the {others} other contrasts")
    lines = [
        f"with {plan.seeds} seed{'s' * (plan.seeds > 1)} no two-sided sign-flip p can be below "
        f"{smallest_p(plan.seeds):.3g}"
    ]
    if plan.seeds > 1 and math.isfinite(outlook.deviation):
        lines.append(
            f"found four times out of five: an effect of {', '.join(words)} (if improvements vary "
            f"by {outlook.deviation:.2g}% from seed to seed: {outlook.source})"
        )
    return lines


def _align(rows: list[list[str]]) -> list[str]:
    """Return a table's lines; the numbers stand to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    words = 1 + len(SHOWN)
    return [
        "  ".join(
            text.rjust(width) if i >= words else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
