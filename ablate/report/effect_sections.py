"""The parts of a report: what was claimed and measured, effects, attribution, cells, examples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ablate.analysis.results import StudyResults
from ablate.core.metrics import FINETUNED, METRICS, compared
from ablate.core.paper import CLAIMS, PAPER_CONTRAST, SOURCE
from ablate.core.plan import Plan
from ablate.figures.caption_sheet import captions_stem
from ablate.report.document import Picture, Section, Table
from ablate.stats.effects import EXPLORATORY, Effect
from ablate.stats.factorial import Attribution, Part
from ablate.stats.race import FUTILE_WORD
from ablate.stats.tests_and_intervals import ALPHA


def paper_section(plan: Plan, results: StudyResults) -> list[Section]:
    """Return the paper's table, where the study has its contrast: claimed and measured."""
    effects = {e.metric: e for e in results.effects if e.contrast == PAPER_CONTRAST}
    if PAPER_CONTRAST not in {contrast.name for contrast in plan.contrasts}:
        return []

    def measured(title: str, prefix: str) -> tuple[str, ...]:
        words = verdict_words(effects[prefix + plan.decides])
        return (title, *(effect_cell(effects[prefix + m.key]) for m in compared()), words)

    def claimed(prefix: str) -> tuple[str, ...]:
        claims = CLAIMS[prefix]
        numbers = (f"{claims[m.key]:+.2f}" if m.key in claims else "-" for m in compared())
        return (f"claimed ({SOURCE})", *numbers, "-")

    first, *later = plan.stages
    rows = [measured(f"measured: {first.name} {first.recipe.data}", ""), claimed("")]
    rows += [measured(f"measured: {stage.name}", stage.prefix) for stage in later]
    if later:
        title = f"measured: mean of {len(later)} fine-tunings"
        rows += [measured(title, FINETUNED), claimed(FINETUNED)]
    table = Table(
        title=f"Claimed and measured: {PAPER_CONTRAST}",
        header=("stage", *metric_headers(), verdict_header(plan)),
        rows=rows,
        note="Improvement in percent on the test split, by stage. The paper's data sets, sizes "
        "and training differ: published numbers are shown for context, not as a target."
        + " The interval of the mean of fine-tunings is over seeds, not over data sets."
        * bool(later),
        emphasised=frozenset(i for i, row in enumerate(rows) if row[0].startswith("measured")),
    )
    return [Section(title="The paper's contrast", tables=[table])]


def metric_headers() -> list[str]:
    """Return the headers of a table's columns of improvements."""
    return [f"{metric.label} %" for metric in compared()]


def verdict_header(plan: Plan) -> str:
    """Return the header of a table's column of verdicts."""
    return f"verdict ({METRICS[plan.decides].label})"


def effects_section(plan: Plan, results: StudyResults) -> Section:
    """Return every contrast's effect in the first stage, and in the mean over fine-tunings."""
    first, *later = plan.stages
    tables = [_effect_table(plan, results, f"Effects: {first.name}", "")]
    if later:
        tables.append(_effect_table(plan, results, "Effects: mean of the fine-tunings", FINETUNED))
    race = " that hold at every look of the race" if plan.looks else ""
    several = any(len(contrast.pairs) > 1 for contrast in plan.contrasts)
    averages = " A main effect averages the settings of the other swaps." if several else ""
    return Section(
        title="Effects",
        paragraphs=[
            "Improvement (reference - candidate) / reference in percent on the test split, paired "
            f"by seed, with 95% t intervals{race}. Positive is better. p is the paired t test's, "
            "adjusted so that a study of no true effects says improved or worse in one metric of "
            "one stage at most 5% of the time. Intervals are not adjusted for the number of "
            "contrasts: one may lie off zero beside a verdict of inconclusive. Equivalent goes by "
            "two tests at 5%, that is by a 90% interval, which is narrower than the one shown."
            f"{averages}",
        ],
        tables=tables,
    )


def _effect_table(plan: Plan, results: StudyResults, title: str, prefix: str) -> Table:
    by_name = {(e.contrast, e.metric): e for e in (*results.effects, *results.noise)}
    contrasts = [*plan.contrasts, *([plan.noise] if plan.noise else [])]
    decided = {} if prefix else _decided_earlier(results)
    rows = []
    for contrast in contrasts:
        effects = [by_name[contrast.name, prefix + metric.key] for metric in compared()]
        deciding = by_name[contrast.name, prefix + plan.decides]
        suffix = " (primary)" if contrast.primary else " (A/A)" if contrast == plan.noise else ""
        paired = math.isfinite(deciding.correlation) and contrast != plan.noise
        correlation = f"{deciding.correlation:+.2f}" if paired else "-"
        verdict = verdict_words(deciding) + decided.get(contrast.name, "")
        rows.append((contrast.name + suffix, *map(effect_cell, effects), correlation,
                     str(len(deciding.seeds)), verdict))  # fmt: skip
    return Table(
        title=title,
        header=("contrast", *metric_headers(), "pair correlation", "seeds", verdict_header(plan)),
        rows=rows,
        emphasised=frozenset(i for i, c in enumerate(contrasts) if c.primary),
    )


def _decided_earlier(results: StudyResults) -> dict[str, str]:
    """Return, by contrast, at which interim look a verdict was reached that it keeps."""
    now = {e.contrast: len(e.seeds) for e in results.effects if e.metric == results.decides}
    return {
        d.effect.contrast: f", decided at {look.seeds} seeds"
        for look in (results.race.looks if results.race else ())
        for d in look.decisions
        if d.why != FUTILE_WORD and look.seeds < now.get(d.effect.contrast, 0)
    }


def attribution_section(plan: Plan, results: StudyResults) -> list[Section]:
    """Return what each swap of a factorial contributes, and whether the swaps add up."""
    if plan.exploratory or not (whole := results.attributions.get(plan.decides)):
        return []
    words = adding_up(whole, plan.smallest_effect)
    return [
        Section(
            title="What each swap contributes",
            paragraphs=[
                f"{words[0].upper()}{words[1:]}. Over the {seeds_words(whole.seeds)} with which "
                f"all {len(plan.factorial)} cells have a result, all swaps together gain "
                f"{part_cell(whole.gain)} there. Intervals here are not adjusted for their "
                "number: verdicts go by the table of effects."
            ],
            tables=[_shapley_table(results), _terms_table(results)],
        )
    ]


def _shapley_table(results: StudyResults) -> Table:
    return _parts_table(
        "Shapley values",
        {metric: whole.shapley for metric, whole in results.attributions.items()},
        "The gain of all swaps together, divided among them: each one's average gain over all "
        "orders of adding them. They sum to the gain exactly, seed by seed.",
    )


def _terms_table(results: StudyResults) -> Table:
    return _parts_table(
        "Main effects and interactions",
        {metric: whole.terms for metric, whole in results.attributions.items()},
        "With seed as block. A positive interaction says that the swaps help each other. Main "
        "effects are those of the table of effects but for two things: they are in percent of the "
        "baseline's loss, not of each setting's, and p is Holm-adjusted among themselves only (and "
        "that of interactions among those).",
        tested=True,
    )


def _parts_table(
    title: str, parts: Mapping[str, Sequence[Part]], note: str, *, tested: bool = False
) -> Table:
    names = [part.name for part in next(iter(parts.values()))]
    rows = [
        (name, *(part_cell(column[i], tested=tested) for column in parts.values()))
        for i, name in enumerate(names)
    ]
    return Table(
        title=title, header=("", *(f"{METRICS[m].label} %" for m in parts)), rows=rows, note=note
    )


def adding_up(whole: Attribution, smallest: float) -> str:
    """Return in words, without a period, whether the swaps' effects add up.

    They do not where an interaction is clear, and they do where none is and the gap between the
    gain and the sum of the single swaps' is surely below the smallest effect of interest.
    """
    clear = [part for part in whole.interactions if part.p <= ALPHA]
    if clear:
        named = ", ".join(f"{part.name} {part_cell(part, tested=True)}" for part in clear)
        return f"the swaps do not simply add up: {named}"
    gap = whole.additive_gap
    words = f"{gap.estimate:+.2f}%{_interval(gap.low, gap.high)}"
    within = -smallest <= gap.low and gap.high <= smallest
    start = "the swaps add up" if within else "whether the swaps add up cannot be told"
    return f"{start}: the gain of all less the sum of the single ones' is {words}"


def examples_section(results: StudyResults) -> list[Section]:
    """Return the primary contrast's effects with what the choice of test examples adds."""
    if not results.examples:
        return []
    first = results.examples[0]
    rows = [
        (e.metric, f"{e.estimate:+.2f}{_interval(e.low, e.high)}", f"{e.seed_error:.2f}",
         f"{e.example_error:.2f}", f"{e.error:.2f}", str(e.examples), str(e.clusters))
        for e in results.examples
    ]  # fmt: skip
    return [
        Section(
            title="Other test examples",
            paragraphs=[
                f"{first.contrast} on {first.seeds} seeds, loss by loss of "
                "each held-out pair. The intervals above are for other seeds on these test "
                "examples; this one is for other examples as well (errors clustered by seed and "
                "by caption, or by batch for contrastive losses)."
            ],
            tables=[
                Table(
                    title="Primary contrast by example",
                    header=("loss", "improvement %", "error over seeds", "over examples",
                            "over both", "examples", "clusters"),
                    rows=rows,
                )
            ],
        )
    ]  # fmt: skip


def captions_section(plan: Plan) -> list[Section]:
    """Return what a model says of held-out pictures, as drawn when the study ran."""
    pictures = [
        Picture(
            stem=captions_stem(stage),
            caption=f"{stage.name}: the candidate's last seed on the first ten held-out pictures, "
            "best of many draws by its own judgement",
        )
        for stage in plan.stages
    ]
    return [Section(title="What a model says", pictures=pictures)]


def effect_cell(effect: Effect) -> str:
    """Return an effect as a table has it, in percent."""
    if not effect.seeds:
        return "-"
    tested = math.isfinite(effect.low) and effect.verdict != EXPLORATORY
    p = f" p={effect.p_adjusted:.2g}" if tested else ""
    return f"{effect.estimate:+.2f}{_interval(effect.low, effect.high)}{p}"


def percent(effect: Effect) -> str:
    """Return an estimate with its interval, where more than one seed gives it one."""
    return f"{effect.estimate:+.2f}%{_interval(effect.low, effect.high)}"


def part_cell(part: Part, *, tested: bool = False) -> str:
    """Return a part of an attribution as a table has it, with its p if it is ``tested``."""
    p = f" p={part.p:.2g}" if tested and math.isfinite(part.low) else ""
    return f"{part.estimate:+.2f}{_interval(part.low, part.high)}{p}"


def _interval(low: float, high: float) -> str:
    return f" [{low:+.2f}, {high:+.2f}]" if math.isfinite(low) else ""


def verdict_words(effect: Effect) -> str:
    """Return an effect's verdict, or a dash where no seed has it."""
    return effect.verdict if effect.seeds else "-"


def seeds_words(seeds: Sequence[int]) -> str:
    """Return "3 seeds" or "1 seed"."""
    return f"{len(seeds)} seed{'s' * (len(seeds) != 1)}"
