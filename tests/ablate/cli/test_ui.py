from __future__ import annotations

import functools
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, unquote

import browser
import pytest
from samples import SMALL, shapes_rows, write_shard

from ablate.cli.command import main
from ablate.cli.ui import busy, serve
from ablate.core.ledger import Ledger
from ablate.core.plan import Plan, write_plan
from ablate.core.provenance import launch_note
from ablate.planning.planner import make_plan
from ablate.report.build import write_report
from ablate.tracking.mlflow_store import without_user
from ablate.tracking.mlflow_views import compare_link, runs_filter, runs_link
from ablate.training.stages import run_trial
from blocks import default_registry

BASE = "http://127.0.0.1:5000"


def test_without_a_store_it_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = {
        ("--mlflow", f"sqlite:///{tmp_path}/mlflow.db"): "run a study first",
        ("--mlflow", "", "--port", "5999"): "write sqlite:///FILE.db",
        ("--mlflow", "databricks"): "has a UI of its own",
        ("--mlflow", "http://127.0.0.1:9"): "does not answer (Connection refused)",
    }
    for arguments, message in cases.items():
        assert main(["ui", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mlflow.db").touch()
    store = ("--mlflow", f"sqlite:///{tmp_path}/mlflow.db")
    assert main(["ui", *store, "--port", "99999"]) == 2
    assert "--port must be from 1 to 65535" in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["ui", *store, "--port", str(taken.getsockname()[1])]) == 2
    assert "is in use" in capsys.readouterr().err


def test_links_sort_by_a_metric_so_that_children_show() -> None:
    link = runs_link(BASE, "3", runs_filter("0123"))
    page, _, query = link.partition("?")
    assert page == f"{BASE}/#/experiments/3/runs"
    assert parse_qs(query)["orderByKey"] == ["metrics.`test/coca`"]
    assert "tags.`mlflow.parentRunId` = '0123'" in parse_qs(query)["searchFilter"][0]
    compared = unquote(compare_link(BASE, "3", ["a", "b"]))
    assert compared == BASE + '/#/compare-runs?runs=["a", "b"]&experiments=["3"]'


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, str]:
    """Return a small study's plan and the URI of a store that has it and its report."""
    folder = tmp_path_factory.mktemp("logged")
    data = f"webdataset:{write_shard(folder / 'shapes.tar', shapes_rows())}"
    short = {"steps": 6, "batch": 16, "evaluate": 2, "evaluation_batch": 16, "data": data}
    plan = make_plan("paper", "nano", 2, {**SMALL, **short}, default_registry(), [])
    ledger = Ledger(folder / "small-study")
    write_plan(plan, ledger.directory, launch_note([]))
    for trial in plan.trials:
        for _ in run_trial(trial, ledger.folder(trial), default_registry()):
            pass
    write_report(plan, ledger)
    store = f"sqlite:///{folder}/mlflow.db"
    assert main(["sync", str(ledger.directory), "--mlflow", store]) == 0
    return plan, store


@contextmanager
def opened(store: str, stop: signal.Signals = signal.SIGTERM) -> Iterator[dict[str, str]]:
    """Run the UI as a user does; yields the links that it prints, by what they are for."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "ablate", "ui", "--mlflow", store, "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            links: dict[str, str] = {}
            while "all trials" not in str(links):
                line = server.stdout.readline()
                assert line, "the UI ended"
                if found := re.fullmatch(r" *(.*?): (http\S+)\n", line):
                    links[found[1]] = found[2]
            assert answers(f"http://127.0.0.1:{port}/health") == "OK"
            yield links
        finally:
            server.send_signal(stop)
            try:
                assert server.wait(timeout=30) == 0
            finally:
                server.kill()
    assert not busy(port)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_the_ui_answers_on_loopback_and_leaves_nothing(
    logged: tuple[Plan, str], stop: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened(logged[1], stop) as links:
        assert all(link.startswith("http://127.0.0.1:") for link in links.values())
        assert "viewStateShareKey=trials-" in links["cells compared"]
        place = links["cells compared"].partition("/#")[0].removeprefix("http://")
        assert main(["ui", "--mlflow", f"http://me:secret@{place}"]) == 0
        shown = capsys.readouterr().out
        assert links["cells compared"] in shown
        assert "secret" not in shown


@pytest.mark.slow
@pytest.mark.skipif(bool(browser.missing()), reason=browser.missing() or "there is a browser")
def test_a_browser_shows_cells_comparison_effects_and_report(logged: tuple[Plan, str]) -> None:
    plan, store = logged
    with opened(store) as links, browser.Browser() as window:
        window.open(links["cells compared"])
        cells = [f"Group: {name}" for name in plan.cells]
        window.wait(*cells, "4 matching runs", "test/coca", "val/coca", "train/loss")
        window.wait("grr seed 1")
        window.scroll_to("train/loss")
        window.wait("Parallel Coordinates")
        window.open(links["cells compared"].replace("&compareRunsMode=CHART", ""))
        window.wait(*cells, "Group by: cell", "test/perplexity")
        window.click("grr seed 1")
        window.wait("Artifacts", "image.norm", "rmsnorm")
        window.open(links["trials side by side"])
        window.wait("Comparing 4 Runs", "Parallel Coordinates Plot", *plan.cells)
        window.click("Box Plot")
        window.wait("X-axis")
        window.open(links["effects"])
        window.wait("baseline -> grr", "coca/estimate", "ablate.verdict", "too few seeds")
        window.open(links["report"])
        window.wait("Study small-study: grid paper", "Claimed and measured")
        window.open(links["report"].removesuffix("/report/report.html"))
        window.wait("report")
        window.click("report")
        window.wait("report.html")
        window.click("report.html")
        window.wait("Study small-study: grid paper", "Claimed and measured")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Run, in the place of MLflow's server, a program that notes how it was called and dies."""
    program = tmp_path / "server"
    store = '"$MLFLOW_BACKEND_STORE_URI"'
    program.write_text(f'#!/bin/sh\necho "$@" >called\necho {store} | tee store\nkill -9 $$\n')
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(program))
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield tmp_path
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_killed_server_is_an_error_and_no_command_holds_a_password(
    server: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve("postgresql://me:secret@db/mlflow", 5000) == 1
    shown = capsys.readouterr().err
    assert "error: MLflow's server stopped by signal 9: postgresql://me:***@db/mlflow" in shown
    assert "--port 5000" in (server / "called").read_text()
    assert "secret" not in (server / "called").read_text()
    assert (server / "store").read_text() == "postgresql://me:secret@db/mlflow\n"


def test_links_to_a_server_hold_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    assert without_user("http://me:secret@host:5000/mlflow/") == "http://host:5000/mlflow"
    assert without_user("http://[::1]:5000") == "http://[::1]:5000"
    for store in ("http://me:secret@127.0.0.1:9", "ftp://me:secret@127.0.0.1/x.db",
                  "http://me:secret@", "postgresql://me:secret@127.0.0.1:word/db",
                  "mysql+nosuch://me:secret@127.0.0.1/db", "http://me:secret@[/"):  # fmt: skip
        assert main(["ui", "--mlflow", store]) == 2
        shown = capsys.readouterr()
        assert "secret" not in shown.out + shown.err
        assert shown.err.startswith("error: ")


def test_ctrl_c_while_a_store_does_not_answer_is_no_traceback() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        store = f"http://127.0.0.1:{silent.getsockname()[1]}"
        command = [sys.executable, "-m", "ablate", "ui", "--mlflow", store]
        hear = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=hear) as ui:
            connection, _ = silent.accept()
            ui.send_signal(signal.SIGINT)
            _, shown = ui.communicate(timeout=60)
            connection.close()
    assert (ui.returncode, shown) == (130, "stopped\n")


def answers(url: str) -> str:
    deadline = time.monotonic() + 90
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            assert time.monotonic() < deadline, f"{url} does not answer"
            time.sleep(0.5)
