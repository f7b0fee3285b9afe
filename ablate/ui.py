"""`python -m ablate.ui`: the MLflow UI on the right store, on loopback."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from ablate.tracking import DEFAULT_STORE, EXPERIMENT, MLFLOW_ENVIRONMENT, absolute_store
from blocks import UsageError
from blocks.errors import Parser


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
    options = parser().parse_args(arguments)
    store = absolute_store(options.mlflow)
    try:
        if store.startswith(("http://", "https://")):
            raise UsageError(f"{store!r} is a server with a UI of its own; open it in a browser")
        if not store.startswith("sqlite:///"):
            raise UsageError(f"cannot open {options.mlflow!r}; write sqlite:///FILE.db")
        if not 1 <= options.port <= 65535:
            raise UsageError(f"--port must be from 1 to 65535, got {options.port}")
        if busy(options.port):
            raise UsageError(f"port {options.port} is in use; choose another with --port")
        experiment = find_experiment(store)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    base = f"http://127.0.0.1:{options.port}"
    print(f"MLflow UI on {base} (Ctrl-C stops it), in some seconds:", flush=True)
    print(f"  studies, their trials below them: {base}/#/experiments/{experiment}/runs", flush=True)
    print(f"  all trials, best first: {runs_link(base, experiment)}", flush=True)
    return serve(store, options.port)


def parser() -> Parser:
    """Return the command line."""
    top = Parser(
        prog="python -m ablate.ui",
        description="Open the MLflow UI on the store that studies are logged to, on loopback only.",
        epilog="example: python -m ablate.ui --port 5001",
    )
    top.add_argument("--mlflow", default=DEFAULT_STORE, metavar="URI", help="a sqlite store")
    top.add_argument("--port", type=int, default=5000)
    return top


def busy(port: int) -> bool:
    """Return whether something answers on a loopback port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def serve(store: str, port: int) -> int:
    """Run MLflow's server until it is stopped; its log is shown only if it fails."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = {
        **os.environ,
        **MLFLOW_ENVIRONMENT,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with tempfile.TemporaryFile(mode="w+") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        stopped = threading.Event()

        def stop(number: int, frame: object) -> None:
            stopped.set()
            server.terminate()

        for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell had SIGINT ignored
            signal.signal(number, stop)
        code = server.wait()
        if stopped.is_set():
            return 0
        if code > 0:
            log.seek(0)
            print("error: MLflow's server stopped:", *log.readlines()[-5:], file=sys.stderr)
    return max(code, 0)


if __name__ == "__main__":
    sys.exit(main())
