"""What losses need of `torch.distributed`: features of all ranks, with gradient, and sums."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Return the number of ranks, 1 where nothing is distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's rank, 0 where nothing is distributed."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather(x: Tensor) -> Tensor:
    """Return the rows [b ...] of all ranks, rank after rank, [B ...]; the gradient comes back.

    Each rank's gradient is the sum of what all ranks' losses ask of its rows. All ranks must have
    equally many rows.
    """
    if world_size() == 1:
        return x
    if not x.is_floating_point():
        return _all_rows(x)
    return cast(Tensor, _Gather.apply(x))  # type: ignore[no-untyped-call]


def sum_over_ranks(x: Tensor) -> Tensor:
    """Return the sum over ranks of a number or tensor that needs no gradient."""
    total = x.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def _all_rows(x: Tensor) -> Tensor:
    pieces = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(pieces, x.contiguous())
    return torch.cat(pieces)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        return _all_rows(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        total = sum_over_ranks(slope.contiguous())
        return total[rank() * ctx.rows : (rank() + 1) * ctx.rows]
