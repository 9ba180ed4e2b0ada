"""Layouts: which tensors of a checkpoint are the backbone, which the head, and which neither.

Every tensor must be accounted for, since a layer that keeps its random weights gives a teacher
that runs and says nothing. A checkpoint stores no activations: in a Sequential whose numbers skip
one, the skipped layer is taken for a ReLU, as in the heads of MoCo-v2 (`fc.0`, `fc.2`), SimCLR
(`fc.0`, `.1`, `.3`) and SwAV (`projection_head.0`, `.1`, `.3`). A lone linear layer under the name
of timm's classifier (`fc.weight`) is taken for a classifier and left out; MoCo-v1's head looks
just like that, and is left out too.
Source: methods.md 11.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kdcache.errors import ConfigError, TeacherError
from kdcache.heads import Layer, ProjectionHead, is_counter

HEAD_KEY = re.compile(r"(fc|head|projection_head|projector|classifier)\.(\d+)\.(\w+)")
_BAGGAGE = re.compile(r"queue|queue_ptr|prototypes.*|(.*\.)?num_batches_tracked")
_SHOWN = 8


@dataclass(frozen=True)
class Parts:
    """What a checkpoint consists of."""

    backbone: dict[str, Tensor]
    """Complete, under timm's own names."""
    head: ProjectionHead | None


def split_checkpoint(
    tensors: Mapping[str, Tensor],
    backbone: Mapping[str, Tensor],
    *,
    model: str,
    classifiers: tuple[str, ...],
) -> Parts:
    """Find the backbone and the projection head of a flat state dict.

    Args:
        backbone: the state dict of the timm model without its classifier, for names and shapes.
        model: the timm model's name, for the errors.
        classifiers: names of the timm model's classifier layers.

    Raises:
        TeacherError: a tensor of the backbone is missing or has another shape, tensors are left
            over, or a head is not made of linear layers and batch normalisation.
    """
    missing = [key for key in backbone if key not in tensors and not is_counter(key)]
    misshapen = [
        f"{key} {_shape(tensors[key])} for {_shape(own)}"
        for key, own in backbone.items()
        if key in tensors and tensors[key].shape != own.shape
    ]
    ends = {f"{name}.{kind}" for name in classifiers for kind in ("weight", "bias")}
    rest = {
        key: tensor
        for key, tensor in tensors.items()
        if key not in backbone and key not in ends and not _is_baggage(key)
    }
    left_over = [key for key in rest if HEAD_KEY.fullmatch(key) is None]
    if missing or misshapen or left_over:
        counts = f"of {len(backbone)} tensors expected and {len(tensors)} found"
        kinds = {"missing": missing, "of another shape": misshapen, "left over": left_over}
        listed = "; ".join(_listed(kind, keys) for kind, keys in kinds.items() if keys)
        raise TeacherError(
            f"the weights are not those of timm model `{model}`: {counts}, {listed}",
            hint="name the timm model that they were made with, `--teacher timm:MODEL`, and its "
            "image size",
        )
    # Old checkpoints do not count batches; the zeros of a new model stand in.
    return Parts({key: tensors.get(key, own) for key, own in backbone.items()}, _find_head(rest))


def _is_baggage(key: str) -> bool:
    """Whether a tensor served the teacher's own training only."""
    return _BAGGAGE.fullmatch(key) is not None


def _find_head(rest: Mapping[str, Tensor]) -> ProjectionHead | None:
    heads: dict[str, dict[int, dict[str, Tensor]]] = {}
    for key, tensor in rest.items():
        match = HEAD_KEY.fullmatch(key)
        assert match is not None
        name, index, kind = match.groups()
        heads.setdefault(name, {}).setdefault(int(index), {})[kind] = tensor
    if not heads:
        return None
    if len(heads) > 1:
        names = ", ".join(f"`{name}`" for name in heads)
        raise TeacherError(
            f"the weights hold several projection heads: {names}",
            hint="save the weights again with one of them",
        )
    ((name, parts),) = heads.items()
    return _build_head(name, parts)


def _build_head(name: str, parts: Mapping[int, Mapping[str, Tensor]]) -> ProjectionHead:
    layers: list[Layer] = []
    for index in sorted(parts):
        if index == len(layers) + 1 and layers:
            layers.append({"kind": "relu"})
        if index != len(layers):
            raise _unknown(name, f"there is no layer `{name}.{len(layers)}`")
        layers.append(_layer(name, index, parts[index]))
    arrays = {
        f"{index}.{kind}": tensor.numpy()
        for index, part in parts.items()
        for kind, tensor in part.items()
    }
    try:
        return ProjectionHead.from_arrays(layers, arrays)
    except ConfigError as error:
        raise _unknown(name, str(error)) from error


def _layer(name: str, index: int, part: Mapping[str, Tensor]) -> Layer:
    dims = {kind: tensor.ndim for kind, tensor in part.items()}
    match dims:
        case {"weight": 2} if dims.keys() <= {"weight", "bias"}:
            outputs, inputs = part["weight"].shape
            return {"kind": "linear", "in": inputs, "out": outputs, "bias": "bias" in part}
        case {"running_mean": 1, "running_var": 1} if len(dims) in (2, 4):
            width = len(part["running_mean"])
            return {"kind": "batchnorm", "dim": width, "affine": "weight" in part, "eps": 1e-5}
    found = ", ".join(f"{kind} {_shape(tensor)}" for kind, tensor in part.items())
    raise _unknown(name, f"layer `{name}.{index}` holds {found}")


def _unknown(name: str, reason: str) -> TeacherError:
    return TeacherError(
        f"the projection head `{name}` is not made of linear layers, batch normalisation and "
        f"single ReLUs: {reason}",
        hint=f"save the weights without `{name}.*` to use the teacher's features alone",
    )


def _listed(kind: str, keys: list[Any]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f"{len(keys)} {kind}: {', '.join(f'`{key}`' for key in keys[:_SHOWN])}{more}"


def _shape(tensor: Tensor) -> str:
    return "x".join(str(length) for length in tensor.shape) or "scalar"
