"""Batch norm over the whole batch, however many processes share it.

In train mode a batch norm is a function of the batch. If each process took its own part's
statistics, a student would be another one on 8 GPUs than on 1; with those of the whole batch it is
the same. Modules stay what they are (`torch.nn.SyncBatchNorm` would have to replace them, and
refuses tensors on the CPU): the function that they all call is taken over instead.

*Source:* Ioffe and Szegedy, Batch Normalization, 2015 (arXiv:1502.03167), section 3; moments of
parts are merged as in Chan, Golub and LeVeque, Updating Formulae and a Pairwise Algorithm for
Computing Sample Variances, 1979.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from kdcache.distributed.collective import gather_equal, reduce_in_place
from kdcache.distributed.group import world_size


def whole_batch_norm() -> AbstractContextManager[object]:
    """A context in which batch norms in train mode use, and keep, the whole batch's statistics.

    Forward passes belong into it. All processes must run the same layers in the same order.
    """
    return nullcontext() if world_size() == 1 else _WholeBatchNorm()


class _WholeBatchNorm(TorchFunctionMode):
    """Takes over `torch.nn.functional.batch_norm`, which torch's and timm's layers end in."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Inside, the mode itself is off."""
        chosen = _batch_norm if func is functional.batch_norm else func
        return chosen(*args, **(kwargs or {}))


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """What `functional.batch_norm` does; in train mode for the batch of all processes."""
    if not training:
        return functional.batch_norm(
            input, running_mean, running_var, weight, bias, False, momentum, eps
        )
    mean, var, count = _moments(input)
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        unbiased = var * (count / (count - 1))
        running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    weight = torch.ones_like(mean) if weight is None else weight
    bias = torch.zeros_like(mean) if bias is None else bias
    out: Tensor = _Normalise.apply(input, weight, bias, mean, var, count, eps)
    return out


@torch.no_grad()
def _moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of each channel over all processes, and the number of values behind them.

    At least in float32, whatever `x` is: 8 bits of a mean are not enough.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    var, mean = torch.var_mean(wide, [d for d in range(x.ndim) if d != 1], correction=0)
    counts = mean.new_full([1], x.numel() // x.shape[1])
    everyones = torch.stack(gather_equal(torch.cat([mean, var, counts])))
    means, variances, counts = torch.split(everyones, [len(mean), len(mean), 1], dim=1)
    count = counts.sum()
    share = counts / count
    mean = (share * means).sum(0)
    var = (share * (variances + (means - mean).square())).sum(0)
    return mean, var, count


class _Normalise(Function):
    """Normalisation by the batch's own moments, which have a gradient too."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        var: Tensor,
        count: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.eps = eps
        return functional.batch_norm(x, mean, var, weight, bias, eps=eps)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, count = ctx.saved_tensors
        # With the moments held fixed: d/dx, and the sums over this part of the batch of
        # gradient * normalised x and of gradient.
        fixed, to_weight, to_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        # Through the moments: both sums over the whole batch, which is linear in normalised x.
        sums = torch.stack([to_weight, to_bias])
        reduce_in_place(sums)
        slope, offset = sums / count * (weight * torch.rsqrt(var + ctx.eps))
        through = functional.batch_norm(x, mean, var, slope, offset, eps=ctx.eps)
        return fixed - through, to_weight, to_bias, None, None, None, None
