"""What processes tell each other in a step: rows of a batch, gradients, and numbers for the log.

One rule makes a run the same for any number of processes. A process's loss is the mean over its
part of the batch, or, where it is of the whole batch, the same on all; it is weighted by the part's
size (`group.Share`), and gradients are averaged. What crosses processes on the way forward
therefore sums its gradient on the way back. Parts may differ in length.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

from kdcache.distributed.collective import gather_equal, reduce_in_place
from kdcache.distributed.group import everyones, rank, world_size
from kdcache.shapes import Float, Shaped

_BUCKET_BYTES = 64 << 20
"""Gradients are copied to lie side by side, at most so many bytes at a time."""


@torch.no_grad()
def gather_rows(rows: Shaped[Tensor, "B D"]) -> Shaped[Tensor, "_ D"]:
    """The rows of all processes in the order of the whole batch, without a gradient."""
    return rows if world_size() == 1 else torch.cat(_gather_parts(rows))


def _gather_parts(rows: Tensor) -> list[Tensor]:
    """The rows of each process; shorter parts travel filled up to the longest."""
    lengths = everyones(len(rows))
    padded = functional.pad(rows, (0, 0, 0, max(lengths) - len(rows)))
    parts = gather_equal(padded)
    return [part[:length] for part, length in zip(parts, lengths, strict=True)]


def gather_rows_with_gradient(rows: Float[Tensor, "B D"]) -> Float[Tensor, "_ D"]:
    """The rows of all processes in the order of the whole batch.

    The gradient of a row is the sum of what all processes make of it.
    """
    if world_size() == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows)
    return gathered


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = _gather_parts(rows)
        ctx.lengths = [len(part) for part in parts]
        return torch.cat(parts)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        reduce_in_place(total)
        return torch.split(total, ctx.lengths)[rank()]


@torch.no_grad()
def mean_scalars(values: Float[Tensor, "*_"]) -> Float[Tensor, "*_"]:
    """The mean over all processes of each number; the same on all."""
    if world_size() == 1:
        return values
    total = values.clone(memory_format=torch.contiguous_format)
    reduce_in_place(total)
    return total / world_size()


@torch.no_grad()
def mean_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces every gradient by its mean over all processes.

    A gradient that is missing on some processes counts as zero there; one that is missing on all
    stays missing, so that an optimiser passes over its parameter as it does in one process.
    """
    if world_size() == 1:
        return
    for bucket in _buckets(p for p in parameters if p.requires_grad):
        _mean_of_bucket(bucket)


def _mean_of_bucket(parameters: list[nn.Parameter]) -> None:
    has = torch.tensor([p.grad is not None for p in parameters], device=parameters[0].device)
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([part.reshape(-1) for part in [*parts, has]])
    reduce_in_place(flat)
    sizes = [part.numel() for part in [*parts, has]]
    *parts, share_having = torch.split(flat / world_size(), sizes)
    for parameter, part, share in zip(parameters, parts, share_having, strict=True):
        # Looked up where it is missing only: the host waits for the device there.
        if parameter.grad is None and share > 0:
            parameter.grad = torch.empty_like(parameter)
        if parameter.grad is not None:
            parameter.grad.copy_(part.view_as(parameter))


def _buckets(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """The same for every process, whatever gradients it has."""
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        if bucket and sum(p.nbytes for p in bucket) + parameter.nbytes > _BUCKET_BYTES:
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket
