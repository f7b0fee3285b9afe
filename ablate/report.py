"""`python -m ablate.report STUDY`: what a study found, made from its ledger alone.

Neither the data nor the plugins are needed. The contact sheet of captions is drawn when a study
runs (`ablate.contact_sheet`) and only shown here.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ablate.cells import cells_section
from ablate.compare import compare_studies
from ablate.document import Document, Section
from ablate.exploratory import exploratory_section
from ablate.files import write_text
from ablate.findings import Findings, effects_csv, make_findings
from ablate.ledger import Ledger
from ablate.methods import methods_section, problems_section, provenance_section
from ablate.opening import opening, stamp
from ablate.plan import FILE, Plan, read_plan
from ablate.race import race_section
from ablate.render import html, latex, markdown
from ablate.search_methods import search_section
from ablate.sections import (
    attribution_section,
    captions_section,
    effects_section,
    examples_section,
    paper_section,
)
from blocks import UsageError
from blocks.errors import Parser

DONE, BAD_USAGE = 0, 2
FOR_PAPERS = ("The paper's contrast", "Effects")  # sections whose tables are in table.tex


def make_report(plan: Plan, ledger: Ledger, found: Findings) -> Document:
    """Return what a study found in three sentences, then the evidence, then how it was done.

    Pictures are those that lie in the study's directory, so draw them first.
    """
    sections = [
        *exploratory_section(plan, ledger),
        *paper_section(plan, found),
        effects_section(plan, found),
        *race_section(plan, ledger, found),
        *attribution_section(plan, found),
        cells_section(plan, ledger, found),
        *captions_section(plan),
        *examples_section(found),
        *problems_section(plan, ledger, found),
        *search_section(plan),
        methods_section(plan),
        provenance_section(plan, ledger),
    ]
    present = [_with_pictures_of(section, ledger.directory) for section in sections]
    return Document(
        title=f"Study {ledger.directory.resolve().name}: grid {plan.grid}",
        stamp=stamp(plan, found),
        opening=opening(plan, found),
        sections=[s for s in present if s.paragraphs or s.tables or s.pictures or s.items],
    )


def _with_pictures_of(section: Section, directory: Path) -> Section:
    """Return a section without the pictures that the directory does not have."""
    present = [p for p in section.pictures if (directory / f"{p.stem}.png").exists()]
    return replace(section, pictures=present)


def texts(document: Document, found: Findings) -> dict[str, str]:
    """Return the report's files that hold its numbers, by name: what a bundle is checked by."""
    tables = [
        replace(table, note=table.note or " ".join(section.paragraphs))
        for section in document.sections
        if section.title in FOR_PAPERS
        for table in section.tables
    ]
    return {
        "report.md": markdown(document),
        "effects.csv": effects_csv([*found.effects, *found.noise]),
        "table.tex": latex(tables),
    }


def write_report(plan: Plan, ledger: Ledger) -> tuple[Document, Findings, list[Path]]:
    """Write the report and its figures into the study; returns them and all paths, report first."""
    from ablate.figures import draw_figures

    found = make_findings(plan, ledger)
    try:
        figures = draw_figures(plan, ledger, found)
    except OSError as error:
        raise _cannot_write(ledger.directory, error) from None
    document = make_report(plan, ledger, found)
    written = write_document(document, ledger.directory, texts(document, found))
    sheets = sorted(ledger.directory.glob("captions*.png"))
    return document, found, [*written, *figures, *sheets]


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


def as_json(study: Path, found: Findings) -> str:
    """Return effects and attributions as JSON; what is not finite is null."""
    data = {
        "study": str(study),
        "effects": [dataclasses.asdict(effect) for effect in found.effects],
        "noise": [dataclasses.asdict(effect) for effect in found.noise],
        "attributions": {m: dataclasses.asdict(a) for m, a in found.attributions.items()},
        "problems": found.problems,
    }
    return json.dumps(_finite(data), allow_nan=False)


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {name: _finite(value) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = Parser(
        prog="python -m ablate.report",
        description="Make a study's report anew from its ledger: report.html, report.md, "
        "effects.csv, table.tex and the figures. Needs neither the data nor plugins.",
        epilog="example: python -m ablate.report --compare studies/a studies/b --out comparison",
    )
    top.add_argument("study", type=Path, nargs="?", metavar="STUDY")
    top.add_argument("--compare", type=Path, nargs=2, metavar="STUDY", help="two, side by side")
    top.add_argument("--out", type=Path, metavar="DIR", help="where to write a comparison")
    top.add_argument("--json", action="store_true", help="print effects as JSON; write nothing")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 2 bad usage."""
    options = parser().parse_args(arguments)
    try:
        _check(options)
        if options.compare:
            first, second = options.compare
            _compare(first, second, options.out)
        elif options.json:
            plan, ledger = read_plan(options.study), Ledger(options.study)
            print(as_json(options.study, make_findings(plan, ledger)))
        else:
            document, _, paths = write_report(read_plan(options.study), Ledger(options.study))
            _tell(document, paths)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_USAGE
    return DONE


def _check(options: argparse.Namespace) -> None:
    if bool(options.study) == bool(options.compare):
        raise UsageError("name one STUDY, or two after --compare")
    if options.out and not options.compare:
        raise UsageError("--out is for --compare; a study's report is in its own directory")
    if options.json and options.compare:
        raise UsageError("--json is for one study, not for --compare")
    if options.out and (options.out / FILE).exists():
        raise UsageError(f"{str(options.out)!r} holds a study, whose report this would overwrite")


def _compare(first: Path, second: Path, out: Path | None) -> None:
    document = compare_studies(first, second)
    if out is None:
        print(markdown(document), end="")
    else:
        _tell(document, write_document(document, out, {"report.md": markdown(document)}))


def _tell(document: Document, paths: Sequence[Path]) -> None:
    print(*([f"WARNING {document.stamp}"] if document.stamp else []), *document.opening, sep="\n")
    print(f"report: {paths[0]}")


if __name__ == "__main__":
    sys.exit(main())
