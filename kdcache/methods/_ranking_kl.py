"""Divergence of two rankings of a bank in which an image has no column of its own.

Source: the loss of Koohpayegani et al., CompRess, NeurIPS 2020, arXiv:2010.14713 (official code
nn/compress_loss.py: KL(teacher || student), `batchmean`, one temperature on both sides), in the
form of `_soft_ranking.py`. As the student's logits are linear in its row z,

    KL = log Z_s(z) - z . t / tau - H        with        t = sum_k p_k (student's key k)

where p is the teacher's softmax over its own keys, and H is its entropy. No tensor [B, K] is made:
the largest temporary is [B, 8192], and [B, D] is what the backward pass keeps.

Shapes: B batch, D target, E student's row (D where both share a bank), K keys, M slots left out.
"""

import torch
from torch import Tensor

from kdcache.methods._soft_ranking import LogSumExp, attend_to, log_sum_exp
from kdcache.shapes import Float, Int64


def ranking_kl(
    student: Float[Tensor, "B E"],
    teacher: Float[Tensor, "B D"],
    student_keys: Float[Tensor, "K E"],
    teacher_keys: Float[Tensor, "K D"],
    temperature: float,
    own: Int64[Tensor, "B M"] | None = None,
    *,
    denominator: LogSumExp = log_sum_exp,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean over the batch of KL(teacher's ranking || student's), and of H; both in nats.

    All rows have unit length; slot k of both banks is the same image, and there is at least one.
    Only `student` receives a gradient. Autocast is off in here.

    Args:
        denominator: of the student's softmax; exact, unless given.
    """
    values = [teacher_keys]
    if student_keys is not teacher_keys:
        values.append(student_keys)
    with torch.autocast(student.device.type, enabled=False):
        with torch.no_grad():
            means, log_sum = attend_to(teacher, teacher_keys, values, temperature, own)
            entropy = log_sum - (teacher * means[0]).sum(1) / temperature
        cross_entropy = denominator(student, student_keys, temperature, own)
        cross_entropy = cross_entropy - (student * means[-1]).sum(1) / temperature
        return (cross_entropy - entropy).mean(), entropy.mean()
