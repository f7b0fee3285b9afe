"""`ablate report STUDY`: what a study found, made from its ledger alone.

Neither the data nor the plugins are needed. The contact sheet of captions is drawn when a study
runs (`ablate.figures.caption_sheet`) and only shown here.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from ablate.analysis.results import StudyResults, effects_csv, make_results
from ablate.core.files import write_text
from ablate.core.ledger import Ledger
from ablate.core.plan import Plan
from ablate.figures.catalogue import FIGURES
from ablate.report.cells import cells_section
from ablate.report.document import Document, Picture, Section
from ablate.report.effect_sections import (
    attribution_section,
    captions_section,
    effects_section,
    examples_section,
    paper_section,
)
from ablate.report.exploratory import exploratory_section
from ablate.report.methods import methods_section, problems_section, provenance_section
from ablate.report.race import race_section
from ablate.report.render import html, latex, markdown
from ablate.report.search_section import search_section
from ablate.report.summary import banner, opening
from blocks import UsageError

FOR_PAPERS = ("The paper's contrast", "Effects")  # sections whose tables are in table.tex


def make_report(plan: Plan, ledger: Ledger, results: StudyResults) -> Document:
    """Return what a study found in three sentences, then the evidence, then how it was done.

    Pictures are those that lie in the study's directory, so draw them first.
    """
    sections = [
        *exploratory_section(plan, ledger),
        *paper_section(plan, results),
        effects_section(plan, results),
        *race_section(plan, ledger, results),
        *attribution_section(plan, results),
        cells_section(plan, results),
        *captions_section(plan),
        *examples_section(results),
        *problems_section(plan, ledger, results),
        *search_section(plan),
        methods_section(plan),
        provenance_section(plan, ledger),
    ]
    present = [_with_figures(section, plan, ledger.directory) for section in sections]
    return Document(
        title=f"Study {ledger.directory.resolve().name}: grid {plan.grid}",
        banner=banner(plan, results),
        opening=opening(plan, results),
        sections=[s for s in present if s.paragraphs or s.tables or s.pictures or s.items],
    )


def _with_figures(section: Section, plan: Plan, directory: Path) -> Section:
    """Return a section with its figures, and of all pictures those that the directory has."""
    figures = [
        Picture(stem=figure.stem, caption=figure.caption(plan))
        for figure in FIGURES
        if figure.section == section.title
    ]
    pictures = [*figures, *section.pictures]
    present = [p for p in pictures if (directory / f"{p.stem}.png").exists()]
    return replace(section, pictures=present)


def texts(document: Document, results: StudyResults) -> dict[str, str]:
    """Return the report's files that hold its numbers, by name: what a bundle is checked by."""
    tables = [
        replace(table, note=table.note or " ".join(section.paragraphs))
        for section in document.sections
        if section.title in FOR_PAPERS
        for table in section.tables
    ]
    return {
        "report.md": markdown(document),
        "effects.csv": effects_csv([*results.effects, *results.noise]),
        "table.tex": latex(tables),
    }


def write_report(plan: Plan, ledger: Ledger) -> tuple[Document, StudyResults, list[Path]]:
    """Write the report and its figures into the study; returns them and all paths, report first."""
    from ablate.figures.catalogue import draw_figures

    results = make_results(plan, ledger)
    try:
        # Before the text: a section names only the pictures that are there.
        figures = draw_figures(plan, ledger.directory, results)
    except OSError as error:
        raise _cannot_write(ledger.directory, error) from None
    document = make_report(plan, ledger, results)
    written = write_document(document, ledger.directory, texts(document, results))
    sheets = sorted(ledger.directory.glob("captions*.png"))
    return document, results, [*written, *figures, *sheets]


def write_document(document: Document, directory: Path, files: dict[str, str]) -> list[Path]:
    """Write a document as ``report.html`` and the other files given; returns their paths."""
    files = {"report.html": html(document, directory), **files}
    try:
        for name, text in files.items():
            write_text(directory / name, text)
    except OSError as error:
        raise _cannot_write(directory, error) from None
    return [directory / name for name in files]


def _cannot_write(directory: Path, error: OSError) -> UsageError:
    return UsageError(f"cannot write into {str(directory)!r}: {error.strerror}")


def as_json(study: Path, results: StudyResults) -> str:
    """Return effects and attributions as JSON; what is not finite is null."""
    data = {
        "study": str(study),
        "effects": [dataclasses.asdict(effect) for effect in results.effects],
        "noise": [dataclasses.asdict(effect) for effect in results.noise],
        "attributions": {m: dataclasses.asdict(a) for m, a in results.attributions.items()},
        "problems": results.problems,
    }
    return json.dumps(_finite(data), allow_nan=False)


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {name: _finite(value) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
