"""The parts of a report: what was claimed and measured, effects, attribution, cells, examples."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from ablate.document import Picture, Section, Table
from ablate.effects import EXPLORATORY, Effect
from ablate.factorial import Attribution, Part
from ablate.findings import DECISIVE, FINETUNED, METRICS, Findings
from ablate.grids import PAPER
from ablate.ledger import Ledger
from ablate.plan import Plan
from ablate.trial import Stage, Trial

# What arXiv 2507.18009 claims for baseline -> grr, in percent: pretraining, mean of fine-tunings.
PAPER_CLAIMS = {"contrastive": 27.25, "perplexity": 3.71, "coca": 7.15}
PAPER_FINETUNED = {"contrastive": 13.66, "perplexity": 5.18, "coca": 5.55}
RECALLS = ("image_to_text_recall@1", "text_to_image_recall@1", "image_to_text_recall@5")
FOREST = (
    "every contrast's improvement with its 95% interval. A filled point is a clear effect, a "
    "square is equivalent, a hollow point is not clear; arrows go on beyond the picture."
)
SELECTED = "the checkpoint with the lowest validation CoCa loss, tested once"


def paper_section(plan: Plan, found: Findings) -> list[Section]:
    """Return the paper's table, where the study has its contrast: claimed and measured."""
    own = {e.metric: e for e in found.effects if e.contrast == PAPER.name}
    if PAPER.name not in {contrast.name for contrast in plan.contrasts}:
        return []

    def measured(title: str, prefix: str) -> tuple[str, ...]:
        chosen = [own[prefix + metric] for metric in METRICS]
        return (title, *(shown(e) for e in chosen), verdict_words(chosen[-1]))

    def claimed(claims: dict[str, float]) -> tuple[str, ...]:
        return ("claimed (arXiv 2507.18009)", *(f"{claims[m]:+.2f}" for m in METRICS), "-")

    first, *later = plan.stages
    rows = [measured(f"measured: {first.name} {first.recipe.data}", ""), claimed(PAPER_CLAIMS)]
    rows += [measured(f"measured: {stage.name}", stage.prefix) for stage in later]
    if later:
        title = f"measured: mean of {len(later)} fine-tunings"
        rows += [measured(title, FINETUNED), claimed(PAPER_FINETUNED)]
    table = Table(
        title="Claimed and measured: baseline -> grr",
        header=("stage", *(f"{t} %" for t in METRICS.values()), "verdict (CoCa loss)"),
        rows=rows,
        note="Improvement in percent on the test split, by stage. The paper's data sets, sizes "
        "and training are others; claims stand here to be seen beside, not to be met.",
        emphasised=frozenset(i for i, row in enumerate(rows) if row[0].startswith("measured")),
    )
    return [Section(title="The paper's contrast", tables=[table])]


def effects_section(plan: Plan, found: Findings) -> Section:
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
            "one stage at most 5% of the time; intervals are not adjusted for the number of "
            f"contrasts.{averages}",
        ],
        tables=tables,
        pictures=pictures,
    )


def _effect_table(plan: Plan, found: Findings, title: str, prefix: str) -> Table:
    every = [*found.effects, *found.noise]
    by_name = {(e.contrast, e.metric): e for e in every}
    contrasts = [*plan.contrasts, *([plan.noise] if plan.noise else [])]
    rows = []
    for contrast in contrasts:
        own = [by_name[contrast.name, prefix + metric] for metric in METRICS]
        suffix = " (primary)" if contrast.primary else " (A/A)" if contrast == plan.noise else ""
        paired = math.isfinite(own[-1].correlation) and contrast != plan.noise
        numbers = (f"{own[-1].correlation:+.2f}" if paired else "-",)
        rows.append(
            (contrast.name + suffix, *map(shown, own), *numbers, str(len(own[-1].seeds)),
             verdict_words(own[-1]))
        )  # fmt: skip
    return Table(
        title=title,
        header=("contrast", *(f"{title} %" for title in METRICS.values()), "pair correlation",
                "seeds", "verdict (CoCa loss)"),
        rows=rows,
        emphasised=frozenset(i for i, c in enumerate(contrasts) if c.primary),
    )  # fmt: skip


def attribution_section(found: Findings) -> list[Section]:
    """Return what each swap of a factorial contributes, and whether the swaps add up."""
    exploratory = any(effect.verdict == EXPLORATORY for effect in found.effects)
    if exploratory or not (whole := found.attributions.get(DECISIVE)):
        return []
    metrics, words = [m for m in METRICS if m in found.attributions], adding_up(whole)

    def table(title: str, parts: Sequence[Part], pick: str, note: str) -> Table:
        columns = [[part_shown(p) for p in getattr(found.attributions[m], pick)] for m in metrics]
        names = [part.name for part in parts]
        rows = [(n, *(c[i] for c in columns)) for i, n in enumerate(names)]
        return Table(
            title=title, header=("", *(f"{METRICS[m]} %" for m in metrics)), rows=rows, note=note
        )

    return [
        Section(
            title="What each swap contributes",
            paragraphs=[f"{words[0].upper()}{words[1:]}."],
            tables=[
                table(
                    "Shapley values",
                    whole.shapley,
                    "shapley",
                    "The gain of all swaps together, divided among them: each one's average gain "
                    "over all orders of adding them. They sum to the gain exactly, seed by seed.",
                ),
                table(
                    "Main effects and interactions",
                    whole.terms,
                    "terms",
                    "With seed as block, in percent of the baseline's loss. A positive interaction "
                    "says that the swaps help each other. p is Holm-adjusted, main effects and "
                    "interactions each among themselves.",
                ),
            ],
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


def adding_up(found: Attribution) -> str:
    """Return in words, without a period, whether the swaps' effects add up."""
    gap = found.additive_gap
    words = f"{gap.estimate:+.2f}%{_interval(gap.low, gap.high)}"
    if not math.isfinite(gap.low):
        return f"all swaps together gain {words} beyond the sum of the single ones"
    if gap.low <= 0 <= gap.high:
        return f"the swaps add up as far as can be told: together {words} beyond their sum"
    kind = "help" if gap.estimate > 0 else "hinder"
    return f"the swaps {kind} each other: together they gain {words} beyond the sum of the single"


def cells_section(plan: Plan, ledger: Ledger) -> Section:
    """Return what the cells reach in every stage."""
    return Section(
        title="Cells",
        paragraphs=[
            f"Mean ± standard deviation over seeds on the test split of {SELECTED}. 'Knowing "
            "nothing' is the contrastive loss of a coin and the perplexity of the training "
            "captions' token frequencies. CIDEr is of greedy captions."
        ],
        tables=[
            *(_cell_table(plan, ledger, stage) for stage in plan.stages),
            _cost_table(plan, ledger),
        ],
        pictures=[
            Picture(
                stem="curves",
                caption="How cells learn: means over seeds, with bands from the lowest seed to the "
                "highest for the primary contrast. Below, each seed is compared with the "
                "reference's of the same seed at the same step.",
            ),
            Picture(
                stem="cost",
                caption="Cost against quality: mean and 95% interval over seeds, cells numbered "
                "from the best one on. Points of equal cost are moved aside.",
            ),
        ],
    )


def _cell_table(plan: Plan, ledger: Ledger, stage: Stage) -> Table:
    known = plan.references[stage.name]
    chance = (f"{known['contrastive']:.3f}", f"{known['perplexity']:.1f}", "-")
    rows = [("knowing nothing", *chance, *("-",) * (len(RECALLS) + 3))]
    names = [f"test/{k}" for k in (*METRICS, *RECALLS, "cider")] + ["last/coca"]
    for name in plan.costs:
        trials = plan.of_cell(name)
        done = _done(trials, ledger)
        found = [[m[stage.prefix + n] for m in done if stage.prefix + n in m] for n in names]
        values = [mean_and_deviation(column) for column in found]
        rows.append((name, *values, f"{len(done)}/{len(trials)}"))
    return Table(
        title=f"Cells: {stage.name}",
        header=("cell", *METRICS.values(), *(r.replace("_", " ") for r in RECALLS), "CIDEr",
                "CoCa loss of the last weights", "seeds"),
        rows=rows,
        emphasised=_primary_rows(plan, rows),
    )  # fmt: skip


def _done(trials: Sequence[Trial], ledger: Ledger) -> list[dict[str, float]]:
    return [metrics for metrics in (ledger.metrics(trial) for trial in trials) if metrics]


def _primary_rows(plan: Plan, rows: Sequence[tuple[str, ...]]) -> frozenset[int]:
    cells = plan.primary.cells if plan.primary else ()
    return frozenset(i for i, row in enumerate(rows) if row[0] in cells)


def _cost_table(plan: Plan, ledger: Ledger) -> Table:
    """Return what cells cost, and what is left of their difference by the matching rule."""
    rows = []
    for name, price in plan.costs.items():
        done, more = _done(plan.of_cell(name), ledger), plan.beyond_reference(name)
        parameters, flops = (f"{percents:+.2f}%" for percents in more)
        seconds = f"{statistics.mean(m['train_seconds'] for m in done):.0f}" if done else "-"
        rows.append((name, f"{price.parameters:,}", parameters,
                     f"{price.step_flops / 1e9:,.2f}", flops, seconds))  # fmt: skip
    versus = f"vs {plan.reference}"
    return Table(
        title="What cells cost",
        header=("cell", "parameters", versus, "GFLOP per step", versus, "train s"),
        rows=rows,
        note=f"FFNs are matched in {plan.matching} with a plain MLP, as closely as inner widths "
        "in steps of 8 allow. A step is of pretraining, forward and backward; seconds are of all "
        "stages.",
        emphasised=_primary_rows(plan, rows),
    )


def examples_section(found: Findings) -> list[Section]:
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


def captions_stem(stage: Stage) -> str:
    """Return the name, without suffix, of the file with a stage's contact sheet."""
    return f"captions{f'-{stage.prefix[:-1]}' * stage.is_finetuning}"


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


def part_shown(part: Part) -> str:
    """Return a part of an attribution as a table has it."""
    p = f" p={part.p:.2g}" if math.isfinite(part.p) and math.isfinite(part.low) else ""
    return f"{part.estimate:+.2f}{_interval(part.low, part.high)}{p}"


def _interval(low: float, high: float) -> str:
    return f" [{low:+.2f}, {high:+.2f}]" if math.isfinite(low) else ""


def verdict_words(effect: Effect) -> str:
    """Return an effect's verdict, or a dash where no seed has it."""
    return effect.verdict if effect.seeds else "-"


def mean_and_deviation(values: Iterable[float]) -> str:
    """Return a column of numbers as mean and standard deviation, and how many are no numbers."""
    every = list(values)
    finite = [value for value in every if math.isfinite(value)]
    lost = f" ({len(every) - len(finite)} not finite)" * (len(finite) < len(every))
    if not finite:
        return f"-{lost}"
    mean = statistics.mean(finite)
    digits = 1 if mean > 20 else 3
    spread = f" ± {statistics.stdev(finite):.{digits}f}" if len(finite) > 1 else ""
    return f"{mean:.{digits}f}{spread}{lost}"
