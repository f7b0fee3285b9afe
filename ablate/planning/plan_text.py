"""What `--plan` prints: cells, what they cost and take, and what the study will be able to tell."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterable
from typing import Any

from ablate.core.plan import Plan
from ablate.planning.budget import Proposal, spell_duration
from ablate.planning.forecast import ESTIMATED, Forecast
from ablate.planning.prediction import StudyPrediction, smallest_effects
from ablate.stats.effects import FEWEST_SEEDS
from ablate.stats.tests_and_intervals import smallest_p

SHOWN = ("norm", "ffn", "position")  # blocks of the image tower that the table has
MEBIBYTE = 2**20


def describe(plan: Plan, prediction: StudyPrediction | None = None) -> str:
    """Return the plan as text for a terminal."""
    recipe = plan.stages[0].recipe
    head = [
        f"grid {plan.grid}: {plan.summary}",
        f"size {plan.size}, data {recipe.data}, {recipe.steps} steps of {recipe.batch} pairs, "
        f"{len(plan.costs)} cells x {plan.seeds} seeds = {len(plan.trials)} trials"
        f"{plan.start_words}",
        *(
            f"then {stage.name}: {stage.recipe.data}, {stage.recipe.steps} steps of "
            f"{stage.recipe.batch} pairs, lr {stage.recipe.lr:g}"
            for stage in plan.stages[1:]
        ),
    ]
    head.append(f"FFNs are matched in {plan.matching} with a plain MLP")
    if plan.looks:
        looks = ", ".join(map(str, plan.looks))
        head.append(f"a race for {plan.aim}, looks at {looks} seeds: so many trials at most")
    if plan.exploratory:
        head.append("exploratory: ASHA stops the worse half at each look; there are no verdicts")
    foot = [f"skipped {name}: {reason}" for name, reason in plan.skipped.items()]
    foot += [f"same cell {name}: equals {other}" for name, other in plan.same.items()]
    if plan.dropped:
        foot.append(f"contrasts that lack a cell: {'; '.join(plan.dropped)}")
    foot += [f"data skipped: {count} x {why}" for why, count in plan.data_skipped.items()]
    if prediction:
        foot += ["", *_effort(plan, prediction), *_evidence(plan, prediction)]
    return "\n".join([*head, "", *_align(_rows(plan, prediction)), *foot])


def _rows(plan: Plan, prediction: StudyPrediction | None) -> list[list[str]]:
    forecasts = prediction.forecasts if prediction else {}
    measured = ["time/trial", "MiB"] if forecasts else []
    more = f"vs {plan.reference}"
    rows = [["cell", *SHOWN, "parameters", more, "GFLOP/step", more, *measured]]
    for name, price in plan.costs.items():
        image = plan.cells[name].image
        more_parameters, more_flops = plan.beyond_reference(name)
        numbers = [
            f"{price.parameters:,}",
            f"{more_parameters:+.2f}%",
            f"{price.step_flops / 1e9:,.2f}",
            f"{more_flops:+.2f}%",
        ]
        if forecasts:
            expected = forecasts[name]
            about = "~" * (expected.basis == ESTIMATED)
            numbers += [f"{about}{spell_duration(expected.seconds)}", about + _memory(expected)]
        rows.append([name, *(getattr(image, kind) for kind in SHOWN), *numbers])
    return rows


def _memory(expected: Forecast) -> str:
    return f"{(expected.gpu_memory or expected.memory) / MEBIBYTE:,.0f}"


def _effort(plan: Plan, prediction: StudyPrediction) -> list[str]:
    """Return what is done, and the time and memory that the rest is predicted to take."""
    lines = []
    done, stages = count_done(plan, prediction)
    if done or stages:
        others = f", and {stages} stages of others" * bool(stages)
        lines.append(f"in the ledger: {done} of {len(plan.trials)} trials{others}")
    guessed = {n: f.reason for n, f in prediction.forecasts.items() if f.basis == ESTIMATED}
    for name, reason in list(guessed.items())[:1]:
        more = f" (and {len(guessed) - 1} more cells likewise)" * (len(guessed) > 1)
        lines.append(
            f"~ estimated from FLOPs and parameters, training only: {name}, as {reason}{more}"
        )
    if prediction.forecasts and prediction.work:
        count = len(prediction.search)
        searched = f" and {count} trainings of the search" * bool(count)
        lines.append(
            f"predicted: {spell_duration(prediction.seconds)} for {len(prediction.work)} trials"
            f"{searched}, {prediction.slots} side by side; "
            f"done by {spell_time(prediction.began, prediction.end)}"
        )
        if any(f.basis != ESTIMATED for f in prediction.forecasts.values()):
            lines.append(
                f"from a few steps of each cell, measured {prediction.measured} side by side, and "
                "from finished trials, as if the machine's other work stays what it was"
            )
        needed, there = (f"{n / MEBIBYTE:,.0f} MiB" for n in (prediction.needed, prediction.memory))
        enough = "" if prediction.needed <= prediction.memory else ": TOO MUCH"
        lines.append(f"memory of trials side by side: {needed} of {there}{enough}")
    return lines


def count_done(plan: Plan, prediction: StudyPrediction) -> tuple[int, int]:
    """Return how many trials are in the ledger, and how many stages of others."""
    remaining = sum(len(work.stages) for work in prediction.work)
    stages = len(plan.stages) * len(prediction.work) - remaining
    return len(plan.trials) - len(prediction.work), stages


def spell_time(now: datetime.datetime, then: datetime.datetime) -> str:
    """Return a time of day, with the date if that is another one."""
    return f"{then:%H:%M}" if now.date() == then.date() else f"{then:%a %d %b %Y, %H:%M}"


def _evidence(plan: Plan, prediction: StudyPrediction) -> list[str]:
    """Return the smallest p and the smallest effects that the seeds can show."""
    if not plan.contrasts:
        return []
    if plan.seeds < FEWEST_SEEDS:
        return [
            f"{plan.seeds} seed{'s' * (plan.seeds > 1)}: fewer than {FEWEST_SEEDS} allow no verdict"
        ]
    lines = [
        f"with {plan.seeds} seeds no two-sided sign-flip p can be below "
        f"{smallest_p(plan.seeds):.3g}; the t test, by which verdicts go, has no such bound"
    ]
    detectable = smallest_effects(
        plan.seeds, plan.contrasts, prediction.standard_deviation, plan.looks
    )
    others = len(plan.contrasts) - ("primary" in detectable)
    words = {
        "primary": "for the primary",
        "other": f"for the first of {others} other contrasts",
    }
    effects = ", ".join(f"{value:.2g}% {words[name]}" for name, value in detectable.items())
    lines.append(
        f"found four times out of five: an effect of {effects} (if improvements vary by "
        f"{prediction.standard_deviation:.2g}% from seed to seed: {prediction.source})"
    )
    return lines


def describe_proposal(
    plan: Plan, prediction: StudyPrediction, budget: float, proposal: Proposal | None
) -> str:
    """Return in words what fits into a budget that the plan exceeds, and what is lost by it."""
    predicted, allowed = spell_duration(prediction.seconds), spell_duration(budget)
    over = f"over budget: {predicted} predicted, {allowed} given"
    if proposal is None:
        least, seeds = spell_duration(prediction.least(plan)), min(plan.seeds, FEWEST_SEEDS)
        return (
            f"{over}\nnothing fits: the primary contrast with {seeds} seeds takes {least}; "
            "less training (--set steps=N) takes less"
        )
    cells = len(plan.cells) - len(proposal.dropped)
    fits = f"fits: {cells} cells x {proposal.seeds} seeds, {spell_duration(proposal.seconds)}"
    return "\n".join([over, fits, *_losses(plan, prediction, proposal)])


def _losses(plan: Plan, prediction: StudyPrediction, proposal: Proposal) -> Iterable[str]:
    if proposal.dropped:
        yield f"  cells left out: {', '.join(proposal.dropped)}"
    if proposal.lost:
        yield f"  contrasts that go: {', '.join(proposal.lost)}"
    contrasts = [c for c in plan.contrasts if c.name not in proposal.lost]
    before = smallest_effects(plan.seeds, plan.contrasts, prediction.standard_deviation, plan.looks)
    after = smallest_effects(proposal.seeds, contrasts, prediction.standard_deviation)
    words = {"primary": "the primary contrast", "other": "the first other contrast"}
    if plan.seeds != proposal.seeds:
        yield (
            f"  smallest sign-flip p: {smallest_p(proposal.seeds):.3g} "
            f"instead of {smallest_p(plan.seeds):.3g}"
        )
    for name in after:
        yield (
            f"  smallest effect found four times out of five, {words[name]}: "
            f"{after[name]:.2g}% instead of {before[name]:.2g}%"
        )


def as_data(plan: Plan, prediction: StudyPrediction) -> dict[str, Any]:
    """Return the plan as plain data, for programs; seconds and bytes, effects in percent."""
    done, stages = count_done(plan, prediction)
    effects = smallest_effects(
        plan.seeds, plan.contrasts, prediction.standard_deviation, plan.looks
    )
    data: dict[str, Any] = {
        "grid": plan.grid,
        "size": plan.size,
        "seeds": plan.seeds,
        "first_seed": plan.first_seed,
        "stages": [stage.name for stage in plan.stages],
        "matching": plan.matching,
        "cells": {name: _cell(plan, prediction, name) for name in plan.costs},
        "skipped": plan.skipped,
        "same": plan.same,
        "contrasts": [contrast.name for contrast in plan.contrasts],
        "primary": plan.primary.name if plan.primary else None,
        "dropped": plan.dropped,
        "trials": [{"cell": t.name, "seed": t.seed, "key": t.key} for t in plan.trials],
        "done": done,
        "done_stages": stages,
        "slots": prediction.slots,
        "smallest_sign_flip_p": smallest_p(plan.seeds),
        "deviation": prediction.standard_deviation,
        "deviation_source": prediction.source,
        "smallest_effects": effects if plan.seeds >= FEWEST_SEEDS else {},
    }
    if prediction.forecasts:
        end = prediction.end.astimezone().isoformat(timespec="seconds")
        data |= {"seconds": prediction.seconds, "end": end}
        data |= {"memory": prediction.needed, "memory_there": prediction.memory}
    return data


def _cell(plan: Plan, prediction: StudyPrediction, name: str) -> dict[str, Any]:
    data: dict[str, Any] = dataclasses.asdict(plan.costs[name])
    more_parameters, more_flops = plan.beyond_reference(name)
    data["mismatch"] = {"parameters": more_parameters, "step_flops": more_flops}
    data["blocks"] = {
        path: spelling for path, (_, spelling) in plan.cells[name].spellings().items()
    }
    if name in prediction.forecasts:
        expected = prediction.forecasts[name]
        data |= {"seconds": expected.seconds, **dataclasses.asdict(expected)}
    return data


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
