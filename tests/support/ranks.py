"""A trial on several ranks of one machine, without Ray."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ablate.stages import run_trial
from ablate.trial import Trial
from blocks import default_registry


def run_on_ranks(job: Trial, directory: Path, world: int, steps: int | None = None) -> None:
    """Run a trial on ranks that talk through gloo; all of them die after some yields, if given."""
    directory.mkdir(parents=True, exist_ok=True)
    number = len(list(directory.glob("rendezvous*")))  # gloo wants a new file each time
    address = f"file://{directory}/rendezvous{number}"
    mp.spawn(_rank, args=(world, address, job, directory, steps), nprocs=world)


def _rank(
    rank: int, world: int, address: str, job: Trial, directory: Path, steps: int | None
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    running: Any = run_trial(job, directory, default_registry())
    for count, _ in enumerate(running, start=1):
        if count == steps:
            os._exit(0)  # as good as killed
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads may abort a process that ends in the usual way
