"""Rows on the unit sphere, and how far apart they are; where losses leave reduced precision.

Shapes: B batch, D target.
"""

import torch
from torch import Tensor
from torch.nn import functional

from kdcache.shapes import Float


def unit(rows: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
    """The rows at length one, in float32; in float64 where they came so."""
    return functional.normalize(rows if rows.dtype == torch.float64 else rows.float(), dim=1)


def squared_distance(ours: Float[Tensor, "B D"], theirs: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """Mean over the batch of |a - b|^2 of unit rows: 2 - 2 cos(a, b), from 0 to 4."""
    return 2.0 - 2.0 * (ours * theirs).sum(1).mean()
