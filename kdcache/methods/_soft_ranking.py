"""Soft ranking of a queue: cross-entropy of two softmaxes over it, without a [B, K] tensor.

Source: the loss of Fang et al., SEED, ICLR 2021, arXiv:2101.04731 (official code seed/builder.py),
in the form of `queue.md` section 0. Student logits are linear in the student's embedding z, so

    loss = log Z(z) - z . t / tau_s        and        d loss / d z = (o - t) / tau_s

where t and o are the means of the queue under the teacher's and the student's softmax. Each mean is
an attention output and is computed chunk by chunk with a running maximum.

Shapes: B batch, D target, K negatives, E slots of a row to leave out.
"""

from typing import Any

import torch
from torch import Tensor

from kdcache.shapes import Float, Int64

_CHUNK = 8192
"""Negatives looked at in one go: the largest temporary is [B, 8192] whatever K is."""

_SMALLEST_EXPONENT = -80.0
"""exp(-87) and below are float32 denormals, 4.3 times as slow on a CPU and zero in any sum."""


def attend(
    query: Float[Tensor, "B D"],
    positive: Float[Tensor, "B D"],
    negatives: Float[Tensor, "K D"],
    temperature: float,
    own: Int64[Tensor, "B E"] | None = None,
) -> tuple[Float[Tensor, "B D"], Float[Tensor, " B"]]:
    """The softmax-weighted mean of [positive, negatives], and the log of the softmax's sum.

    Args:
        own: slots of `negatives` that a row must not see, padded with -1.
    """
    top = (query * positive).sum(1) / temperature
    total = torch.ones_like(top)
    mean = positive.clone()
    for start in range(0, len(negatives), _CHUNK):
        keys = negatives[start : start + _CHUNK]
        logits = (query @ keys.T).div_(temperature)
        hidden = _hidden(own, start, len(keys))
        if hidden is not None:
            logits[hidden] = -torch.inf
        new_top = torch.maximum(top, logits.amax(1))
        shrink = (top - new_top).exp()
        weights = logits.sub_(new_top[:, None]).clamp_(min=_SMALLEST_EXPONENT).exp_()
        if hidden is not None:
            weights[hidden] = 0.0
        total = total * shrink + weights.sum(1)
        mean = torch.addmm(mean * shrink[:, None], weights, keys)
        top = new_top
    return mean / total[:, None], top + total.log()


def soft_ranking_loss(
    student: Float[Tensor, "B D"],
    teacher: Float[Tensor, "B D"],
    negatives: Float[Tensor, "K D"],
    *,
    student_temperature: float,
    teacher_temperature: float,
    own: Int64[Tensor, "B E"] | None = None,
) -> Float[Tensor, ""]:
    """Mean over the batch of H(teacher's ranking, student's ranking) of [teacher, negatives], nats.

    All rows have unit length; only `student` receives a gradient. Autocast is off in here: at a
    temperature of 0.01, similarities in bfloat16 are wrong by 0.4 nats (`queue.md` 7).
    """
    with torch.autocast(student.device.type, enabled=False):
        loss: Tensor = _SoftRanking.apply(
            student, teacher, negatives, student_temperature, teacher_temperature, own
        )
    return loss


class _SoftRanking(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        negatives: Tensor,
        student_temperature: float,
        teacher_temperature: float,
        own: Tensor | None,
    ) -> Tensor:
        target, _ = attend(teacher, teacher, negatives, teacher_temperature, own)
        seen, log_sum = attend(student, teacher, negatives, student_temperature, own)
        ctx.save_for_backward((seen - target) / (student_temperature * len(student)))
        return (log_sum - (student * target).sum(1) / student_temperature).mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0], None, None, None, None, None


def _hidden(own: Tensor | None, start: int, count: int) -> tuple[Tensor, Tensor] | None:
    """Index of the (row, column) pairs of a chunk that `own` leaves out; None if there are none."""
    if own is None:
        return None
    row, slot = torch.nonzero((own >= start) & (own < start + count), as_tuple=True)
    return (row, own[row, slot] - start) if len(row) else None
