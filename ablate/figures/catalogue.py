"""The report's figures, by name: what draws each, and where it stands with which caption."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ablate.analysis.results import StudyResults
from ablate.core.metrics import FINETUNED
from ablate.core.plan import Plan
from ablate.core.search_results import read_outcomes
from ablate.figures.cell_figures import cost_against_quality, curves
from ablate.figures.effect_figures import forest, interactions, shapley, slopes
from ablate.figures.search_figures import history
from ablate.figures.style import Drawing, save_all

FOREST = (
    "every contrast's improvement with its 95% interval. A filled point is a clear effect, a "
    "square is equivalent, a hollow point is not clear; arrows go on beyond the picture."
)


@dataclass(frozen=True, kw_only=True)
class ReportFigure:
    """A figure of the report; to add one is to enter it in `FIGURES`."""

    stem: str
    """What its files are called, before ``.png`` and ``.svg``."""

    section: str
    """The title of the section that it stands in; without that section it is not shown."""

    caption: Callable[[Plan], str]
    """What is written below it."""

    draw: Callable[[Plan, StudyResults, Path], Drawing | None]
    """Draws it from plan, results and the study's folder; None where there is nothing to show."""


FIGURES = (
    ReportFigure(
        stem="effects",
        section="Effects",
        caption=lambda plan: f"{plan.stages[0].name}: {FOREST}",
        draw=lambda plan, results, folder: forest(plan, results),
    ),
    ReportFigure(
        stem="effects-finetuned",
        section="Effects",
        caption=lambda plan: f"Mean of the fine-tunings: {FOREST}",
        draw=lambda plan, results, folder: forest(plan, results, FINETUNED),
    ),
    ReportFigure(
        stem="slopes",
        section="Effects",
        caption=lambda plan: (
            "The primary contrast seed by seed: where lines run alike, pairing by seed gains most."
        ),
        draw=lambda plan, results, folder: slopes(plan, results),
    ),
    ReportFigure(
        stem="shapley",
        section="What each swap contributes",
        caption=lambda plan: "Each swap's share of the gain",
        draw=lambda plan, results, folder: shapley(results),
    ),
    ReportFigure(
        stem="interactions",
        section="What each swap contributes",
        caption=lambda plan: (
            "Each swap's gain without and with another one. Parallel lines add up; "
            "the dashed one shows where they would lead. Lines up and down are 95% intervals."
        ),
        draw=lambda plan, results, folder: interactions(plan, results),
    ),
    ReportFigure(
        stem="curves",
        section="Cells",
        caption=lambda plan: (
            "How cells learn: means over seeds, with bands from the lowest seed to the highest for "
            "the primary contrast. Below, each seed is compared with the reference's of the same "
            "seed at the same step."
        ),
        draw=lambda plan, results, folder: curves(plan, results),
    ),
    ReportFigure(
        stem="cost",
        section="Cells",
        caption=lambda plan: (
            "Cost against quality: mean and 95% interval over seeds, cells "
            "numbered from the best one on. Points of equal cost are moved aside."
        ),
        draw=lambda plan, results, folder: cost_against_quality(plan, results),
    ),
    ReportFigure(
        stem="search",
        section="Tuning",
        caption=lambda plan: "Validation loss by search trials spent on each cell.",
        draw=lambda plan, results, folder: history(read_outcomes(folder)) if plan.tuned else None,
    ),
)
# The only SVGs that a page takes in as they are: any other file of that kind may be a stranger's.
DRAWINGS = tuple(figure.stem for figure in FIGURES)


def draw_figures(plan: Plan, folder: Path, results: StudyResults) -> list[Path]:
    """Draw all figures that the study has data for, each as PNG and SVG; returns their paths."""
    drawings: dict[str, Callable[[], Drawing | None]] = {
        figure.stem: lambda figure=figure: figure.draw(plan, results, folder)  # type: ignore[misc]
        for figure in FIGURES
    }
    return save_all(drawings, folder)
