"""Layouts: which tensors of a checkpoint are the backbone, which the head, and which neither.

Every tensor must be accounted for, since a layer that keeps its random weights gives a teacher
that runs and says nothing. Of a registered teacher the head is known, and the file must hold just
that. Otherwise the head is read off the names, though a checkpoint stores no activations: in a
Sequential whose numbers skip one, the skipped layer is taken for a ReLU, as in the heads of MoCo-v2
(`fc.0`, `fc.2`), SimCLR (`fc.0`, `.1`, `.3`) and SwAV (`projection_head.0`, `.1`, `.3`); and a lone
linear layer under the name of timm's classifier (`fc.weight`) is taken for a classifier and left
out, though MoCo-v1's head looks just like that.
Source: methods.md 11.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kdcache.errors import ConfigError, TeacherError
from kdcache.heads import Layer, ProjectionHead, is_counter

_HEAD_KEY = re.compile(
    r"(fc|head|head\.mlp|projection_head|projector|classifier|predict_q\.module)\.(\d+)\.(\w+)"
)
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
    head: Sequence[Layer] | None = None,
) -> Parts:
    """Find the backbone and the projection head of a flat state dict.

    Args:
        backbone: the state dict of the timm model without its classifier, for names and shapes.
        model: the model's name, for the errors.
        classifiers: names of the model's classifier layers.
        head: layers of the head that must be there, none if it is empty; read off the names unless
            given.

    Raises:
        TeacherError: a tensor of the backbone is missing or has another shape, tensors are left
            over, or a head is another than `head` or not made of known layers.
    """
    if head is not None and len(head) == 1:
        tensors = {_in_sequential(key, classifiers): tensor for key, tensor in tensors.items()}
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
    left_over = [key for key in rest if _HEAD_KEY.fullmatch(key) is None]
    if missing or misshapen or left_over:
        counts = f"of {len(backbone)} tensors expected and {len(tensors)} found"
        kinds = {"missing": missing, "of another shape": misshapen, "left over": left_over}
        listed = "; ".join(_listed(kind, keys) for kind, keys in kinds.items() if keys)
        raise TeacherError(
            f"the weights are not those of `{model}`: {counts}, {listed}",
            hint="name the teacher or the timm model that they were made with (`kdcache teachers`, "
            "`--teacher timm:MODEL`), and its image size",
        )
    found = _find_head(rest, "gelu" if {"kind": "gelu"} in (head or ()) else "relu")
    if head is not None and list(head) != ([] if found is None else found.layers):
        raise TeacherError(
            f"the projection head of `{model}` is `{layers_text(head)}`; that of the weights is "
            f"`{layers_text(found.layers if found else ())}`",
            hint="give the file that the registry names: `kdcache teachers NAME`",
        )
    # Old checkpoints do not count batches; the zeros of a new model stand in.
    return Parts({key: tensors.get(key, own) for key, own in backbone.items()}, found)


def _in_sequential(key: str, classifiers: tuple[str, ...]) -> str:
    """`fc.weight` as `fc.0.weight`: the one layer that is a head and not a classifier."""
    name, _, kind = key.rpartition(".")
    return f"{name}.0.{kind}" if name in classifiers else key


def layers_text(layers: Sequence[Layer]) -> str:
    """A head in words."""

    def text(layer: Layer) -> str:
        match layer["kind"]:
            case "linear":
                bias = "" if layer["bias"] else " without bias"
                return f"linear {layer['in']} to {layer['out']}{bias}"
            case "batchnorm":
                return f"batchnorm {layer['dim']}{'' if layer['affine'] else ' without affine'}"
        return str(layer["kind"])

    return ", ".join(map(text, layers)) or "none"


def _is_baggage(key: str) -> bool:
    """Whether a tensor served the teacher's own training only."""
    return _BAGGAGE.fullmatch(key) is not None


def _find_head(rest: Mapping[str, Tensor], activation: str) -> ProjectionHead | None:
    heads: dict[str, dict[int, dict[str, Tensor]]] = {}
    for key, tensor in rest.items():
        match = _HEAD_KEY.fullmatch(key)
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
    return _build_head(name, parts, activation)


def _build_head(
    name: str, parts: Mapping[int, Mapping[str, Tensor]], activation: str
) -> ProjectionHead:
    layers: list[Layer] = []
    for index in sorted(parts):
        if index == len(layers) + 1 and layers:
            layers.append({"kind": activation})
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
