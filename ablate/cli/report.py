"""`ablate report`: a study's report, made from its ledger alone."""

from __future__ import annotations

import argparse

from ablate.analysis.results import make_results
from ablate.core.ledger import Ledger
from ablate.core.plan import read_plan
from ablate.driver.console import tell_report
from ablate.report.build import as_json, write_report

DONE = 0


def main(options: argparse.Namespace) -> int:
    """Write the report into the study's directory, or print its effects; return the exit code."""
    plan, ledger = read_plan(options.study), Ledger(options.study)
    if options.json:
        print(as_json(options.study, make_results(plan, ledger)))
    else:
        document, _, paths = write_report(plan, ledger)
        tell_report(document, paths[0])
    return DONE
