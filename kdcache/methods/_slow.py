"""The slow copy of a network: it follows the trained one by a moving average of its weights.

Source: He et al., MoCo, CVPR 2020, arXiv:1911.05722, eq. 2; official code moco/builder.py.
"""

import copy
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def slow_copy(module: M) -> M:
    """A copy with weights of its own that no gradient reaches."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def follow(slow: nn.Module, fast: nn.Module, momentum: float) -> None:
    """Move each parameter of `slow` by `1 - momentum` of the way to that of `fast`.

    Buffers stay: the running statistics of batch norm come from the copy's own forward passes.
    """
    for mine, other in zip(slow.parameters(), fast.parameters(), strict=True):
        mine.lerp_(other, 1.0 - momentum)
