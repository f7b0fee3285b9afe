"""What `--plan` prints: cells, their cost, and what the study can tell."""

from __future__ import annotations

from ablate.plan import Plan
from ablate.statistics import smallest_p

SHOWN = ("norm", "ffn", "position")  # blocks of the image tower that the table has


def describe(plan: Plan) -> str:
    """Return the plan as text for a terminal."""
    recipe, reference = plan.stages[0].recipe, plan.reference
    base = plan.costs[reference]
    head = [
        f"grid {plan.grid}: {plan.summary}",
        f"size {plan.size}, data {recipe.data}, {recipe.steps} steps of {recipe.batch} pairs, "
        f"{len(plan.costs)} cells x {plan.seeds} seeds = {len(plan.trials)} trials",
        *(
            f"then {stage.name}: {stage.recipe.data}, {stage.recipe.steps} steps of "
            f"{stage.recipe.batch} pairs, lr {stage.recipe.lr:g}"
            for stage in plan.stages[1:]
        ),
    ]
    rows = [["cell", *SHOWN, "parameters", f"vs {reference}", "GFLOP/step"]]
    for name, price in plan.costs.items():
        image = plan.cells[name].image
        mismatch = 100 * (price.parameters / base.parameters - 1)
        numbers = [f"{price.parameters:,}", f"{mismatch:+.2f}%", f"{price.step_flops / 1e9:,.2f}"]
        rows.append([name, *(getattr(image, kind) for kind in SHOWN), *numbers])
    foot = [f"skipped {name}: {reason}" for name, reason in plan.skipped.items()]
    foot += [f"same cell {name}: equals {other}" for name, other in plan.same.items()]
    foot += [f"data skipped: {count} x {why}" for why, count in plan.data_skipped.items()]
    foot += [
        "",
        f"with {plan.seeds} seed{'s' * (plan.seeds > 1)} no two-sided p can be below "
        f"{smallest_p(plan.seeds):.3g}",
    ]
    return "\n".join([*head, "", *_align(rows), *foot])


def _align(rows: list[list[str]]) -> list[str]:
    """Return a table's lines, the numbers, which are its last three columns, to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            text.rjust(width) if i >= len(row) - 3 else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
