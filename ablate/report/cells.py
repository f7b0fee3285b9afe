"""The report's tables of cells: what they reach, stage by stage, and what they cost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from ablate.analysis.results import StudyResults
from ablate.core.ledger import Ledger
from ablate.core.metrics import LABELS
from ablate.core.plan import Plan
from ablate.core.trial import Stage, Trial
from ablate.report.document import Picture, Section, Table
from ablate.stats.effects import is_usable

RECALLS = ("image_to_text_recall@1", "text_to_image_recall@1", "image_to_text_recall@5")
SELECTED = "the checkpoint with the lowest validation CoCa loss, tested once"


def cells_section(plan: Plan, ledger: Ledger, found: StudyResults) -> Section:
    """Return what the cells reach in every stage."""
    dropped = found.race.seeds if found.race else {}
    measured = [
        {name: _measured(plan.of_cell(name), ledger, stage) for name in plan.costs}
        for stage in plan.stages
    ]
    uneven = len({len(done) for done in measured[0].values()}) > 1
    apart = (
        " Cells here have different seeds, which these means do not make up for: compare cells by "
        "their effects, which do."
    )
    return Section(
        title="Cells",
        paragraphs=[
            f"Mean ± standard deviation over seeds on the test split of {SELECTED}. 'Knowing "
            "nothing' is the contrastive loss of a coin and the perplexity of the training "
            "captions' token frequencies. CIDEr is of greedy captions." + apart * uneven
        ],
        tables=[
            *(
                _cell_table(plan, stage, own, dropped)
                for stage, own in zip(plan.stages, measured, strict=True)
            ),
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


def _cell_table(
    plan: Plan,
    stage: Stage,
    measured: Mapping[str, Sequence[Mapping[str, float]]],
    dropped: Mapping[str, int],
) -> Table:
    known = plan.references[stage.name]
    chance = (f"{known['contrastive']:.3f}", f"{known['perplexity']:.1f}", "-")
    rows = [("knowing nothing", *chance, *("-",) * (len(RECALLS) + 3))]
    names = [f"test/{k}" for k in (*LABELS, *RECALLS, "cider")] + ["last/coca"]
    for name, done in measured.items():
        values = [mean_and_deviation(_shown(n, m[n]) for m in done if n in m) for n in names]
        wanted = dropped.get(name, plan.seeds)
        early = ", dropped" * (wanted < plan.seeds)
        rows.append((name, *values, f"{len(done)}/{wanted}{early}"))
    return Table(
        title=f"Cells: {stage.name}",
        header=("cell", *LABELS.values(), *(r.replace("_", " ") for r in RECALLS), "CIDEr",
                "CoCa loss of the last weights", "seeds"),
        rows=rows,
        emphasised=_primary_rows(plan, rows),
    )  # fmt: skip


def _shown(name: str, value: float) -> float:
    """Return a metric, nan for a loss that no effect can use either."""
    is_loss = name.partition("/")[2] in LABELS
    return value if is_usable(value) or not is_loss else math.nan


def _measured(trials: Sequence[Trial], ledger: Ledger, stage: Stage) -> list[dict[str, float]]:
    """Return what trials measured in the stage of that name, as far as they have finished it."""
    found = []
    for trial in trials:
        own = next(s for s in trial.stages if s.name == stage.name)  # keys differ by trial
        if record := ledger.record(trial, own):
            found.append(record["metrics"])
    return found


def _primary_rows(plan: Plan, rows: Sequence[tuple[str, ...]]) -> frozenset[int]:
    cells = plan.primary.cells if plan.primary else ()
    return frozenset(i for i, row in enumerate(rows) if row[0] in cells)


def _cost_table(plan: Plan, ledger: Ledger) -> Table:
    """Return what cells cost, and what is left of their difference by the matching rule."""
    rows = []
    for name, price in plan.costs.items():
        done = [metrics for t in plan.of_cell(name) if (metrics := ledger.metrics(t))]
        more = plan.beyond_reference(name)
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
        "in steps of 8 allow. A step is of pretraining, forward and backward. Seconds are of all "
        "stages and as the machine was: where the A/A cell's differ, so little do others tell.",
        emphasised=_primary_rows(plan, rows),
    )


def mean_and_deviation(values: Iterable[float]) -> str:
    """Return a column of numbers as mean and standard deviation, and how many are lost."""
    every = list(values)
    finite = [value for value in every if math.isfinite(value)]
    lost = f" ({len(every) - len(finite)} unusable)" * (len(finite) < len(every))
    if not finite:
        return f"-{lost}"
    mean = statistics.mean(finite)
    digits = 1 if mean > 20 else 3
    spread = f" ± {statistics.stdev(finite):.{digits}f}" if len(finite) > 1 else ""
    return f"{mean:.{digits}f}{spread}{lost}"
