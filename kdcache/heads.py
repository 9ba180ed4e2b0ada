"""Projection heads: the few layers between a feature and an embedding, as plain data.

A head travels inside a cache as a description (JSON) and arrays, so it is made of these only:

    {"kind": "linear", "in": 2048, "out": 128, "bias": true}
    {"kind": "batchnorm", "dim": 2048, "affine": true, "eps": 1e-5}
    {"kind": "relu"}
    {"kind": "gelu"}

Source: the heads of MoCo-v2, SimCLR, SwAV, DINO and SimReg, as their released code writes them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdcache.errors import ConfigError
from kdcache.shapes import Float

Layer = dict[str, Any]

_ROWS_AT_ONCE = 8192


class ProjectionHead(nn.Sequential):
    """Features to embeddings; in eval mode batch normalisation uses its running statistics."""

    def __init__(self, layers: Sequence[Mapping[str, Any]]) -> None:
        """A head with torch's initial weights.

        Raises:
            ConfigError: a layer is none of those above, or does not fit the one before it.
        """
        plain: list[Layer] = [dict(layer) for layer in layers]
        super().__init__(*(_build(layer) for layer in plain))
        self.layers = plain
        self.in_dim, self.out_dim = _dims(plain)

    def forward(self, feature: Float[Tensor, "B F"]) -> Float[Tensor, "B D"]:
        """The embeddings, as the last layer gives them (not normalised)."""
        embedding: Tensor = super().forward(feature)  # type: ignore[no-untyped-call]
        return embedding

    @torch.no_grad()
    def embed(
        self, feature: Float[Tensor, "N F"], *, device: torch.device | None = None
    ) -> Float[Tensor, "N D"]:
        """The embeddings of many features in float32, some at a time; for a head in eval mode.

        Args:
            device: of the result, where the head is; that of the features unless given.
        """
        assert not self.training
        device = device or feature.device
        parts = [self(part.to(device).float()) for part in torch.split(feature, _ROWS_AT_ONCE)]
        return torch.cat(parts)

    @classmethod
    def from_modules(cls, modules: nn.Sequential) -> "ProjectionHead":
        """The head that computes what these modules compute in eval mode, with a copy of them.

        Raises:
            ConfigError: one is no Linear, BatchNorm1d, ReLU or (exact) GELU.
        """
        layers = [_describe(module) for module in modules]
        arrays = {
            name: tensor.detach().to("cpu", torch.float32).numpy()
            for name, tensor in modules.state_dict().items()
            if not is_counter(name)
        }
        return cls.from_arrays(layers, arrays)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Weights and running statistics in float32, named by layer: `0.weight`, `0.bias`, ..."""
        return {
            name: tensor.detach().to("cpu", torch.float32).numpy().copy()
            for name, tensor in self.state_dict().items()
            if not is_counter(name)
        }

    @classmethod
    def from_arrays(
        cls, layers: Sequence[Mapping[str, Any]], arrays: Mapping[str, np.ndarray]
    ) -> "ProjectionHead":
        """The head that `to_arrays` was called on, in train mode; no random numbers are drawn.

        Raises:
            ConfigError: an array is missing, left over or of another shape.
        """
        with torch.random.fork_rng(devices=[]):
            head = cls(layers)
        own = {name: tensor for name, tensor in head.state_dict().items() if not is_counter(name)}
        wanted = {name: tuple(tensor.shape) for name, tensor in own.items()}
        found = {name: tuple(array.shape) for name, array in arrays.items()}
        if wanted != found:
            raise ConfigError(
                f"the arrays of the projection head do not fit it: {_differences(wanted, found)}",
                hint="give exactly the layers and arrays that the head was saved with",
            )
        for name, tensor in own.items():
            tensor.copy_(torch.tensor(arrays[name]))
        return head


def is_counter(name: str) -> bool:
    """Whether a tensor only counts the batches of its training, and so changes no output."""
    return name.rpartition(".")[2] == "num_batches_tracked"


def _build(layer: Layer) -> nn.Module:
    match layer:
        case {"kind": "linear", "in": int(inputs), "out": int(outputs), "bias": bool(bias)} if (
            len(layer) == 4 and min(inputs, outputs) > 0
        ):
            return nn.Linear(inputs, outputs, bias=bias)
        case {"kind": "batchnorm", "dim": int(dim), "affine": bool(affine), "eps": float(eps)} if (
            len(layer) == 4 and dim > 0
        ):
            return nn.BatchNorm1d(dim, eps=eps, affine=affine)
        case {"kind": "relu"} if len(layer) == 1:
            return nn.ReLU(inplace=False)
        case {"kind": "gelu"} if len(layer) == 1:
            return nn.GELU()
    raise ConfigError(
        f"`{layer}` is no layer of a projection head",
        hint='write {"kind": "linear", "in": I, "out": O, "bias": B}, '
        '{"kind": "batchnorm", "dim": D, "affine": B, "eps": E}, {"kind": "relu"} or '
        '{"kind": "gelu"}',
    )


def _describe(module: nn.Module) -> Layer:
    match module:
        case nn.Linear():
            bias = module.bias is not None
            return {
                "kind": "linear",
                "in": module.in_features,
                "out": module.out_features,
                "bias": bias,
            }
        case nn.BatchNorm1d(track_running_stats=True):
            affine, eps = module.affine, float(module.eps)
            return {"kind": "batchnorm", "dim": module.num_features, "affine": affine, "eps": eps}
        case nn.ReLU():
            return {"kind": "relu"}
        case nn.GELU(approximate="none"):
            return {"kind": "gelu"}
    raise ConfigError(
        f"a projection head cannot hold `{module}`",
        hint="make it of Linear, BatchNorm1d, ReLU and GELU in one nn.Sequential, or leave it out",
    )


def _dims(layers: list[Layer]) -> tuple[int, int]:
    """The widths at the two ends, having checked that each layer takes what the last one gives."""
    ends = [
        (layer["in"], layer["out"]) if layer["kind"] == "linear" else (layer["dim"], layer["dim"])
        for layer in layers
        if layer["kind"] in ("linear", "batchnorm")
    ]
    if not ends:
        raise ConfigError(
            "a projection head without a linear layer has no width",
            hint="begin it with a linear layer",
        )
    width = ends[0][0]
    for takes, gives in ends:
        if takes != width:
            raise ConfigError(
                f"a layer of the projection head takes `{takes}` numbers, but is given `{width}`",
                hint=f"set its width to {width}",
            )
        width = gives
    return ends[0][0], width


def _differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    return "; ".join(
        f"`{name}` is {found.get(name, 'missing')}, expected {wanted.get(name, 'nothing')}"
        for name in sorted(wanted.keys() | found.keys())
        if wanted.get(name) != found.get(name)
    )
