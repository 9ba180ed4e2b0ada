"""Heads that students are trained through, as the papers' code builds them.

Shapes: E student feature, D target.
"""

from torch import nn


def two_layer_head(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    """Linear, ReLU, Linear without batch norm: MoCo-v2's head, and that of SEED and DisCo."""
    return nn.Sequential(
        nn.Linear(in_dim, hidden_dim), nn.ReLU(inplace=True), nn.Linear(hidden_dim, out_dim)
    )


def simreg_head(in_dim: int, out_dim: int) -> nn.Sequential:
    """Two two-layer heads in a row: the second layer is a junction with neither norm nor ReLU.

    Source: SimReg's mlp_arch.py with four layers, its default; indices 0, 3, 4 and 7 are linear.
    """
    return nn.Sequential(
        nn.Linear(in_dim, 2 * in_dim),
        nn.BatchNorm1d(2 * in_dim),
        nn.ReLU(inplace=True),
        nn.Linear(2 * in_dim, in_dim),
        nn.Linear(in_dim, 2 * in_dim),
        nn.BatchNorm1d(2 * in_dim),
        nn.ReLU(inplace=True),
        nn.Linear(2 * in_dim, out_dim),
    )
