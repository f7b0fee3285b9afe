"""`ablate ui`: the MLflow UI on the right store, on loopback."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

from ablate.core.metrics import DECIDES
from ablate.core.provenance import without_passwords
from ablate.tracking.mlflow_store import (
    MLFLOW_ENVIRONMENT,
    SERVERS,
    StoreError,
    absolute_store,
    check_store,
    connect,
    explain,
    find_experiment,
    sqlite_file,
    without_user,
)
from ablate.tracking.mlflow_views import (
    LOADED,
    MAX_COMPARED,
    TAG,
    compare_link,
    runs_filter,
    runs_link,
    view_key,
    view_link,
)
from blocks import UsageError

STUDIES = 3  # how many of the latest ones get links of their own


def main(options: argparse.Namespace) -> int:
    """Print links into the UI, and serve it where the store is no server itself."""
    store = absolute_store(options.mlflow)
    is_server = store.startswith(SERVERS)
    _check(options.mlflow, options.port)
    base = without_user(store) if is_server else f"http://127.0.0.1:{options.port}"
    try:
        lines = list(links(options.mlflow, base))
    except StoreError as error:
        raise UsageError(str(error)) from error
    if is_server:
        print(f"{without_passwords(store)} is a server with a UI of its own:")
    else:
        print(f"MLflow UI on {base} (Ctrl-C stops it), in some seconds:")
    print("\n".join(lines), flush=True)
    return 0 if is_server else serve(store, options.port)


def _check(uri: str, port: int) -> None:
    """Raise `UsageError` where no UI can be opened."""
    check_store(uri)
    store = absolute_store(uri)
    file = sqlite_file(store)
    if file is not None and not file.is_file():
        raise UsageError(f"there is no MLflow store at {str(file)!r} yet; run a study first")
    if store.startswith("databricks"):
        raise UsageError(
            f"{without_passwords(uri)!r} has a UI of its own; open the workspace in a browser"
        )
    if not 1 <= port <= 65535:
        raise UsageError(f"--port must be from 1 to 65535, got {port}")
    if not store.startswith(SERVERS) and busy(port):
        raise UsageError(f"port {port} is in use; choose another with --port")


def links(uri: str, base: str) -> Iterator[str]:
    """Yield lines with links into the UI: the latest studies first, then all of the store.

    Raises `UsageError` where the store holds no study, `StoreError` where it does not answer.
    """
    store = without_passwords(absolute_store(uri))
    client = connect(uri, lambda text: print(text, file=sys.stderr))
    try:
        experiment = find_experiment(client, uri)
        chosen = "tags.`ablate.role` = 'study'"
        order = ["attributes.start_time DESC"]
        studies = experiment and client.search_runs(
            [experiment], chosen, max_results=STUDIES, order_by=order
        )
        if not experiment or not studies:
            raise UsageError(f"the MLflow store {store!r} holds no study yet; run one first")
        tags = client.get_experiment(experiment).tags
        for study in studies:
            yield from _study_links(client, base, study, tags)
    except (UsageError, StoreError):
        raise
    except Exception as error:  # any database or network error, of any backend
        raise StoreError(f"MLflow store {store}: {explain(error)}") from error
    yield f"  all studies, their trials below them: {base}/#/experiments/{experiment}/runs"
    trials = "tags.`ablate.role` = 'trial' and tags.`ablate.current` = 'true'"
    yield f"  all trials, best first: {runs_link(base, experiment, trials)}"


def _study_links(client: Any, base: str, study: Any, tags: dict[str, str]) -> Iterator[str]:
    """Yield links to a study's cells, trials, effects and report; plain ones if it has no view."""
    experiment, parent = study.info.experiment_id, study.info.run_id
    first = client.search_runs(
        [experiment],
        runs_filter(parent),
        max_results=MAX_COMPARED,
        order_by=["params.`pair` ASC"],  # as many of each cell; the best ones would flatter
    )
    runs = [run.info.run_id for run in first]
    decides = study.data.tags.get("ablate.decides", DECIDES)
    plain = {
        "trial": runs_link(base, experiment, runs_filter(parent)),
        "effect": runs_link(
            base, experiment, runs_filter(parent, "effect"), f"{decides}/p_adjusted"
        ),
    }
    ready = {
        role: view_link(base, experiment, parent, role)
        for role in plain
        if TAG + view_key(parent, role) in tags
    }
    links = plain | ready
    done = int(study.data.tags.get("ablate.trials", "0").split()[0])
    part = f" (the first {LOADED} of {done} trials)" if done > LOADED else ""
    of = f"{MAX_COMPARED} of its trials" if done > MAX_COMPARED else "trials"
    yield f"  study {study.info.run_name}"
    yield f"    cells compared{part}: {links['trial']}"
    yield f"    {of} side by side: {compare_link(base, experiment, runs)}"
    yield f"    effects: {links['effect']}"
    run = f"{base}/#/experiments/{experiment}/runs/{parent}"
    yield f"    report: {run}/artifacts/report/report.html"


def busy(port: int) -> bool:
    """Return whether something answers on a loopback port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def serve(store: str, port: int) -> int:
    """Run MLflow's server until it is stopped; its log is shown only if it fails."""
    command = [sys.executable, "-m", "mlflow", "server"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = {
        **os.environ,
        **MLFLOW_ENVIRONMENT,
        "MLFLOW_BACKEND_STORE_URI": store,  # all users can read a command, password and all
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
        if code:  # below 0: a signal that somebody else sent
            log.seek(0)
            why = f" by signal {-code}" if code < 0 else ""
            last = without_passwords("".join(log.readlines()[-5:]))
            print(f"error: MLflow's server stopped{why}:", last, file=sys.stderr)
    return 1 if code else 0
