from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from ablate.ui import busy, find_experiment, main, runs_link


def test_without_a_store_it_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--mlflow", f"sqlite:///{tmp_path}/mlflow.db"]) == 2
    assert "run a study first" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert main(["--mlflow", "", "--port", "5999"]) == 2
    assert "write sqlite:///FILE.db" in capsys.readouterr().err
    assert main(["--port", "99999"]) == 2
    assert "--port must be from 1 to 65535" in capsys.readouterr().err
    assert main(["--mlflow", "http://example.invalid"]) == 2
    assert "is a server with a UI of its own" in capsys.readouterr().err


def test_the_link_sorts_by_a_metric_so_that_children_show() -> None:
    link = runs_link("http://127.0.0.1:5000", "3")
    assert link.startswith("http://127.0.0.1:5000/#/experiments/3/runs?searchFilter=tags.%60ablate")
    assert "orderByKey=metrics.%60test%2Fcoca%60" in link


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_the_ui_answers_on_loopback_and_leaves_nothing(
    tmp_path: Path, stop: signal.Signals
) -> None:
    from mlflow import MlflowClient

    store = f"sqlite:///{tmp_path}/mlflow.db"
    created = MlflowClient(tracking_uri=store).create_experiment("coca-blocks")
    assert find_experiment(store) == created
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "ablate.ui", "--mlflow", store, "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert f"http://127.0.0.1:{port}" in server.stdout.readline()
            assert answers(f"http://127.0.0.1:{port}/health") == "OK"
        finally:
            server.send_signal(stop)
            try:
                assert server.wait(timeout=30) == 0
            finally:
                server.kill()
    assert not busy(port)


def answers(url: str) -> str:
    deadline = time.monotonic() + 90
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            assert time.monotonic() < deadline, f"{url} does not answer"
            time.sleep(0.5)
