"""What a study's report says of the search before it: tuned recipes, or where cells come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ablate.core.plan import Plan
from ablate.core.search_results import BASE_CELL, BLOCK_SEARCH_FOLDER, name_of
from ablate.report.document import Section, Table


def block_search_words(search: Mapping[str, Any]) -> str:
    """Return in words how a walk was done."""
    return (
        f"Optuna's TPE chose the block of each slot of the image tower, and its swept options, "
        f"in {search['trials']} trials, {search['generation']} at a time (sampler seed "
        f"{search['sampler']}). Each was trained at full length from seed "
        f"{_listed(search['seeds'])}, which no study has, and judged by its best validation CoCa "
        "loss. Cells that cannot be built count as trials. The test split was not looked at."
    )


def search_section(plan: Plan) -> list[Section]:
    """Return what a study's report says of the search before it; nothing where there was none."""
    if not plan.search:
        return []
    if plan.search["over"] == "blocks":
        words = [
            block_search_words(plan.search),
            f"The best {plan.search['keep']} cells were then trained from the seeds of this study, "
            "which the walk has not seen. The walk's own report is in the folder "
            f"{BLOCK_SEARCH_FOLDER}.",
        ]
        base, cells = plan.cells[BASE_CELL], plan.cells.items()
        rows = [(name, name_of(cell, base)) for name, cell in cells if cell != base]
        table = Table(title="Cells", header=("cell", "blocks of the image tower"), rows=rows)
        return [Section(title="Where the cells come from", paragraphs=words, tables=[table])]
    search = plan.search
    words = [
        f"The recipe of each cell was tuned before its seeds ran, with the same budget for all: "
        f"{search['trials']} trials of full length by Optuna's TPE, {search['generation']} at a "
        f"time (sampler seed {search['sampler']}), each trained from seed "
        f"{_listed(search['seeds'])}, which no study has. The recipe as written was the first "
        "trial of each cell if the space holds it. Chosen was the trial with the lowest validation "
        "CoCa loss; failed trials count. The test split was not looked at.",
        f"Space: {search['space']}. Another batch takes as many more or fewer steps, so that all "
        "cells see equally many pairs.",
    ]
    return [Section(title="Tuning", paragraphs=words, tables=[_tuning_table(plan)])]


def _tuning_table(plan: Plan) -> Table:
    names = list(next(iter(plan.tuned.values()))["values"]) if plan.tuned else []
    rows = [
        (
            cell,
            *(f"{row['values'][name]:.4g}" for name in names),
            f"{row['loss']:.4f}",
            "-" if row["first"] is None else f"{row['first']:.4f}",
            str(row["trials"]),
            str(row["failed"]),
        )
        for cell, row in plan.tuned.items()
    ]
    header = ("cell", *names, "validation loss", "untuned", "trials", "failed")
    return Table(title="Tuned recipes", header=header, rows=rows)


def _listed(seeds: Sequence[int]) -> str:
    return " and ".join(map(str, seeds))
