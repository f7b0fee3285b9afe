"""`python -m ablate.ui`: the MLflow UI on the right store, on loopback."""

from __future__ import annotations

import argparse
import os
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from ablate.tracking import DEFAULT_STORE, EXPERIMENT, MLFLOW_ENVIRONMENT, absolute_store
from blocks import UsageError


def runs_link(base: str, experiment: str) -> str:
    """Return a link to the trials' table.

    It sorts by a metric, since MLflow hides children under their parents in any other order.
    """
    trials = quote("tags.`ablate.role` = 'trial'", safe="")
    order = quote("metrics.`test/coca`", safe="")
    return (
        f"{base}/#/experiments/{experiment}/runs?searchFilter={trials}"
        f"&orderByKey={order}&orderByAsc=true"
    )


def find_experiment(store: str) -> str:
    """Return the experiment's id in a sqlite store; raises `UsageError` where there is none."""
    path = Path(store.removeprefix("sqlite:///"))
    if not path.is_file():
        raise UsageError(f"there is no MLflow store at {str(path)!r} yet; run a study first")
    with sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True) as database:
        query = "select experiment_id from experiments where name = ?"
        row = database.execute(query, (EXPERIMENT,)).fetchone()
    if row is None:
        raise UsageError(f"the MLflow store {str(path)!r} holds no study yet; run one first")
    return str(row[0])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ablate.ui",
        description="Open the MLflow UI on the store that studies are logged to, on loopback only.",
        epilog="example: python -m ablate.ui --port 5001",
    )
    parser.add_argument("--mlflow", default=DEFAULT_STORE, metavar="URI", help="a sqlite store")
    parser.add_argument("--port", type=int, default=5000)
    options = parser.parse_args(arguments)
    store = absolute_store(options.mlflow)
    try:
        if not store.startswith("sqlite:"):
            raise UsageError(f"{store!r} is a server with a UI of its own; open it in a browser")
        experiment = find_experiment(store)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    base = f"http://127.0.0.1:{options.port}"
    print(f"MLflow UI on {base} (Ctrl-C stops it). All trials, best first:", flush=True)
    print(f"  {runs_link(base, experiment)}", flush=True)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store]
    command += ["--host", "127.0.0.1", "--port", str(options.port), "--workers", "1"]
    environment = {**MLFLOW_ENVIRONMENT, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    try:
        return subprocess.run(command, env={**os.environ, **environment}, check=False).returncode
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
