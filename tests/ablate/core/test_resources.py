from __future__ import annotations

from pathlib import Path

import pytest

from ablate.core import resources
from ablate.core.resources import Node, Scheduling, choose_resources, this_machine
from blocks import UsageError

GIB = 2**30
LAPTOP = Node(name="laptop", cpus=2, memory=16 * GIB)
BOX = Node(name="box", cpus=32, gpus=8, memory=256 * GIB, gpu_memory=72 * GIB)
CLUSTER = [Node(name=f"node{i}", cpus=8, gpus=4, memory=64 * GIB) for i in range(2)]


def chosen(nodes: list[Node], memory: float = 0, gpu_memory: float = 0, **asked: object):  # type: ignore[no-untyped-def]
    found = choose_resources(
        Scheduling(**asked),  # type: ignore[arg-type]
        nodes, memory=int(memory * GIB), gpu_memory=int(gpu_memory * GIB),
    )  # fmt: skip
    return found.cpus, found.gpus, found.workers, found.slots


@pytest.mark.parametrize(("nodes", "asked", "expected"), [
    # cores and GPUs of a worker, workers of a trial, trials side by side
    ([LAPTOP], {}, (1, 0, 1, 2)),
    ([LAPTOP], {"memory": 1}, (1, 0, 1, 2)),
    ([LAPTOP], {"memory": 10}, (2, 0, 1, 1)),  # only one fits, so it has both cores
    ([LAPTOP], {"cpus_per_trial": 2}, (2, 0, 1, 1)),
    ([LAPTOP], {"cpus_per_trial": 0.5}, (0.5, 0, 1, 4)),
    ([LAPTOP], {"cpus_per_trial": 0.5, "memory": 5}, (0.5, 0, 1, 3)),
    ([LAPTOP], {"max_concurrent": 1}, (1, 0, 1, 1)),
    ([LAPTOP], {"workers_per_trial": 2}, (1, 0, 2, 1)),
    ([LAPTOP], {"workers_per_trial": 2, "cpus_per_trial": 1}, (0.5, 0, 2, 2)),
    ([BOX], {}, (4, 1, 1, 8)),
    ([BOX], {"gpus_per_trial": 0.25}, (1, 0.25, 1, 32)),
    ([BOX], {"gpus_per_trial": 0.1}, (0.5, 0.1, 1, 64)),  # cores for 64 of the 80
    ([BOX], {"gpus_per_trial": 4}, (4, 1, 4, 2)),
    ([BOX], {"gpus_per_trial": 0}, (1, 0, 1, 32)),
    ([BOX], {"workers_per_trial": 2}, (4, 1, 2, 4)),
    ([BOX], {"gpu_memory": 30}, (2, 0.5, 1, 16)),
    ([BOX], {"gpu_memory": 1}, (1, 0.25, 1, 32)),
    ([BOX], {"gpu_memory": 60}, (4, 1, 1, 8)),
    ([BOX], {"memory": 100}, (16, 1, 1, 2)),
    (CLUSTER, {}, (2, 1, 1, 8)),
    (CLUSTER, {"gpus_per_trial": 8}, (2, 1, 8, 1)),
    (CLUSTER, {"gpus_per_trial": 0, "memory": 32}, (4, 0, 1, 4)),
])  # fmt: skip
def test_a_trials_share(nodes: list[Node], asked: dict[str, float], expected: tuple) -> None:  # type: ignore[type-arg]
    assert chosen(nodes, **asked) == expected


def test_trials_never_need_more_memory_than_there_is() -> None:
    for gib in range(1, 17):
        *_, slots = chosen([LAPTOP], memory=gib)
        assert slots * gib <= 16
    found = choose_resources(Scheduling(), [LAPTOP], memory=20 * GIB)
    assert (found.slots, found.memory) == (1, LAPTOP.memory)
    assert "predicted to need 20 GiB and this machine has 16 GiB free" in found.note


@pytest.mark.parametrize(("nodes", "asked", "message"), [
    ([LAPTOP], {"gpus_per_trial": 1}, "--gpus-per-trial 1: this machine has 0 GPUs"),
    ([BOX], {"gpus_per_trial": 9}, "--gpus-per-trial 9: this machine has 8 GPUs"),
    (CLUSTER, {"gpus_per_trial": 9}, "the cluster of 2 nodes has 8 GPUs"),
    ([BOX], {"gpus_per_trial": 1.5}, "a part of one GPU or whole GPUs, got 1.5"),
    ([BOX], {"gpus_per_trial": -1}, "a part of one GPU or whole GPUs, got -1"),
    ([BOX], {"gpus_per_trial": float("nan")}, "a part of one GPU or whole GPUs, got nan"),
    ([BOX], {"gpus_per_trial": 2, "workers_per_trial": 3}, "a worker on each of its GPUs"),
    ([LAPTOP], {"cpus_per_trial": 3}, "this machine has 2 cores and 0 GPUs"),
    (CLUSTER, {"cpus_per_trial": 9}, "has 8 cores and 8 GPUs on its largest node"),
    ([LAPTOP], {"workers_per_trial": 3}, "a trial of 3 workers with 1 cores each"),
    ([LAPTOP], {"cpus_per_trial": 0}, "--cpus-per-trial must be at least 0.1, got 0"),
    ([LAPTOP], {"workers_per_trial": 0}, "--workers-per-trial must be at least 1, got 0"),
    ([LAPTOP], {"max_concurrent": 0}, "--max-concurrent must be at least 1, got 0"),
    ([BOX], {"gpu_memory": 100}, "need 100 GiB of GPU memory and a GPU has 72: set accumulate"),
])  # fmt: skip
def test_what_cannot_be_had_is_refused(
    nodes: list[Node], asked: dict[str, float], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        chosen(nodes, **asked)


def test_a_cluster_without_nodes_is_refused() -> None:
    with pytest.raises(UsageError, match="--address 'head:6379': no node of the cluster is alive"):
        chosen([], address="head:6379")


def test_this_machine_has_cores_and_memory() -> None:
    found = this_machine()
    assert found.cpus >= 1
    assert 2**26 < found.memory < 2**50


def test_a_containers_limits_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a control group says them: a quota of cores, and memory in which files are cached."""
    monkeypatch.setattr(resources, "GROUP", tmp_path)
    cores, free = resources.cores(), resources.free_memory()
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("2500000\n")
    (tmp_path / "memory.stat").write_text("anon 500000\ninactive_file 1900000\nslab 9\n")
    assert resources.cores() == 1
    assert resources.free_memory() == 3000000 - 2500000 + 1900000
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert resources.cores() == cores
    assert resources.free_memory() == pytest.approx(free, rel=0.2)
