"""The first three sentences of a report: what was found, by which swap, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ablate.effects import Effect, Rule, verdict_is_clear
from ablate.findings import DECISIVE, FINETUNED, METRICS, Findings
from ablate.plan import Plan
from ablate.sections import adding_up, percent
from ablate.sequential import level
from ablate.statistics import ALPHA, detectable_effect

MOST_NAMED = 4  # of clear effects in a sentence
NOT_YET = "No contrast is complete yet."


def opening(plan: Plan, found: Findings) -> list[str]:
    """Return three sentences in plain words; one where the study has no say."""
    main = found.of(plan.primary.name) if plan.primary else None
    if main is None:
        return [NOT_YET]
    if plan.exploratory:
        return [_what(plan, found, main)]
    return [
        _what(plan, found, main),
        _which(plan, found) or _where(found, main),
        _how_sure(plan, found, main),
    ]


def stamp(plan: Plan, found: Findings) -> str:
    """Return a warning that stands above everything else, or nothing."""
    warnings = []
    if plan.exploratory:
        warnings.append(
            "EXPLORATORY: trials were stopped early by ASHA, so cells were trained for different "
            "lengths; there are no verdicts here"
        )
    if flagged := [e for e in found.noise if e.metric == DECISIVE and verdict_is_clear(e.verdict)]:
        warnings.append(
            f"NOISE: {flagged[0].contrast}, the same cell under other seeds, differs by "
            f"{percent(flagged[0])} (p = {flagged[0].p:.2g}); this happens in 1 of 20 sound "
            "studies, and in unsound ones"
        )
    return "; ".join(warnings)


def _what(plan: Plan, found: Findings, main: Effect) -> str:
    tuned = found.of(main.contrast, FINETUNED + DECISIVE)
    count = len(plan.stages) - 1
    when = f"as the mean of {count} fine-tunings" if count > 1 else "after fine-tuning"
    later = f"; {when} it changes by {percent(tuned)} ({tuned.verdict})" if tuned else ""
    verb = {"improved": "improves", "worse": "worsens"}.get(main.verdict, "changes")
    return (
        f"{main.contrast} {verb} the CoCa loss by {percent(main)} over "
        f"{seeds_words(main.seeds)}: {_meaning(main, plan.smallest_effect)}{later}."
    )


def _meaning(effect: Effect, smallest: float) -> str:
    small = abs(effect.estimate) < smallest
    return {
        "improved": f"a clear improvement (p = {effect.p_adjusted:.2g})"
        + (f", though below the {smallest:g}% declared to be of interest" if small else ""),
        "worse": f"clearly worse (p = {effect.p_adjusted:.2g})",
        "equivalent": f"equivalent, that is, within {smallest:g}%, the smallest effect of interest",
        "inconclusive": _why_inconclusive(effect),
    }.get(effect.verdict, f"{effect.verdict}, nothing can be said of it")


def _why_inconclusive(effect: Effect) -> str:
    if effect.p > ALPHA:
        return "inconclusive, these seeds cannot tell it from no effect"
    return (
        f"inconclusive, for p = {effect.p:.2g} would do if it were the only contrast, but among "
        f"all of them it is {effect.p_adjusted:.2g}"
    )


def _which(plan: Plan, found: Findings) -> str:
    """Return which swap did it: by main effect and Shapley value, or the best single contrast."""
    swaps = {c.name for c in plan.contrasts if len(c.fields) == 1 and not c.primary}
    main_effects = {name for name in swaps if "main effect" in name}
    measured = [e for e in found.effects if e.metric == DECISIVE and e.seeds]
    singles = [e for e in measured if e.contrast in (main_effects or swaps)]
    if not singles:
        return ""
    clear = sorted((e for e in singles if verdict_is_clear(e.verdict)), key=lambda e: -e.estimate)
    best = max(singles, key=lambda e: e.estimate)
    if len(clear) > MOST_NAMED:
        start = _in_sum(clear)
    elif clear:
        words = ", ".join(f"{e.contrast} {percent(e)} ({e.verdict})" for e in clear)
        start = f"Of the single swaps these are clear: {words}"
    elif best.estimate > 0:
        start = f"No single swap is clear, the largest is {best.contrast} with {percent(best)}"
    else:
        start = f"No single swap improves, the best is {best.contrast} with {percent(best)}"
    whole = found.attributions.get(DECISIVE)
    return f"{start}; {adding_up(whole)}." if whole else f"{start}."


def _where(found: Findings, main: Effect) -> str:
    """Return what the swap does to the losses that the decisive one is made of."""
    parts = [e for m in METRICS if m != DECISIVE and (e := found.of(main.contrast, m))]
    if not parts:
        return "No other loss was measured."
    words = [f"the {METRICS[e.metric]} changes by {percent(e)} ({e.verdict})" for e in parts]
    return f"Of its parts, {' and '.join(words)}."


def _in_sum(clear: Sequence[Effect]) -> str:
    """Return how many effects are clear, of effects from the best to the worst, and the ends."""
    better = sum(e.estimate > 0 for e in clear)
    best, worst = (f"{e.contrast} {percent(e)} ({e.verdict})" for e in (clear[0], clear[-1]))
    return (
        f"Of the single swaps {better} clearly improve and {len(clear) - better} clearly worsen, "
        f"the best of them {best}, the worst {worst}"
    )


def _how_sure(plan: Plan, found: Findings, main: Effect) -> str:
    if not math.isfinite(main.deviation):
        return "One seed shows no uncertainty: give --seeds 3 or more before believing anything."
    share = Rule().primary_share if len(plan.contrasts) > 1 else 1.0
    count = len(main.seeds)
    alpha = level(plan.looks, count, ALPHA * share) if plan.looks else ALPHA * share
    smallest = detectable_effect(count, main.deviation, alpha)
    noise = [e for e in found.noise if e.metric == DECISIVE and e.seeds]
    floor = (
        f", and the reference trained again under other seeds differs from itself by "
        f"{percent(noise[0])}"
        if noise
        else ""
    )
    return (
        f"How sure: improvements vary by {main.deviation:.2f}% from seed to seed, so "
        f"{seeds_words(main.seeds)} find an effect of {smallest:.2g}% four times out of five and "
        f"smaller ones less often{floor}."
    )


def seeds_words(seeds: Sequence[int]) -> str:
    """Return "3 seeds" or "1 seed"."""
    return f"{len(seeds)} seed{'s' * (len(seeds) != 1)}"
