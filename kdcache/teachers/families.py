"""Families: what a registered teacher's tensors need before they fit the network they are for.

Most need nothing: `checkpoint.py` takes the wrappers off and `layout.py` accounts for the rest.
Source: facebookresearch/dino (vision_transformer.py), facebookresearch/dinov2
(dinov2/hub/backbones.py, dinov2/models/vision_transformer.py), google-research/simclr (resnet.py:
the order in which layers are made), UMBCvision/CompRess (models/resnet50x4.py: their names),
methods.md 11.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kdcache.shapes import Float

Rename = Callable[[dict[str, Tensor], Mapping[str, Tensor]], dict[str, Tensor]]


def fit_family(
    family: str, tensors: dict[str, Tensor], backbone: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors of a checkpoint under the names, and in the sizes, that the network has.

    Args:
        backbone: the network's own state dict, for the sizes.
    """
    return _RENAMES[family](tensors, backbone) if family in _RENAMES else tensors


def _dino_vit(tensors: dict[str, Tensor], backbone: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """DINO's position embedding at the size of the images, resampled as its authors do."""
    positions = tensors.get("pos_embed")
    if positions is None or positions.ndim != 3 or "pos_embed" not in backbone:
        return tensors  # to be listed among what is missing or of another shape
    patches = backbone["pos_embed"].shape[1] - 1
    grid = _resampled(positions[:, 1:], patches, offset=0.1, antialias=False)
    return {**tensors, "pos_embed": torch.cat([positions[:, :1], grid], dim=1)}


def _dinov2(tensors: dict[str, Tensor], backbone: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """DINOv2's names into timm's, its position embedding at the size of the images.

    timm resamples that embedding in another way, which gives features that are close and not the
    same.
    """
    tensors = {key: value for key, value in tensors.items() if key != "mask_token"}
    registers = tensors.pop("register_tokens", None)
    if registers is None:
        return _dino_vit(tensors, backbone)
    positions = tensors.get("pos_embed")
    if positions is None or positions.ndim != 3 or "pos_embed" not in backbone:
        return {**tensors, "reg_token": registers}
    first, grid = positions[:, :1], positions[:, 1:]
    # timm adds the first position to the class token itself: registers have none.
    grid = _resampled(grid, backbone["pos_embed"].shape[1], offset=0.0, antialias=True)
    start = {"cls_token": tensors["cls_token"] + first} if "cls_token" in tensors else {}
    return {**tensors, **start, "reg_token": registers, "pos_embed": grid}


def _resampled(
    grid: Float[Tensor, "1 N D"], patches: int, *, offset: float, antialias: bool
) -> Float[Tensor, "1 M D"]:
    """Position embeddings of a square of patches, at the size of another square.

    Args:
        offset: added to the wanted side before the scale is taken, as the authors do.
    """
    here, there = math.isqrt(grid.shape[1]), math.isqrt(patches)
    if here == there:
        return grid
    square = grid.reshape(1, here, here, -1).permute(0, 3, 1, 2).float()
    size: dict[str, Any] = (
        {"scale_factor": (there + offset) / here} if offset else {"size": (there, there)}
    )
    resized = functional.interpolate(square, mode="bicubic", antialias=antialias, **size)
    return resized.permute(0, 2, 3, 1).reshape(1, there * there, -1)


def _simclr_tf(tensors: dict[str, Tensor], backbone: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """TensorFlow's running numbers into torchvision's names.

    Layers are numbered as they were made: the stem, then block by block, where a block's shortcut
    comes before its three convolutions.
    """
    layers = _blocks({key.rpartition(".")[0] for key in backbone})
    renamed = {}
    for key, tensor in tensors.items():
        name, _, kind = key.rpartition(".")
        match = _TF_NAME.fullmatch(name)
        place = int(match["number"] or 0) if match else len(layers)
        if match and place < len(layers):
            convolution, norm = layers[place]
            name = convolution if match["kind"] == "conv2d" else norm
        renamed[f"{name}.{kind}"] = tensor
    return renamed


def _blocks(modules: set[str]) -> list[tuple[str, str]]:
    """Convolutions and their norms by torchvision's names, in the order of TensorFlow's numbers."""
    layers = [("conv1", "bn1")]
    blocks = sorted({name.rpartition(".")[0] for name in modules if name.endswith(".conv1")})
    for block in blocks:
        if f"{block}.downsample.0" in modules:
            layers.append((f"{block}.downsample.0", f"{block}.downsample.1"))
        layers += [(f"{block}.conv{i}", f"{block}.bn{i}") for i in (1, 2, 3)]
    return layers


_TF_NAME = re.compile(r"(?P<kind>conv2d|batch_normalization)(?:_(?P<number>[1-9]\d*))?")
_RENAMES: dict[str, Rename] = {
    "dino_vit": _dino_vit,
    "dinov2": _dinov2,
    "simclr_tf": _simclr_tf,
}
