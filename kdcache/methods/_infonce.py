"""InfoNCE: find the one key that belongs to a query among many that do not.

Source: van den Oord et al., arXiv:1807.03748, eq. 4, as He et al., MoCo, arXiv:1911.05722, eq. 1,
write it: the wanted key stands among the others in the denominator.

Shapes: B batch, D embedding, K negatives.
"""

import torch
from torch import Tensor
from torch.nn import functional

from kdcache.shapes import Float


def infonce(
    query: Float[Tensor, "B D"],
    key: Float[Tensor, "B D"],
    negatives: Float[Tensor, "K D"],
    temperature: float,
) -> Float[Tensor, " B"]:
    """-log softmax of each row's own key, in nats; all rows have unit length, K may be 0.

    Autocast is off in here: similarities in bfloat16 are off by 0.004, and are divided by the
    temperature.
    """
    with torch.autocast(query.device.type, enabled=False):
        positive = (query * key).sum(1, keepdim=True)
        logits = torch.cat([positive, query @ negatives.T], dim=1) / temperature
    wanted = torch.zeros(len(query), dtype=torch.long, device=query.device)
    return functional.cross_entropy(logits, wanted, reduction="none")
