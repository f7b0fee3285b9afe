"""The report's tables of cells: what they reach, stage by stage, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ablate.analysis.cells import CellMeans, Mean
from ablate.analysis.results import StudyResults
from ablate.core.metrics import METRICS, SELECTION
from ablate.core.plan import Plan
from ablate.core.trial import Stage
from ablate.report.document import Section, Table

SELECTED = f"the checkpoint with the lowest validation {METRICS[SELECTION].label}, tested once"


def cells_section(plan: Plan, results: StudyResults) -> Section:
    """Return what the cells reach in every stage."""
    dropped = results.race.seeds if results.race else {}
    first = results.cells[plan.stages[0].name]
    uneven = len({means.seeds for means in first.values()}) > 1
    apart = (
        " Cells here have different seeds, which these means do not make up for: compare cells by "
        "their effects, which do."
    )
    chance = "; ".join(f"in {m.label} it is {m.chance}" for m in METRICS.values() if m.chance)
    return Section(
        title="Cells",
        paragraphs=[
            f"Mean ± standard deviation over seeds on the test split of {SELECTED}. Chance is what "
            f"a model knows that has learned nothing: {chance}. CIDEr is of greedy captions."
            + apart
            * uneven
        ],
        tables=[
            *(
                _cell_table(plan, stage, results.cells[stage.name], dropped)
                for stage in plan.stages
            ),
            _cost_table(plan, results.seconds),
        ],
    )


def _cell_table(
    plan: Plan, stage: Stage, cells: Mapping[str, CellMeans], dropped: Mapping[str, int]
) -> Table:
    """Return what cells reach in a stage, and above them what an untrained model would."""
    tabled = [metric for metric in METRICS.values() if metric.tabled]
    names = [*(f"test/{metric.key}" for metric in tabled), f"last/{SELECTION}"]
    chance = plan.references[stage.name]
    words = [_number(chance[m.key]) if m.key in chance else "-" for m in tabled]
    rows = [("chance", *words, "-", "-")]
    for cell, means in cells.items():
        values = [_mean_and_deviation(means.values.get(name)) for name in names]
        planned = dropped.get(cell, plan.seeds)
        early = ", dropped" * (planned < plan.seeds)
        rows.append((cell, *values, f"{means.seeds}/{planned}{early}"))
    last = f"{METRICS[SELECTION].label} of the last weights"
    return Table(
        title=f"Cells: {stage.name}",
        header=("cell", *(metric.label for metric in tabled), last, "seeds"),
        rows=rows,
        emphasised=_primary_rows(plan, rows),
    )


def _primary_rows(plan: Plan, rows: Sequence[tuple[str, ...]]) -> frozenset[int]:
    cells = plan.primary.cells if plan.primary else ()
    return frozenset(i for i, row in enumerate(rows) if row[0] in cells)


def _cost_table(plan: Plan, seconds: Mapping[str, float]) -> Table:
    """Return what cells cost, and what is left of their difference by the matching rule."""
    rows = []
    for cell, price in plan.costs.items():
        more = plan.beyond_reference(cell)
        parameters, flops = (f"{percents:+.2f}%" for percents in more)
        rows.append((cell, f"{price.parameters:,}", parameters,
                     f"{price.step_flops / 1e9:,.2f}", flops,
                     f"{seconds[cell]:.0f}" if cell in seconds else "-"))  # fmt: skip
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


def _mean_and_deviation(value: Mean | None) -> str:
    """Return a mean with its standard deviation, and how many values are lost."""
    if value is None:
        return "-"
    lost = f" ({value.unusable} unusable)" * (value.unusable > 0)
    if not math.isfinite(value.mean):
        return f"-{lost}"
    digits = _digits(value.mean)
    spread = f" ± {value.standard_deviation:.{digits}f}"
    return f"{_number(value.mean)}{spread * math.isfinite(value.standard_deviation)}{lost}"


def _number(mean: float) -> str:
    return f"{mean:.{_digits(mean)}f}"


def _digits(mean: float) -> int:
    return 1 if mean > 20 else 3
