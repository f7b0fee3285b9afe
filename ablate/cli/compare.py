"""`ablate compare`: the effects of two studies side by side."""

from __future__ import annotations

import argparse

from ablate.core.plan import STUDY_FILE
from ablate.driver.console import tell_report
from ablate.report.build import write_document
from ablate.report.compare import compare_studies
from ablate.report.render import markdown
from blocks import UsageError

DONE = 0


def main(options: argparse.Namespace) -> int:
    """Print the comparison, or write it into a directory of its own; return the exit code."""
    if options.out and (options.out / STUDY_FILE).exists():
        raise UsageError(f"{str(options.out)!r} holds a study, whose report this would overwrite")
    document = compare_studies(*options.studies)
    if options.out is None:
        print(markdown(document), end="")
    else:
        paths = write_document(document, options.out, {"report.md": markdown(document)})
        tell_report(document, paths[0])
    return DONE
