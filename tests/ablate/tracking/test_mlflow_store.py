"""Which stores MLflow can be told of: files that cannot be one, and real servers."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import takewhile
from pathlib import Path
from tempfile import gettempdir

import pytest
from mlflow import MlflowClient
from tracked import Study, effects_of, runs_of, track, wait_until

from ablate.cli.command import main
from ablate.tracking import sync
from ablate.tracking.mlflow_store import check_store, schema_revisions
from ablate.tracking.tracker import Tracker
from blocks import UsageError


def make_database(path: Path, *statements: str) -> str:
    database = sqlite3.connect(path)
    for statement in statements:
        database.execute(statement)
    database.commit()
    database.close()
    return f"sqlite:///{path}"


def test_files_that_cannot_be_a_store_are_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("not a database, though its name says so\n" * 9)
    (tmp_path / "folder.db").mkdir()
    other = make_database(tmp_path / "other.db", "create table songs (name text)")
    version = "create table alembic_version (version_num text)"
    tables = ("create table experiments (name text)", version)

    def at(name: str, number: str) -> str:
        found = f"insert into alembic_version values ('{number}')"
        return make_database(tmp_path / name, *tables, found)

    revisions = schema_revisions()
    assert len(revisions) > 30
    cases = {
        f"sqlite:///{tmp_path}/text.db": "cannot be used .file is not a database",
        f"sqlite:///{tmp_path}/folder.db": "names no file",
        f"sqlite:///{tmp_path}/nowhere/mlflow.db": "there is no folder",
        other: "database of another program",
        at("old.db", revisions[-1]): "older MLflow than .*mlflow db upgrade",
        at("new.db", "0123456789ab"): "another MLflow than .*probably a newer",
        "sqlite:///": "names no file",
        "mlflow.db": "did you mean sqlite:///mlflow.db",
        "./mlruns": "write sqlite:///FILE.db",
        "http://": "names no host",
        "postgresql://me@127.0.0.1/db": "needs the Python package 'psycopg",
        "mysql+nosuch://me@127.0.0.1/db": "cannot read --mlflow",
        "postgresql://me:x@127.0.0.1:notaport/db": "cannot read --mlflow",
    }
    for uri, message in cases.items():
        with pytest.raises(UsageError, match=message):
            check_store(uri)
    for uri in ("databricks", "databricks://work", "https://example.invalid:5000",
                at("same.db", revisions[0])):  # fmt: skip
        check_store(uri)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Be a user whom permissions hold: root may write everything."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_a_read_only_store_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("shared")
    for above in takewhile(lambda path: path != Path(gettempdir()), (folder, *folder.parents)):
        above.chmod(0o755)
    store = make_database(folder / "mlflow.db", "create table experiments (name text)")
    with as_nobody(), pytest.raises(UsageError, match="shared0' is read-only"):
        check_store(store)
    (folder / "mlflow.db").chmod(0o444)
    folder.chmod(0o777)
    with as_nobody(), pytest.raises(UsageError, match=r"mlflow\.db' is read-only"):
        check_store(store)


@contextmanager
def answering(version: str) -> Iterator[str]:
    """Serve a version of MLflow's and nothing else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/version" else 500)
            self.end_headers()
            self.wfile.write(version.encode() if self.path == "/version" else b"{}")

        do_POST = do_GET  # noqa: N815

        def log_message(self, *words: object) -> None:
            assert words

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_server_of_another_version_is_told_once_and_one_that_fails_stops_nothing(
    study: Study,
) -> None:
    plan, ledger = study
    said: list[str] = []
    with answering("2.1.0") as uri:
        track(plan, ledger, uri, said)
    assert "has version 2.1.0, this study 3." in said[0]
    assert "The study goes on" in said[1]
    assert "ablate sync" in said[2]
    assert len(said) == 3


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(folder: Path, port: int) -> Iterator[str]:
    """Run MLflow's own server on loopback."""
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--host", "127.0.0.1"]
    command += ["--artifacts-destination", str(folder / "served")]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("w") as shown:
        server = subprocess.Popen(command, stdout=shown, stderr=shown, env=environment)
    try:
        wait_until(lambda: healthy(port))
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=30)


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.read() == b"OK")
    except OSError:
        return False


@pytest.mark.slow
def test_a_server_that_comes_late_takes_the_whole_study(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, ledger = study
    said: list[str] = []
    port = free_port()
    tracker = Tracker(plan, ledger, f"http://127.0.0.1:{port}", said.append)
    tracker.open()
    wait_until(lambda: bool(said))
    assert "does not answer (Connection refused). The study goes on" in said[0]
    with serving(tmp_path, port) as uri:
        tracker.close(effects_of(plan, ledger), sync.report_files(ledger.directory), plan.trials)
        assert len(said) == 1, said
        assert capsys.readouterr() == ("", "")  # MLflow would announce each run
        assert {run.info.status for run in runs_of(uri, "trial").values()} == {"FINISHED"}
        (parent,) = runs_of(uri, "study").values()
        client = MlflowClient(tracking_uri=uri)
        assert len(client.list_artifacts(parent.info.run_id, "report")) == 2
        assert main(["sync", str(ledger.directory), "--mlflow", uri]) == 0


@pytest.mark.slow
def test_the_databricks_protocol_is_spoken(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, ledger = study
    said: list[str] = []
    for file in sync.report_files(ledger.directory):
        file.unlink()  # a local server has no artifact store that Databricks' client knows
    with serving(tmp_path, free_port()) as uri:
        monkeypatch.setenv("DATABRICKS_HOST", uri)
        monkeypatch.setenv("DATABRICKS_TOKEN", "none")
        track(plan, ledger, "databricks", said, models=False)
        client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name("/Shared/coca-blocks")
        assert experiment is not None
        found = client.search_runs([experiment.experiment_id])
    assert said == []
    roles = sorted(run.data.tags["ablate.role"] for run in found)
    assert roles == ["effect", "study", "trial", "trial", "trial", "trial"]
    assert {run.info.status for run in found} == {"FINISHED"}
