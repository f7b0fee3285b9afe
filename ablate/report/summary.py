"""The first three sentences of a report: what was found, by which swap, and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence

from ablate.analysis.results import StudyResults
from ablate.core.metrics import FINETUNED, METRICS, compared
from ablate.core.plan import Plan
from ablate.report.effect_sections import adding_up, percent, seeds_words
from ablate.stats.effects import FEWEST_SEEDS, Effect, verdict_is_clear
from ablate.stats.tests_and_intervals import ALPHA

MOST_NAMED = 4  # of clear effects in a sentence


def opening(plan: Plan, results: StudyResults) -> list[str]:
    """Return three sentences in plain words; fewer where the study has not so much to say."""
    main = results.of(plan.primary.name) if plan.primary else None
    if main is None:
        return [s for s in (_no_primary(plan, results), _which(plan, results)) if s]
    if plan.exploratory:
        return [_what(plan, results, main)]
    return [
        _what(plan, results, main),
        _which(plan, results) or _where(results, main),
        _how_sure(plan, results, main),
    ]


def _no_primary(plan: Plan, results: StudyResults) -> str:
    """Return why there is nothing to say of the primary contrast."""
    if plan.primary is None:
        return "No contrast was declared as what the study is about."
    lost = [cell for cell in plan.primary.cells if len(results.failed.get(cell, [])) == plan.seeds]
    if lost:
        return f"{plan.primary.name} cannot be told: {' and '.join(sorted(lost))} failed each time."
    return f"{plan.primary.name} is complete with no seed yet."


def banner(plan: Plan, results: StudyResults) -> str:
    """Return a warning that stands above everything else, or nothing."""
    warnings = []
    if plan.exploratory:
        warnings.append(
            "EXPLORATORY: trials were stopped early by ASHA, so cells were trained for different "
            "lengths; there are no verdicts here"
        )
    failed = {c: n for c, n in results.failed.items() if plan.primary and c in plan.primary.cells}
    if failed and plan.primary:
        words = "; ".join(f"{c} with {_seeds_named(seeds)}" for c, seeds in failed.items())
        warnings.append(
            f"FAILED: {words}; what is said of {plan.primary.name} is of the seeds that are left, "
            "too kind to a swap that makes training fail"
        )
    if flagged := [
        e for e in results.noise if e.metric == plan.decides and verdict_is_clear(e.verdict)
    ]:
        warnings.append(
            f"NOISE: {flagged[0].contrast}, the same cell under other seeds, differs by "
            f"{percent(flagged[0])} (p = {flagged[0].p:.2g}); this happens in 1 of 20 sound "
            "studies, and in unsound ones"
        )
    return "; ".join(warnings)


def _what(plan: Plan, results: StudyResults, main: Effect) -> str:
    tuned = results.of(main.contrast, FINETUNED + plan.decides)
    count = len(plan.stages) - 1
    when = f"as the mean of {count} fine-tunings" if count > 1 else "after fine-tuning"
    later = f"; {when} it is {percent(tuned)} ({tuned.verdict})" if tuned else ""
    label = METRICS[plan.decides].label
    start = f"{main.contrast}: the improvement in {label} is"
    if main.verdict == "improved":
        start = f"{main.contrast} improves the {label} by"
    meaning = _meaning(main, plan.smallest_effect)
    return f"{start} {percent(main)} over {seeds_words(main.seeds)}, {meaning}{later}."


def _meaning(effect: Effect, smallest: float) -> str:
    return {
        "improved": f"a clear improvement (p = {effect.p_adjusted:.2g})"
        + _of_interest(effect, smallest),
        "worse": f"that is, the loss is clearly worse (p = {effect.p_adjusted:.2g})",
        "equivalent": f"equivalent: within {smallest:g}%, the smallest effect of interest",
        "inconclusive": _why_inconclusive(effect),
    }.get(effect.verdict, f"{effect.verdict}: nothing can be said of it")


def _of_interest(effect: Effect, smallest: float) -> str:
    """Return whether a clear improvement is as large as was declared to be of interest."""
    if effect.low >= smallest:
        return ""
    if effect.high < smallest:
        return f", though below the {smallest:g}% declared to be of interest"
    return f", though whether it is the {smallest:g}% declared to be of interest cannot be told"


def _why_inconclusive(effect: Effect) -> str:
    if effect.p > ALPHA:
        return "inconclusive: these seeds cannot tell it from no effect"
    return (
        f"inconclusive: p = {effect.p:.2g} would do if it were the only contrast, but among all of "
        f"them it is {effect.p_adjusted:.2g}"
    )


def _which(plan: Plan, results: StudyResults) -> str:
    """Return which swaps are clear, averaged over the others or single, and whether they add up."""
    swaps = {c.name: c for c in plan.contrasts if len(c.fields) == 1 and not c.primary}
    singles = [
        e for e in results.effects if e.metric == plan.decides and e.seeds and e.contrast in swaps
    ]
    if plan.exploratory or not singles:
        return ""
    clear = sorted((e for e in singles if verdict_is_clear(e.verdict)), key=lambda e: -e.estimate)
    averaged = [e for e in singles if len(swaps[e.contrast].pairs) > 1]
    best = max(averaged or singles, key=lambda e: e.estimate)
    other = "other " * (plan.primary is not None and len(plan.primary.fields) == 1)
    if len(clear) > MOST_NAMED:
        start = _in_sum(clear)
    elif clear:
        words = ", ".join(f"{e.contrast} {percent(e)} ({e.verdict})" for e in clear)
        start = f"Of the {other}single swaps these are clear: {words}"
    else:
        largest = f"the largest improvement is {percent(best)} by {best.contrast}"
        start = f"No {other}single swap is clear, {largest}"
    whole = results.attributions.get(plan.decides)
    return f"{start}; {adding_up(whole, plan.smallest_effect)}." if whole else f"{start}."


def _where(results: StudyResults, main: Effect) -> str:
    """Return what the swap does to the compared metrics that do not decide."""
    others = (metric.key for metric in compared() if metric.key != results.decides)
    parts = [e for key in others if (e := results.of(main.contrast, key))]
    if not parts:
        return "No other metric was measured."
    words = [f"{percent(e)} in {METRICS[e.metric].label} ({e.verdict})" for e in parts]
    return f"In other metrics, the improvement is {' and '.join(words)}."


def _in_sum(clear: Sequence[Effect]) -> str:
    """Return how many effects are clear, of effects from the best to the worst, and the ends."""
    better = sum(e.estimate > 0 for e in clear)
    best, worst = (f"{e.contrast} {percent(e)} ({e.verdict})" for e in (clear[0], clear[-1]))
    return (
        f"Of the single swaps {better} clearly improve and {len(clear) - better} clearly worsen, "
        f"the best of them {best}, the worst {worst}"
    )


def _how_sure(plan: Plan, results: StudyResults, main: Effect) -> str:
    count = len(main.seeds)
    if count < FEWEST_SEEDS:
        return f"How sure: not at all, {seeds_words(main.seeds)} is too few for a verdict (give 6)."
    sure = results.certainty
    if sure is None:
        return "How sure: not at all, every seed shows the same (see what is doubtful below)."
    others = ""
    if sure.other is not None:
        others = f", in a usual other contrast one of {_digits(sure.other)}%"
    noise = [e for e in results.noise if e.metric == plan.decides and e.seeds]
    again = "the reference trained again under other seeds differs from itself by"
    over = f" over {seeds_words(noise[0].seeds)}" if noise and len(noise[0].seeds) != count else ""
    floor = f"; {again} {percent(noise[0])}{over}" if noise else ""
    return (
        f"How sure: improvements of this contrast vary by {main.standard_deviation:.2f}% from seed "
        f"to seed, so {count} seeds find an effect of {sure.smallest:.2g}% four times out of five "
        f"(somewhere from {_digits(sure.low)} to {_digits(sure.high)}%, for {count} seeds do not "
        f"tell the variation well){others}{floor}."
    )


def _digits(number: float) -> str:
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def _seeds_named(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds))}"
