"""Training on several ranks: features of all ranks, with gradient; sums; and the first's word.

Tensors go through their own device's backend, and a few small ones through the CPU's: on GPUs the
process group must be made for both, as in ``backend="cpu:gloo,cuda:nccl"``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET = 2**25  # gradients sent at once: 128 MiB in fp32


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


def broadcast_from_rank0(value: float) -> float:
    """Return the first rank's number on every rank; the others wait for it."""
    shared = torch.tensor(value, dtype=torch.float64)
    if world_size() > 1:
        dist.broadcast(shared, src=0)
    return float(shared)


def add_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace each parameter's gradient by its sum over ranks.

    A parameter keeps no gradient only where no rank has one for it: an expert that one rank's
    examples were not sent to still learns from the other's.
    """
    if world_size() == 1:
        return
    found = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    trained = [p for p, wanted in zip(parameters, found.tolist(), strict=True) if wanted]
    for bucket in _buckets(trained):
        slopes = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
        flat = torch.cat([slope.flatten() for slope in slopes])
        dist.all_reduce(flat)
        pieces = torch.split(flat, [p.numel() for p in bucket])
        for parameter, piece in zip(bucket, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Iterate over parameters in groups of about ``BUCKET`` numbers and of one kind each."""
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        if bucket and (
            sum(p.numel() for p in bucket) + parameter.numel() > BUCKET
            or (bucket[0].dtype, bucket[0].device) != (parameter.dtype, parameter.device)
        ):
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket


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
