"""A walk's report: which cells it liked, which choices mattered, and what would confirm it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ablate.core.plan import Plan
from ablate.core.search_results import BLOCK_SEARCH_FOLDER, Outcome, ranking
from ablate.figures.search_figures import history, importance
from ablate.figures.style import save_all
from ablate.report.build import write_document
from ablate.report.document import Document, Picture, Section, Table
from ablate.report.render import markdown
from ablate.report.search_section import block_search_words

MOST_ROWS = 20
LIMITS = (
    "What may be concluded: which cells are worth seeds. What may not: that one is better. A "
    "difference of two trials holds the noise of one seed, the winner is the luckiest of many, "
    "all cells were trained with one recipe, and they differ in parameters."
)


def write_block_search(
    plan: Plan,
    outcomes: Sequence[Outcome],
    importances: Mapping[str, float],
    parameters: Mapping[str, int],
    command: str,
    study: Path,
) -> list[Path]:
    """Write a walk's report and figures into its study; returns their paths, the page first.

    ``parameters`` are those of cells by name, ``command`` is what confirms the walk.
    """
    folder = study / BLOCK_SEARCH_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    drawings = {
        "history": lambda: history({"blocks": list(outcomes)}),
        "importance": lambda: importance(importances),
    }
    figures = save_all(drawings, folder)
    document = walk_document(plan, outcomes, importances, parameters, command)
    return [*write_document(document, folder, {"report.md": markdown(document)}), *figures]


def walk_document(
    plan: Plan,
    outcomes: Sequence[Outcome],
    importances: Mapping[str, float],
    parameters: Mapping[str, int],
    command: str,
) -> Document:
    """Return a walk's report: which cells it liked, and what would confirm them."""
    ranked = ranking(outcomes)
    base = plan.reference
    rows = [_ranked_row(outcome, base, parameters) for outcome in ranked]
    lost = [o for o in outcomes if o.loss is None]
    rules = {"pruned": "cannot be built", "fail": "failed"}
    items = [f"Trial {o.number} {rules[o.state]}: {_spelt(o)}: {o.reason}" for o in lost]
    pictures = [Picture(stem="history", caption="What each trial gave, by the budget spent.")]
    if importances:
        caption = "How much each choice matters for being among the best trials of this walk."
        pictures.append(Picture(stem="importance", caption=caption))
    return Document(
        title=f"A walk through blocks: {len(outcomes)} trials from {base}",
        banner="EXPLORATORY: the best of many on one seed looks better than it is. Confirm it on "
        "other seeds.",
        opening=[
            f"{len(ranked)} cells were trained; the lowest validation CoCa loss, "
            f"{ranked[0].loss:.4f}, has {ranked[0].short}: {ranked[0].cell}.",
            f"A study of the best cells on seeds that the walk has not seen: {command}",
        ],
        sections=[
            Section(
                title="Ranking",
                pictures=pictures,
                tables=[
                    Table(
                        title="Cells by validation CoCa loss",
                        header=("cell", "validation loss", "parameters", f"vs {base}", "blocks"),
                        rows=rows[:MOST_ROWS],
                        note=f"{len(rows) - MOST_ROWS} more are in search.json."
                        if len(rows) > MOST_ROWS
                        else "",
                    )
                ],
            ),
            *([Section(title="Trials without a result", items=items)] if lost else []),
            Section(title="Methods", paragraphs=[block_search_words(plan.search), LIMITS]),
        ],
    )


def _spelt(outcome: Outcome) -> str:
    """Return a trial's cell, or what was chosen where no cell came of it."""
    return outcome.cell or ", ".join(f"{name}={value}" for name, value in outcome.values.items())


def _ranked_row(outcome: Outcome, base: str, parameters: Mapping[str, int]) -> tuple[str, ...]:
    parameter_count, reference = parameters.get(outcome.cell), parameters.get(base)
    difference = (
        f"{100 * (parameter_count / reference - 1):+.2f}%" if parameter_count and reference else "-"
    )
    count = f"{parameter_count:,}" if parameter_count else "-"
    return (outcome.short, f"{outcome.loss:.4f}", count, difference, outcome.cell)
