"""What one trial gets of the machines: cores, GPUs or a part of one, memory, worker processes."""

from __future__ import annotations

import math
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

from blocks import UsageError

GROUP = Path("/sys/fs/cgroup")  # a container's limits, which psutil does not know
SPARE = 0.9  # of the memory: the rest is for Ray and the driver
SHARED_BY = 4  # trials that share a GPU at most, unless asked: more of them wait for each other


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheduling:
    """What the user asks for; None is an automatic choice. It changes no trial's numbers."""

    gpus_per_trial: float | None = None
    cpus_per_trial: float | None = None
    workers_per_trial: int | None = None
    max_concurrent: int | None = None
    address: str = ""

    def __post_init__(self) -> None:
        """Refuse numbers that no machine could give."""
        for name, least in (
            ("cpus_per_trial", 0.1),
            ("workers_per_trial", 1),
            ("max_concurrent", 1),
        ):
            value = getattr(self, name)
            if value is not None and not value >= least:
                option = f"--{name.replace('_', '-')}"
                raise UsageError(f"{option} must be at least {least}, got {value:g}")
        gpus, workers = self.gpus_per_trial or 0, self.workers_per_trial
        if not (0 <= gpus <= 1 or (gpus > 1 and gpus % 1 == 0)):
            raise UsageError(
                f"--gpus-per-trial must be a part of one GPU or whole GPUs, got {gpus:g}"
            )
        if gpus and workers is not None and workers != max(1, gpus):
            raise UsageError(
                f"--workers-per-trial {workers} with --gpus-per-trial {gpus:g}: "
                "a trial has a worker on each of its GPUs"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A machine that trials may run on; memory in bytes, 0 where it is not known."""

    name: str
    cpus: float
    gpus: float = 0
    memory: int = 0
    gpu_memory: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """What each of a trial's ``workers`` gets, and how many trials then run side by side.

    ``memory`` (bytes) is reserved, not enforced. ``note`` says what the user should know, and
    ``address`` which cluster has them, if it is not this machine.
    """

    cpus: float = 1
    gpus: float = 0
    memory: int = 0
    workers: int = 1
    slots: int = 1
    note: str = ""
    address: str = ""

    @property
    def per_gpu(self) -> int:
        """Return how many trials share a GPU, 0 without one."""
        return int(1 / self.gpus) if self.gpus else 0

    @property
    def threads(self) -> int:
        """Return how many threads torch gets in each worker."""
        return max(1, int(self.cpus))


def cores() -> int:
    """Return the CPU cores that this process may use, of which a container may have a quota."""
    process = psutil.Process()
    # macOS binds no process to cores, so psutil offers no affinity there.
    allowed = process.cpu_affinity() if hasattr(process, "cpu_affinity") else None
    count = len(allowed) if allowed else psutil.cpu_count() or 1
    try:
        quota, period = (GROUP / "cpu.max").read_text(encoding="ascii").split()
        return max(1, min(count, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # none, or "max"
        return count


def this_machine() -> Node:
    """Return this machine as a node."""
    import torch

    gpus = torch.cuda.device_count()
    gpu_memory = torch.cuda.get_device_properties(0).total_memory if gpus else 0
    return Node(
        name=socket.gethostname(),
        cpus=cores(),
        gpus=gpus,
        memory=int(SPARE * free_memory()),
        gpu_memory=int(SPARE * gpu_memory),
    )


def free_memory() -> int:
    """Return the bytes that are free here, in a container within its limit."""
    free = int(psutil.virtual_memory().available)
    try:  # cached files do not count against the limit: they make room
        limit, used = (
            int((GROUP / name).read_text(encoding="ascii"))
            for name in ("memory.max", "memory.current")
        )
        lines = (GROUP / "memory.stat").read_text(encoding="ascii").splitlines()
        cached = next(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
        return min(free, max(0, limit - used + cached))
    except (OSError, ValueError, StopIteration):
        return free


def choose_resources(
    asked: Scheduling, nodes: Sequence[Node], *, memory: int = 0, gpu_memory: int = 0
) -> Resources:
    """Return a trial's share of the nodes, as asked for or else by what it is predicted to need.

    ``memory`` (host) and ``gpu_memory`` are bytes for one trial, 0 where nothing is predicted.
    Without GPUs a trial gets a core, and more where memory leaves cores idle; with GPUs one, or a
    part of one if several trials fit in its memory. Never do more trials run side by side than fit
    in memory. Raises `UsageError` where the nodes have not what is asked for.
    """
    if not nodes:
        raise UsageError(f"--address {asked.address!r}: no node of the cluster is alive")
    gpus = _gpus(asked, nodes, gpu_memory)
    workers = asked.workers_per_trial or max(1, int(gpus))
    need, note = _memory(nodes, memory)
    # Ray places each worker by itself, so several GPUs are as many workers of one GPU each.
    share = min(gpus, 1.0)
    cpus = (asked.cpus_per_trial or 0) / workers or _cores_each(nodes, share, need)
    most = sum(_fits(node, cpus, share, need) for node in nodes)
    if most < workers:
        have = f"{max(n.cpus for n in nodes):g} cores and {sum(n.gpus for n in nodes):g} GPUs"
        raise UsageError(
            f"a trial of {workers} worker{'s' * (workers > 1)} with {cpus:g} cores"
            f"{f' and {share:g} GPU' * bool(share)} each: {_place(nodes)} has {have}"
            f"{' on its largest node' * (len(nodes) > 1)}"
        )
    slots = min(most // workers, asked.max_concurrent or most)
    return Resources(
        cpus=cpus,
        gpus=share,
        memory=need,
        workers=workers,
        slots=slots,
        note=note,
        address=asked.address,
    )


def _gpus(asked: Scheduling, nodes: Sequence[Node], need: int) -> float:
    """Return the GPUs of a trial, which may be a part of one."""
    available = sum(node.gpus for node in nodes)
    if (share := asked.gpus_per_trial) is not None:
        if share > available:
            raise UsageError(f"--gpus-per-trial {share:g}: {_place(nodes)} has {available:g} GPUs")
        return share
    if not available:
        return 0.0
    if (asked.workers_per_trial or 1) > 1:
        return float(asked.workers_per_trial or 1)
    has = min((node.gpu_memory for node in nodes if node.gpus), default=0)
    if not need or not has:
        return 1.0
    if need > has:
        raise UsageError(
            f"a trial is predicted to need {need / 2**30:.3g} GiB of GPU memory and a GPU has "
            f"{has / 2**30:.3g}: set accumulate=2, or say --gpus-per-trial to try all the same"
        )
    return 1 / min(SHARED_BY, has // need)


def _memory(nodes: Sequence[Node], need: int) -> tuple[int, str]:
    """Return the memory to reserve for a trial, at most what the largest node has."""
    largest = max(node.memory for node in nodes)
    if not largest or need <= largest:
        return need if largest else 0, ""
    return largest, (
        f"a trial is predicted to need {need / 2**30:.3g} GiB and {_place(nodes)} has "
        f"{largest / 2**30:.3g} GiB free: trials run one at a time, and may fail"
    )


def _cores_each(nodes: Sequence[Node], gpus: float, need: int) -> float:
    """Return the cores for a worker where nothing is asked for: none is left idle by others."""
    best = max(nodes, key=lambda node: (node.gpus, node.cpus))
    side_by_side = max(1, _fits(best, 0, gpus, need))
    if gpus and side_by_side > best.cpus:
        return 0.5
    return float(max(1, best.cpus // side_by_side))


def _fits(node: Node, cpus: float, gpus: float, memory: int) -> int:
    """Return how many workers fit on a node."""
    limits = []
    if cpus:
        limits.append(int(node.cpus / cpus))
    if gpus:
        limits.append(int(node.gpus) * int(1 / gpus))
    if memory:
        limits.append(node.memory // memory)
    return min(limits, default=int(node.cpus))


def _place(nodes: Sequence[Node]) -> str:
    return "this machine" if len(nodes) == 1 else f"the cluster of {len(nodes)} nodes"


@dataclass(frozen=True, kw_only=True)
class ProbeConditions:
    """How trials run: ``slots`` side by side, each with ``threads`` and its plugins.

    ``per_gpu`` of them share a GPU, 0 without one. ``environment`` is that of their processes.
    ``asked`` and ``nodes`` are what that was chosen from, before anything was known of memory.
    """

    slots: int = 1
    threads: int = 1
    per_gpu: int = 0
    plugins: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    asked: Scheduling = field(default_factory=Scheduling)
    nodes: Sequence[Node] = ()


def host_memory() -> int:
    """Return the bytes of memory that this machine, or this container, has."""
    physical = int(psutil.virtual_memory().total)
    try:
        return min(physical, int((GROUP / "memory.max").read_text(encoding="ascii")))
    except (OSError, ValueError):  # no such file, or the word max
        return physical


def gpu_memory() -> int:
    """Return the bytes of memory of a GPU; 0 without one."""
    if not torch.cuda.is_available():
        return 0
    return int(torch.cuda.get_device_properties(0).total_memory)
