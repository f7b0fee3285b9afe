"""`ablate report STUDY`: a study's report, made from its ledger alone."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ablate.analysis.results import make_results
from ablate.core.ledger import Ledger
from ablate.core.plan import STUDY_FILE, read_plan
from ablate.report.build import as_json, write_document, write_report
from ablate.report.compare import compare_studies
from ablate.report.document import Document
from ablate.report.render import markdown
from blocks import UsageError
from blocks.errors import Parser

DONE, BAD_USAGE = 0, 2


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = Parser(
        prog="ablate report",
        description="Make a study's report anew from its ledger: report.html, report.md, "
        "effects.csv, table.tex and the figures. Needs neither the data nor plugins.",
        epilog="example: ablate report --compare studies/a studies/b --out comparison",
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
            print(as_json(options.study, make_results(plan, ledger)))
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
    if options.out and (options.out / STUDY_FILE).exists():
        raise UsageError(f"{str(options.out)!r} holds a study, whose report this would overwrite")


def _compare(first: Path, second: Path, out: Path | None) -> None:
    document = compare_studies(first, second)
    if out is None:
        print(markdown(document), end="")
    else:
        _tell(document, write_document(document, out, {"report.md": markdown(document)}))


def _tell(document: Document, paths: Sequence[Path]) -> None:
    print(*([f"WARNING {document.banner}"] if document.banner else []), *document.opening, sep="\n")
    print(f"report: {paths[0]}")
