"""What an exploratory study reports: how far ASHA let each cell come, and its validation losses."""

from __future__ import annotations

import statistics

from ablate.core.ledger import Ledger
from ablate.core.metrics import SELECTION
from ablate.core.plan import Plan
from ablate.report.document import Section, Table


def exploratory_section(plan: Plan, ledger: Ledger) -> list[Section]:
    """Return the cells' mean validation losses by look, of the seeds that came so far."""
    if not plan.exploratory:
        return []
    losses = {name: _by_step(plan, ledger, name) for name in plan.costs}
    steps = sorted({step for by_step in losses.values() for step in by_step})
    rows = [
        (name, *(_words(losses[name].get(step, [])) for step in steps), _ends(plan, ledger, name))
        for name in plan.costs
    ]
    table = Table(
        title="Validation CoCa loss by step",
        header=("cell", *map(str, steps), "finished / stopped"),
        rows=rows,
        note="Mean over the seeds that came so far, and their number. Seeds that were stopped are "
        "the worse ones of all cells: means of later columns are of fewer and luckier seeds.",
    )
    return [
        Section(
            title="How far cells came",
            paragraphs=[
                "At each look at the validation split the worse half of all trials was stopped "
                "(ASHA, arXiv 1810.05934). Use this to choose what to compare, then compare it "
                "with seeds of full length."
            ],
            tables=[table],
        )
    ]


def _by_step(plan: Plan, ledger: Ledger, cell: str) -> dict[int, list[float]]:
    by_step: dict[int, list[float]] = {}
    for trial in plan.of_cell(cell):
        for line in ledger.curve(trial):
            if (loss := line.get(f"val/{SELECTION}")) is not None:
                by_step.setdefault(line["step"], []).append(loss)
    return by_step


def _words(losses: list[float]) -> str:
    return f"{statistics.fmean(losses):.3f} ({len(losses)})" if losses else "-"


def _ends(plan: Plan, ledger: Ledger, cell: str) -> str:
    trials = plan.of_cell(cell)
    finished = sum(ledger.result(trial) is not None for trial in trials)
    stopped = sum(ledger.stopped(trial) is not None for trial in trials)
    return f"{finished} / {stopped}"
