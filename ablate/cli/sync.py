"""`ablate sync STUDY`: bring an MLflow store up to date from a study's ledger."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ablate.cli.options import add_store
from ablate.core.ledger import Ledger
from ablate.core.plan import read_plan
from ablate.tracking.mlflow_store import check_store
from ablate.tracking.sync import LACKING, Sync
from blocks import UsageError
from blocks.errors import Parser

BAD_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0, 1 if the store did not take everything, 2 for bad usage."""
    options = parser().parse_args(arguments)
    directory = Path(options.study)
    try:
        check_store(options.mlflow)
        plan, ledger = read_plan(directory), Ledger(directory)
        with ledger.locked():
            return Sync(plan, ledger, options.mlflow, options.models).run()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_USAGE
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return LACKING


def parser() -> Parser:
    """Return the command line."""
    top = Parser(
        prog="ablate sync",
        description="Bring an MLflow store up to date from a study's ledger, which is the record. "
        "Nothing is sent twice.",
        epilog="example: ablate sync studies/full-nano --mlflow http://127.0.0.1:5000",
    )
    top.add_argument("study", metavar="STUDY", help="a study's directory")
    add_store(top)
    return top
