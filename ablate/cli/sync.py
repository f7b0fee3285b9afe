"""`ablate sync`: bring an MLflow store up to date from a study's ledger."""

from __future__ import annotations

import argparse
from pathlib import Path

from ablate.core.ledger import Ledger
from ablate.core.plan import read_plan
from ablate.tracking.mlflow_store import check_store
from ablate.tracking.sync import Sync


def main(options: argparse.Namespace) -> int:
    """Write what is missing; return 0, or 1 if the store did not take everything."""
    directory = Path(options.study)
    check_store(options.mlflow)
    plan, ledger = read_plan(directory), Ledger(directory)
    with ledger.locked():
        return Sync(plan, ledger, options.mlflow, options.models).run()
