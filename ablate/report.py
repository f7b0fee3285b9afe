"""The report of a study: what was found and how sure one can be, from the ledger alone."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from ablate.files import write_text
from ablate.grids import PAPER
from ablate.ledger import Ledger
from ablate.plan import Plan
from ablate.statistics import Effect, Losses, effects, smallest_p
from ablate.trial import Stage

# The metrics of arXiv 2507.18009, all losses: lower is better.
METRICS = {"contrastive": "contrastive loss", "perplexity": "perplexity", "coca": "CoCa loss"}
# What arXiv 2507.18009 claims for baseline -> grr, in percent: pretraining, mean of fine-tunings.
PAPER_CLAIMS = {"contrastive": 27.25, "perplexity": 3.71, "coca": 7.15}
PAPER_FINETUNED = {"contrastive": 13.66, "perplexity": 5.18, "coca": 5.55}
FINETUNED = "finetune/"  # before the name of a metric averaged over the fine-tunings
RECALLS = ("image_to_text_recall@1", "text_to_image_recall@1", "image_to_text_recall@5")
SELECTED = "the checkpoint with the lowest validation CoCa loss, tested once"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A titled table of text."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""

    def markdown(self) -> str:
        """Return the table as Markdown."""
        lines = [f"## {self.title}", "", *([self.note, ""] if self.note else [])]
        lines.append("| " + " | ".join(self.header) + " |")
        lines.append("|" + " --- |" * len(self.header))
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Report:
    """A study's findings."""

    title: str
    summary: str
    tables: list[Table]
    notes: list[str]
    effects: list[Effect]

    def markdown(self, figures: Sequence[str] = ()) -> str:
        """Return the whole report as Markdown."""
        pictures = [f"![{name}]({name})" for name in figures]
        notes = ["## Notes", "", *[f"- {note}" for note in self.notes]]
        parts = [f"# {self.title}", self.summary, *pictures]
        parts += [table.markdown() for table in self.tables]
        return "\n\n".join([*parts, "\n".join(notes)]) + "\n"

    def csv(self) -> str:
        """Return the effects as CSV."""
        buffer = io.StringIO()
        names = [field.name for field in dataclasses.fields(Effect)]
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(names)
        for effect in self.effects:
            writer.writerow(
                [" ".join(map(str, v)) if isinstance(v, tuple) else v
                 for v in (getattr(effect, name) for name in names)]
            )  # fmt: skip
        return buffer.getvalue()


def make_report(plan: Plan, ledger: Ledger) -> Report:
    """Return the report on all trials of the plan that are finished."""
    found = all_effects(plan, ledger)
    return Report(
        title=f"Study {ledger.directory.name}: grid {plan.grid}",
        summary=summarise(plan, found),
        tables=[
            *_paper_tables(plan, found),
            *_effect_tables(plan, found),
            *(_cell_table(plan, ledger, stage) for stage in plan.stages),
        ],
        notes=_notes(plan, ledger),
        effects=found,
    )


def all_effects(plan: Plan, ledger: Ledger) -> list[Effect]:
    """Return every contrast's effect in each of the paper's metrics, stage by stage.

    Metrics of a fine-tuning have its prefix; ``finetune/...`` is the mean over fine-tunings.
    """
    results = [(trial, ledger.metrics(trial)) for trial in plan.trials]

    def losses(name: str) -> Losses:
        return {(t.name, t.pair): found[name] for t, found in results if found and name in found}

    prefixes = [stage.prefix for stage in plan.stages]
    found = []
    for metric in METRICS:
        sets = [losses(f"{prefix}test/{metric}") for prefix in prefixes]
        for prefix, one in zip(prefixes, sets, strict=True):
            found += effects(plan.contrasts, f"{prefix}{metric}", one)
        if len(sets) > 1:
            found += effects(plan.contrasts, f"{FINETUNED}{metric}", *sets[1:])
    return found


def summarise(plan: Plan, found: Sequence[Effect]) -> str:
    """Return in plain words what was found and how sure it is."""
    primary = next((c.name for c in plan.contrasts if c.primary), None)
    main = {e.metric: e for e in found if e.contrast == primary and e.seeds}
    if not main:
        return "No contrast is complete yet."

    def words(prefix: str) -> str:
        chosen = {title: main.get(prefix + metric) for metric, title in METRICS.items()}
        return ", ".join(f"{t} {_percent(e)} ({e.verdict})" for t, e in chosen.items() if e)

    seeds = len(main["coca"].seeds)
    tuned = words(FINETUNED)
    sentences = [
        f"{primary}: improvement in {words('')}, over {_count(seeds)}.",
        f"Mean over fine-tunings ({len(plan.stages) - 1}): {tuned}." if tuned else "",
        _which_helped([e for e in found if e.metric == "coca" and e.contrast != primary]),
        f"Verdicts go by the t test's adjusted p. A sign-flip test, which assumes nothing, cannot "
        f"go below p = {smallest_p(seeds):.3g} with {_count(seeds)}.",
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _count(seeds: int) -> str:
    return f"{seeds} seed{'s' if seeds > 1 else ''}"


def _which_helped(found: Sequence[Effect]) -> str:
    singles = [e for e in found if e.seeds and "main effect" in e.contrast] or [
        e for e in found if e.seeds
    ]
    if not singles:
        return ""
    best = max(singles, key=lambda e: e.estimate)
    clear = sorted(
        (e for e in singles if e.verdict in ("improved", "worse")), key=lambda e: -e.estimate
    )
    named = ", ".join(f"{e.contrast} {e.estimate:+.2f}% ({e.verdict})" for e in clear)
    if best.estimate <= 0:
        return (
            f"In CoCa loss no single swap improves; the best is {best.contrast} ({_percent(best)})."
        )
    return (
        f"In CoCa loss the best single swap is {best.contrast} ({_percent(best)}); "
        f"swaps with a clear effect: {named or 'none'}."
    )


def _paper_tables(plan: Plan, found: Sequence[Effect]) -> list[Table]:
    """Return the paper's table, where the study has the paper's contrast: claimed and measured."""
    own = {e.metric: e for e in found if e.contrast == PAPER.name}
    if PAPER not in plan.contrasts:
        return []

    def measured(title: str, prefix: str) -> tuple[str, ...]:
        chosen = [own[prefix + metric] for metric in METRICS]
        return (title, *(_cell_of(e) for e in chosen), chosen[-1].verdict)

    def claimed(claims: dict[str, float]) -> tuple[str, ...]:
        return ("  claimed (arXiv 2507.18009)", *(f"{claims[m]:+.2f}" for m in METRICS), "-")

    first, *later = plan.stages
    rows = [measured(f"{first.name} {first.recipe.data}", ""), claimed(PAPER_CLAIMS)]
    rows += [measured(f"{stage.name}", stage.prefix) for stage in later]
    if later:
        title = f"mean of {len(later)} fine-tunings"
        rows += [measured(title, FINETUNED), claimed(PAPER_FINETUNED)]
    return [
        Table(
            title="Claimed and measured: baseline -> grr",
            header=("stage", *(f"{t} %" for t in METRICS.values()), "verdict (CoCa loss)"),
            rows=rows,
            note="Improvement in percent on the test split, by stage. The paper's data sets, sizes "
            "and training are others; claims stand here to be seen beside, not to be met.",
        )
    ]


def _effect_tables(plan: Plan, found: Sequence[Effect]) -> list[Table]:
    """Return all contrasts of the first stage, and of the mean over fine-tunings."""
    if len(plan.stages) == 1:
        return [_effect_table(plan, found, "Effects", "")]
    first = plan.stages[0].name
    return [
        _effect_table(plan, found, f"Effects: {first}", ""),
        _effect_table(plan, found, "Effects: mean of the fine-tunings", FINETUNED),
    ]


def _effect_table(plan: Plan, found: Sequence[Effect], title: str, prefix: str) -> Table:
    by_name = {(e.contrast, e.metric): e for e in found}
    rows = []
    for contrast in plan.contrasts:
        own = [by_name[contrast.name, prefix + metric] for metric in METRICS]
        name = f"{contrast.name} (primary)" if contrast.primary else contrast.name
        rows.append((name, *(_cell_of(e) for e in own), own[-1].verdict))
    return Table(
        title=title,
        header=("contrast", *(f"{title} %" for title in METRICS.values()), "verdict (CoCa loss)"),
        rows=rows,
        note="Improvement (reference - candidate) / reference in percent on the test split, paired "
        "by seed, with 95% t intervals and paired t p (Holm-adjusted but for the primary). "
        "Positive is better. A main effect averages the four settings of the other two swaps. "
        "Intervals are not adjusted for their number.",
    )


def _cell_of(effect: Effect) -> str:
    if not effect.seeds:
        return "-"
    p = f" p={effect.p_adjusted:.2g}" if math.isfinite(effect.low) else ""
    return _percent(effect).replace("%", "") + p


def _percent(effect: Effect) -> str:
    """Return an estimate with its interval, where more than one seed gives it one."""
    interval = f" [{effect.low:+.2f}, {effect.high:+.2f}]" if math.isfinite(effect.low) else ""
    return f"{effect.estimate:+.2f}%{interval}"


def _cell_table(plan: Plan, ledger: Ledger, stage: Stage) -> Table:
    """Return what the cells reach in a stage, beside what knowing nothing gives."""
    known = plan.references[stage.name]
    chance = (f"{known['contrastive']:.3f}", f"{known['perplexity']:.1f}", "-")
    blank = ("-",) * (len(RECALLS) + 5)
    rows = [("knowing nothing", *chance, *blank)]
    names = [f"test/{k}" for k in (*METRICS, *RECALLS, "cider")] + ["last/coca"]
    for name, price in plan.costs.items():
        trials = plan.of_cell(name)
        done = [m for m in (ledger.metrics(trial) for trial in trials) if m]
        found = [[m[stage.prefix + n] for m in done if stage.prefix + n in m] for n in names]
        values = [_mean_and_deviation(column) for column in found]
        seconds = f"{statistics.mean(m['train_seconds'] for m in done):.0f}" if done else "-"
        rows.append((name, *values, f"{len(done)}/{len(trials)}", f"{price.parameters:,}", seconds))
    return Table(
        title="Cells" if len(plan.stages) == 1 else f"Cells: {stage.name}",
        header=("cell", *METRICS.values(), *(r.replace("_", " ") for r in RECALLS), "CIDEr",
                "CoCa loss of the last weights", "seeds", "parameters", "train s"),
        rows=rows,
        note=f"Mean ± standard deviation over seeds on the test split of {SELECTED}. 'Knowing "
        "nothing' is the contrastive loss of a coin and the perplexity of the training captions' "
        "token frequencies. CIDEr is of greedy captions. Training seconds are of all stages.",
    )  # fmt: skip


def _mean_and_deviation(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean = statistics.mean(values)
    digits = 1 if mean > 20 else 3
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean:.{digits}f}{spread}"


def _notes(plan: Plan, ledger: Ledger) -> list[str]:
    notes = [f"Skipped cell {name}: {reason}" for name, reason in plan.skipped.items()]
    notes += [f"Cell {name} equals {other}." for name, other in plan.same.items()]
    notes += [f"Data: {count} pairs skipped: {why}." for why, count in plan.data_skipped.items()]
    for trial in plan.trials:
        if ledger.result(trial) is None:
            reason = (ledger.failure(trial) or "has not run yet").strip().splitlines()[-1]
            notes.append(f"No result for {trial.name} seed {trial.seed}: {reason}")
    recipes = [
        f"{stage.name}: "
        + ", ".join(f"{k}={v}" for k, v in dataclasses.asdict(stage.recipe).items())
        for stage in plan.stages
    ]
    notes += _early_stops(plan, ledger)
    packages = ", ".join(f"{name} {version(name)}" for name in ("ray", "mlflow"))
    notes += [
        f"Size {plan.size}, {_count(plan.seeds)}. Recipe of {'; of '.join(recipes)}.",
        "Paired seeds: a seed gives every cell the same batches, captions, crops and dropout "
        "stream, and bit-identical initial weights in every module that cells share.",
        f"Data fingerprints {', '.join(s.data_fingerprint[:16] for s in plan.stages)}; "
        f"{packages}; "
        f"trained on {', '.join(sorted(_machines(plan, ledger))) or 'nothing yet'}.",
    ]
    return notes


def _early_stops(plan: Plan, ledger: Ledger) -> list[str]:
    """Return which stages ran out of patience: their cells were trained for other lengths."""
    found = [
        f"{trial.name} seed {trial.seed} {stage.name} at {record['metrics']['last_step']}"
        for trial in plan.trials
        for stage in trial.stages
        if (record := ledger.record(trial, stage))
        and record["metrics"]["last_step"] < stage.recipe.steps
    ]
    return [f"Stopped early, out of patience: {', '.join(found)}."] if found else []


def _machines(plan: Plan, ledger: Ledger) -> set[str]:
    records = [record for trial in plan.trials if (record := ledger.result(trial))]
    return {f"{record['device']} with torch {record['torch']}" for record in records}


def write_report(report: Report, plan: Plan, ledger: Ledger) -> list[Path]:
    """Write report.md, effects.csv and the figures into the study; returns their paths."""
    from ablate.figures import draw_figures

    figures = draw_figures(report, plan, ledger)
    markdown, table = ledger.directory / "report.md", ledger.directory / "effects.csv"
    write_text(markdown, report.markdown([path.name for path in figures]))
    write_text(table, report.csv())
    return [markdown, table, *figures]
