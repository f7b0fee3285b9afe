"""Studies on a running Ray cluster: nodes are raylets of their own on this machine."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from samples import SMALL

SETTINGS = {**SMALL, "steps": 300, "batch": 16, "evaluate": 30, "evaluation_batch": 16, "width": 64}
TOKEN = secrets.token_hex(32)  # Ray reads it once in a process
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a cluster of two nodes with a core each; the head is the driver's."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    found.other = found.add_node(**NODE)
    yield found
    found.shutdown()


def start(shapes: str, tmp_path: Path, *more: str, **changes: object) -> subprocess.Popen[str]:
    settings = {**SETTINGS, "data": shapes, **changes}
    given = [f"--set={k}={v}" for k, v in settings.items()]
    where = ["--study", "study", "--mlflow", f"sqlite:///{tmp_path}/mlflow.db"]
    command = ["--grid", "paper", "--stages", "pretrain", "--seeds", "2", *where, *given, *more]
    return subprocess.Popen(
        [sys.executable, "-m", "ablate.run", *command],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def results(study: Path) -> dict[str, dict[str, float]]:
    """Return each trial's metrics but for its time."""
    found = {}
    for path in study.glob("trials/*/result.json"):
        metrics = json.loads(path.read_text())["metrics"]
        found[path.parent.name] = {k: v for k, v in metrics.items() if k != "train_seconds"}
    return found


@pytest.mark.ray
@pytest.mark.slow
def test_a_study_survives_the_loss_of_a_node(shapes: str, tmp_path: Path, cluster: Any) -> None:
    undisturbed = start(shapes, tmp_path)
    shown, _ = undisturbed.communicate(timeout=250)
    assert undisturbed.returncode == 0, shown
    study = tmp_path / "study"
    expected = results(study)
    assert len(expected) == 4
    study.rename(tmp_path / "before")

    disturbed = start(shapes, tmp_path, "--address", cluster.address)
    deadline = time.monotonic() + 120
    while len(list(study.glob("trials/*/checkpoint.pt"))) < 2:  # one on each node
        assert time.monotonic() < deadline, disturbed.communicate(timeout=5)
        time.sleep(0.05)
    cluster.remove_node(cluster.other, allow_graceful=False)
    shown, _ = disturbed.communicate(timeout=250)
    assert disturbed.returncode == 0, shown
    assert "raylet" not in shown
    assert "Traceback" not in shown
    assert results(study) == expected
    assert (
        "ablate.execution.ray_cluster" in (study / "log.txt").read_text()
    )  # where the loss is told
    assert list(study.glob(".*")) == []


@pytest.mark.ray
@pytest.mark.slow
def test_two_nodes_train_a_trial_together(shapes: str, tmp_path: Path, cluster: Any) -> None:
    more = ["--address", cluster.address, "--workers-per-trial", "2", "--seeds", "1"]
    running = start(shapes, tmp_path, *more, steps=20, evaluate=2)
    shown, _ = running.communicate(timeout=250)
    assert running.returncode == 0, shown
    for path in tmp_path.glob("study/trials/*/result.json"):
        assert json.loads(path.read_text())["workers"] == 2
    assert len(results(tmp_path / "study")) == 2


def refused(shapes: str, tmp_path: Path, address: str, *more: str) -> str:
    """Return the message of a command that is refused within half a minute."""
    began = time.monotonic()
    running = start(shapes, tmp_path, "--address", address, *more)
    shown, _ = running.communicate(timeout=120)
    assert running.returncode == 2, shown
    assert "Traceback" not in shown
    assert time.monotonic() - began < 60  # half a minute, and what the plan takes
    return shown.strip().splitlines()[-1]


@pytest.mark.ray
@pytest.mark.slow
def test_addresses_that_do_not_answer_are_named(shapes: str, tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert "no Ray cluster answered" in refused(shapes, tmp_path, address)
    message = refused(shapes, tmp_path, "nonsense")
    assert "--address 'nonsense': cannot connect" in message
    assert not (tmp_path / "study").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_what_a_cluster_has_not_is_refused(shapes: str, tmp_path: Path, cluster: Any) -> None:
    message = refused(shapes, tmp_path, cluster.address, "--gpus-per-trial", "1")
    assert message == "error: --gpus-per-trial 1: the cluster of 2 nodes has 0 GPUs"
    assert not (tmp_path / "study").exists()


TWICE = """
import gc
import os
import threading
from pathlib import Path

import psutil

from ablate.execution import ray_cluster as cluster
from ablate.core.resources import Resources
from blocks import UsageError

def refused(address=""):
    try:
        cluster.start(Resources(address=address))
        return "not refused"
    except UsageError as error:
        return str(error)

def leave_garbage(references, ended):
    while references and not ended.wait(0.001):
        cycle = [references.pop()]
        cycle.append(cycle)
        [[] for _ in range(200)]  # the collector runs, in this thread

home = os.environ["HOME"]
for _ in range(2):
    cluster.load(loopback=True)
    with cluster.session():
        for _ in range(2):
            with cluster.session():
                cluster.start(Resources())
                import ray
                mine = ray.get_runtime_context().gcs_address
        cluster.start(Resources())
        assert ray.get_runtime_context().gcs_address == mine
        started = [(" ".join(p.cmdline()), p) for p in psutil.Process().children(recursive=True)]
        (head,) = [p for line, p in started if "dashboard.py" in line]
        assert Path(head.environ()["HOME"], "ray_bootstrap_config.yaml").exists()
        (theirs,) = ray.get([ray.remote(num_cpus=0)(lambda: os.environ["HOME"]).remote()])
        assert theirs == os.environ["HOME"] == home
        assert "'127.0.0.1:1', but this process has a Ray already" in refused("127.0.0.1:1")
        references, ended = [ray.put(1) for _ in range(3000)], threading.Event()
        thread = threading.Thread(target=leave_garbage, args=(references, ended))
        gc.set_threshold(50, 1, 1)
        thread.start()
    ended.set()
    thread.join()
    assert references
    gc.set_threshold(700, 10, 10)
    assert not ray.is_initialized()
with cluster.session():
    assert "this process has run some on this machine" in refused("127.0.0.1:1")
    ray.init(num_cpus=1, include_dashboard=False, object_store_memory=80 * 2**20)  # the user's own
    assert "call ray.shutdown() if it is yours" in refused()
assert ray.is_initialized()
"""

ELSEWHERE = """
import sys

import ray

from ablate.execution import ray_cluster as cluster
from ablate.core.resources import Resources
from blocks import UsageError

def refused(address=""):
    try:
        with cluster.session():
            cluster.start(Resources(address=address))
        return "not refused"
    except UsageError as error:
        return str(error)

for _ in range(2):
    assert len(cluster.connect(sys.argv[1])) == 2
assert "has a Ray already, at" in refused()
assert "cluster at '127.0.0.1:1', but this process has a Ray" in refused("127.0.0.1:1")
ray.shutdown()
cluster.load(loopback=False)
assert "this process has run some on the cluster at" in refused()
"""


BROKEN = """
import gc
import os
import signal
import threading

import psutil

from ablate.execution import ray_cluster as cluster
from ablate.core.resources import Resources
from blocks import UsageError

found = []

def elsewhere():
    try:
        cluster.load(loopback=True)
    except UsageError as error:
        found.append(str(error))

thread = threading.Thread(target=elsewhere)
thread.start(), thread.join()
assert "from the main thread only" in found[0], found

gc.disable()
before = signal.getsignal(signal.SIGTERM)
cluster.load(loopback=True)
from ray._private import worker
connect = worker.connect
def interrupt(*arguments, **options):
    os.kill(os.getpid(), signal.SIGINT)
    return connect(*arguments, **options)
for broken in (True, False):
    worker.connect = interrupt if broken else connect
    try:
        with cluster.session():
            cluster.start(Resources(memory=2**45))
            assert cluster.largest_memory() == 2**45  # or a trial would wait for ever
            assert not broken
    except KeyboardInterrupt:
        assert broken
    gone, alive = psutil.wait_procs(psutil.Process().children(recursive=True), timeout=20)
    assert not alive, alive
    assert signal.getsignal(signal.SIGTERM) is before
    assert not gc.isenabled()
"""

EARLIER = """
import ray

from ablate.execution import ray_cluster as cluster
from blocks import UsageError

try:
    cluster.load(loopback=True)
except UsageError as error:
    assert "imported ray before its first trials" in str(error)
else:
    raise AssertionError("Ray would listen to all the world")
"""


def check_script(script: str, *arguments: str, **environment: str) -> None:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True, text=True, timeout=250, env=kept | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_a_process_has_one_ray() -> None:
    check_script(TWICE)


@pytest.mark.ray
@pytest.mark.slow
def test_what_is_broken_off_leaves_nothing() -> None:
    check_script(BROKEN)


def test_ray_imported_too_early_is_refused() -> None:
    check_script(EARLIER)


@pytest.mark.ray
@pytest.mark.slow
def test_a_process_has_one_cluster(cluster: Any) -> None:
    check_script(ELSEWHERE, cluster.address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN)
