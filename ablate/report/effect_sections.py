"""The parts of a report: what was claimed and measured, effects, attribution, cells, examples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ablate.analysis.results import StudyResults
from ablate.core.grids import PAPER
from ablate.core.metrics import DECISIVE, FINETUNED, LABELS
from ablate.core.plan import Plan
from ablate.figures.caption_sheet import captions_stem
from ablate.report.document import Picture, Section, Table
from ablate.stats.effects import EXPLORATORY, Effect
from ablate.stats.factorial import Attribution, Part
from ablate.stats.race import FUTILE_WORD
from ablate.stats.tests_and_intervals import ALPHA

# What arXiv 2507.18009 claims for baseline -> grr, in percent: pretraining, mean of fine-tunings.
PAPER_CLAIMS = {"contrastive": 27.25, "perplexity": 3.71, "coca": 7.15}
PAPER_FINETUNED = {"contrastive": 13.66, "perplexity": 5.18, "coca": 5.55}
FOREST = (
    "every contrast's improvement with its 95% interval. A filled point is a clear effect, a "
    "square is equivalent, a hollow point is not clear; arrows go on beyond the picture."
)


def paper_section(plan: Plan, found: StudyResults) -> list[Section]:
    """Return the paper's table, where the study has its contrast: claimed and measured."""
    own = {e.metric: e for e in found.effects if e.contrast == PAPER.name}
    if PAPER.name not in {contrast.name for contrast in plan.contrasts}:
        return []

    def measured(title: str, prefix: str) -> tuple[str, ...]:
        chosen = [own[prefix + metric] for metric in LABELS]
        return (title, *(shown(e) for e in chosen), verdict_words(chosen[-1]))

    def claimed(claims: dict[str, float]) -> tuple[str, ...]:
        return ("claimed (arXiv 2507.18009)", *(f"{claims[m]:+.2f}" for m in LABELS), "-")

    first, *later = plan.stages
    rows = [measured(f"measured: {first.name} {first.recipe.data}", ""), claimed(PAPER_CLAIMS)]
    rows += [measured(f"measured: {stage.name}", stage.prefix) for stage in later]
    if later:
        title = f"measured: mean of {len(later)} fine-tunings"
        rows += [measured(title, FINETUNED), claimed(PAPER_FINETUNED)]
    table = Table(
        title="Claimed and measured: baseline -> grr",
        header=("stage", *(f"{t} %" for t in LABELS.values()), "verdict (CoCa loss)"),
        rows=rows,
        note="Improvement in percent on the test split, by stage. The paper's data sets, sizes "
        "and training are others; claims stand here to be seen beside, not to be met."
        + " The mean of fine-tunings is for other seeds, not for other data sets."
        * bool(later),
        emphasised=frozenset(i for i, row in enumerate(rows) if row[0].startswith("measured")),
    )
    return [Section(title="The paper's contrast", tables=[table])]


def effects_section(plan: Plan, found: StudyResults) -> Section:
    """Return every contrast's effect in the first stage, and in the mean over fine-tunings."""
    first, *later = plan.stages
    tables = [_effect_table(plan, found, f"Effects: {first.name}", "")]
    pictures = [Picture(stem="effects", caption=f"{first.name}: {FOREST}")]
    if later:
        tables.append(_effect_table(plan, found, "Effects: mean of the fine-tunings", FINETUNED))
        caption = f"Mean of the fine-tunings: {FOREST}"
        pictures.append(Picture(stem="effects-finetuned", caption=caption))
    race = " that hold at every look of the race" if plan.looks else ""
    several = any(len(contrast.pairs) > 1 for contrast in plan.contrasts)
    averages = " A main effect averages the settings of the other swaps." if several else ""
    slopes = "The primary contrast seed by seed: where lines run alike, pairing by seed gains most."
    pictures.append(Picture(stem="slopes", caption=slopes))
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
        pictures=pictures,
    )


def _effect_table(plan: Plan, found: StudyResults, title: str, prefix: str) -> Table:
    every = [*found.effects, *found.noise]
    by_name = {(e.contrast, e.metric): e for e in every}
    contrasts = [*plan.contrasts, *([plan.noise] if plan.noise else [])]
    decided = {} if prefix else _decided_earlier(found)
    rows = []
    for contrast in contrasts:
        own = [by_name[contrast.name, prefix + metric] for metric in LABELS]
        suffix = " (primary)" if contrast.primary else " (A/A)" if contrast == plan.noise else ""
        paired = math.isfinite(own[-1].correlation) and contrast != plan.noise
        numbers = (f"{own[-1].correlation:+.2f}" if paired else "-",)
        rows.append(
            (contrast.name + suffix, *map(shown, own), *numbers, str(len(own[-1].seeds)),
             verdict_words(own[-1]) + decided.get(contrast.name, ""))
        )  # fmt: skip
    return Table(
        title=title,
        header=("contrast", *(f"{title} %" for title in LABELS.values()), "pair correlation",
                "seeds", "verdict (CoCa loss)"),
        rows=rows,
        emphasised=frozenset(i for i, c in enumerate(contrasts) if c.primary),
    )  # fmt: skip


def _decided_earlier(found: StudyResults) -> dict[str, str]:
    """Return, by contrast, at which look of a race a verdict was reached that it keeps."""
    now = {e.contrast: len(e.seeds) for e in found.effects if e.metric == DECISIVE}
    return {
        d.effect.contrast: f", decided at {look.seeds} seeds"
        for look in (found.race.looks if found.race else ())
        for d in look.decisions
        if d.why != FUTILE_WORD and look.seeds < now.get(d.effect.contrast, 0)
    }


def attribution_section(plan: Plan, found: StudyResults) -> list[Section]:
    """Return what each swap of a factorial contributes, and whether the swaps add up."""
    if plan.exploratory or not (whole := found.attributions.get(DECISIVE)):
        return []
    words = adding_up(whole, plan.smallest_effect)
    return [
        Section(
            title="What each swap contributes",
            paragraphs=[
                f"{words[0].upper()}{words[1:]}. Over the {seeds_words(whole.seeds)} with which "
                f"all {len(plan.factorial)} cells have a result, all swaps together gain "
                f"{part_shown(whole.gain)} there. Intervals here are not adjusted for their "
                "number: verdicts go by the table of effects."
            ],
            tables=[_shapley_table(found), _terms_table(found)],
            pictures=[
                Picture(stem="shapley", caption="Each swap's share of the gain"),
                Picture(
                    stem="interactions",
                    caption="Each swap's gain without and with another one. Parallel lines add up; "
                    "the dashed one shows where they would lead. Lines up and down are 95% "
                    "intervals.",
                ),
            ],
        )
    ]


def _shapley_table(found: StudyResults) -> Table:
    return _parts_table(
        "Shapley values",
        {metric: whole.shapley for metric, whole in found.attributions.items()},
        "The gain of all swaps together, divided among them: each one's average gain over all "
        "orders of adding them. They sum to the gain exactly, seed by seed.",
    )


def _terms_table(found: StudyResults) -> Table:
    return _parts_table(
        "Main effects and interactions",
        {metric: whole.terms for metric, whole in found.attributions.items()},
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
        (name, *(part_shown(own[i], tested=tested) for own in parts.values()))
        for i, name in enumerate(names)
    ]
    return Table(title=title, header=("", *(f"{LABELS[m]} %" for m in parts)), rows=rows, note=note)


def adding_up(found: Attribution, smallest: float) -> str:
    """Return in words, without a period, whether the swaps' effects add up.

    They do not where an interaction is clear, and they do where none is and the gap between the
    gain and the sum of the single swaps' is surely below the smallest effect of interest.
    """
    clear = [part for part in found.interactions if part.p <= ALPHA]
    if clear:
        named = ", ".join(f"{part.name} {part_shown(part, tested=True)}" for part in clear)
        return f"the swaps do not simply add up: {named}"
    gap = found.additive_gap
    words = f"{gap.estimate:+.2f}%{_interval(gap.low, gap.high)}"
    within = -smallest <= gap.low and gap.high <= smallest
    start = "the swaps add up" if within else "whether the swaps add up cannot be told"
    return f"{start}: the gain of all less the sum of the single ones' is {words}"


def examples_section(found: StudyResults) -> list[Section]:
    """Return the primary contrast's effects with what the choice of test examples adds."""
    if not found.examples:
        return []
    rows = [
        (e.metric, f"{e.estimate:+.2f}{_interval(e.low, e.high)}", f"{e.seed_error:.2f}",
         f"{e.example_error:.2f}", f"{e.error:.2f}", str(e.examples), str(e.clusters))
        for e in found.examples
    ]  # fmt: skip
    return [
        Section(
            title="Other test examples",
            paragraphs=[
                f"{found.examples[0].contrast} on {found.examples[0].seeds} seeds, loss by loss of "
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


def shown(effect: Effect) -> str:
    """Return an effect as a table has it, in percent."""
    if not effect.seeds:
        return "-"
    tested = math.isfinite(effect.low) and effect.verdict != EXPLORATORY
    p = f" p={effect.p_adjusted:.2g}" if tested else ""
    return f"{effect.estimate:+.2f}{_interval(effect.low, effect.high)}{p}"


def percent(effect: Effect) -> str:
    """Return an estimate with its interval, where more than one seed gives it one."""
    return f"{effect.estimate:+.2f}%{_interval(effect.low, effect.high)}"


def part_shown(part: Part, *, tested: bool = False) -> str:
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
