"""Soft ranking of a queue: cross-entropy of two softmaxes over it, without a [B, K] tensor.

Source: the loss of Fang et al., SEED, ICLR 2021, arXiv:2101.04731 (official code seed/builder.py),
in the form of `queue.md` section 0. Student logits are linear in the student's embedding z, so

    loss = log Z(z) - z . t / tau_s        and        d loss / d z = (o - t) / tau_s

where t and o are the means of the queue under the teacher's and the student's softmax. Each mean is
an attention output and is computed chunk by chunk with a running maximum.

Shapes: B batch, D target, K negatives, E slots of a row to leave out.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kdcache.shapes import Float, Int64

LogSumExp = Callable[[Tensor, Tensor, float, Tensor | None], Tensor]
"""`log_sum_exp`, or an estimate of what it gives."""

_CHUNK = 8192
"""Negatives looked at in one go: the largest temporary is [B, 8192] whatever K is."""

_SMALLEST_EXPONENT = -80.0
"""exp(-87) and below are float32 denormals, 4.3 times as slow on a CPU and zero in any sum."""


def attend(
    query: Float[Tensor, "B D"],
    positive: Float[Tensor, "B D"] | None,
    negatives: Float[Tensor, "K D"],
    temperature: float,
    own: Int64[Tensor, "B E"] | None = None,
) -> tuple[Float[Tensor, "B D"], Float[Tensor, " B"]]:
    """The softmax-weighted mean of [positive, negatives], and the log of the softmax's sum.

    Args:
        positive: a column of each row's own, in front of the others; None leaves it out.
        own: slots of `negatives` that a row must not see, padded with -1.
    """
    (mean,), log_sum = attend_to(query, negatives, [negatives], temperature, own, positive=positive)
    return mean, log_sum


def attend_to(
    query: Float[Tensor, "B D"],
    keys: Float[Tensor, "K D"],
    values: Sequence[Float[Tensor, "K _"]],
    temperature: float,
    own: Int64[Tensor, "B E"] | None = None,
    *,
    positive: Float[Tensor, "B D"] | None = None,
) -> tuple[list[Float[Tensor, "B _"]], Float[Tensor, " B"]]:
    """The means of several tables under one softmax over `keys`, and the log of the softmax's sum.

    A row that sees no key has means of zero and a log-sum of minus infinity.

    Args:
        own: slots of `keys` that a row must not see, padded with -1.
        positive: a key of each row's own that is its own value; only where the keys are as well.
    """
    if positive is None:
        top = query.new_full((len(query),), torch.finfo(query.dtype).min)
        total = torch.zeros_like(top)
        means = [query.new_zeros(len(query), table.shape[1]) for table in values]
    else:
        top = (query * positive).sum(1) / temperature
        total = torch.ones_like(top)
        means = [positive]
    for start in range(0, len(keys), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        logits = (query @ keys[chunk].T).div_(temperature)
        hidden = _hidden(own, start, logits.shape[1])
        _lower(logits, hidden, -torch.inf)
        new_top = torch.maximum(top, logits.amax(1))
        shrink = (top - new_top).exp()
        weights = logits.sub_(new_top[:, None]).clamp_(min=_SMALLEST_EXPONENT).exp_()
        _lower(weights, hidden, 0.0)
        total = total * shrink + weights.sum(1)
        means = [
            torch.addmm(mean * shrink[:, None], weights, table[chunk])
            for mean, table in zip(means, values, strict=True)
        ]
        top = new_top
    # The largest term is exactly one, so a sum below one is that of no terms at all.
    scale = total.clamp(min=1.0)[:, None]
    return [mean / scale for mean in means], top + total.log()


def log_sum_exp(
    query: Float[Tensor, "B D"],
    keys: Float[Tensor, "K D"],
    temperature: float,
    own: Int64[Tensor, "B E"] | None = None,
) -> Float[Tensor, " B"]:
    """log of the sum over the keys of exp(query . key / temperature), with a gradient to `query`.

    Args:
        own: slots of `keys` that a row must not see, padded with -1.
    """
    log_sum: Tensor = _LogSumExp.apply(query, keys, temperature, own)
    return log_sum


def soft_ranking_loss(
    student: Float[Tensor, "B D"],
    teacher: Float[Tensor, "B D"],
    negatives: Float[Tensor, "K D"],
    *,
    student_temperature: float,
    teacher_temperature: float,
    own: Int64[Tensor, "B E"] | None = None,
    denominator: LogSumExp = log_sum_exp,
) -> Float[Tensor, ""]:
    """Mean over the batch of H(teacher's ranking, student's ranking) of [teacher, negatives], nats.

    All rows have unit length; only `student` receives a gradient. Autocast is off in here: at a
    temperature of 0.01, similarities in bfloat16 are wrong by 0.4 nats (`queue.md` 7).

    Args:
        denominator: of the student's softmax over the negatives; exact, unless given.
    """
    with torch.autocast(student.device.type, enabled=False):
        with torch.no_grad():
            target, _ = attend(teacher, teacher, negatives, teacher_temperature, own)
        others = denominator(student, negatives, student_temperature, own)
        log_sum = torch.logaddexp(others, (student * teacher).sum(1) / student_temperature)
        return (log_sum - (student * target).sum(1) / student_temperature).mean()


class _LogSumExp(torch.autograd.Function):
    """Keeps the softmax's mean of the keys [B, D], of which its gradient is made."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, keys: Tensor, temperature: float, own: Tensor | None
    ) -> Tensor:
        mean, log_sum = attend(query, None, keys, temperature, own)
        ctx.save_for_backward(mean.div_(temperature))
        return log_sum

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0][:, None], None, None, None


def _hidden(own: Tensor | None, start: int, count: int) -> tuple[Tensor, Tensor] | None:
    """For each of a row's slots to leave out: its column in a chunk, and whether it is there.

    Of fixed shape, so that no GPU is waited for: a list of those that are there would be counted.
    """
    if own is None:
        return None
    column = own - start
    return column.clamp(0, count - 1), (column >= 0) & (column < count)


def _lower(table: Tensor, hidden: tuple[Tensor, Tensor] | None, value: float) -> None:
    """Put `value`, at most what stands there, at the hidden places of a table, in place."""
    if hidden is None:
        return
    column, there = hidden
    wanted = torch.full_like(column, torch.inf, dtype=table.dtype).masked_fill_(there, value)
    table.scatter_reduce_(1, column, wanted, "amin")
