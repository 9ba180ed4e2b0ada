"""Students: timm backbones with random weights, saved so that timm alone can load them.

Format: safetensors; the keys are timm's own, so a file fits `timm.create_model(name,
num_classes=0)`. The metadata has one entry, `kdcache`: a JSON object of what the file needs to be
used (`name`, `image_size`, `mean`, `std`), the version that wrote it, and what the caller added.
One entry, because safetensors writes several in random order and equal students should be equal
files.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

import kdcache
from kdcache.errors import ConfigError
from kdcache.files import write_atomic
from kdcache.networks import Backbone, Rgb, build_backbone

STUDENT_FILE = "student.safetensors"
"""The name under which a run keeps its student."""

_ENTRY = "kdcache"


def build_student(
    name: str, *, image_size: int, mean: Rgb | None = None, std: Rgb | None = None
) -> Backbone:
    """A student with random weights, drawn from torch's generator: seed it first.

    Args:
        mean, std: of the normalisation; timm's for this model unless given.

    Raises:
        ConfigError: timm has no such model, or it cannot take images of this size.
    """
    return build_backbone(name, image_size=image_size, mean=mean, std=std)


def save_student(path: Path, backbone: Backbone, metadata: Mapping[str, str]) -> None:
    """Write a student to one file, whole or not at all."""
    about = _about(backbone)
    assert about.keys().isdisjoint(metadata), f"kept for kdcache: {about.keys() & metadata.keys()}"
    text = json.dumps({**metadata, **about}, sort_keys=True)
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in backbone.model.state_dict().items()
    }
    write_atomic(path, save(tensors, {_ENTRY: text}))


def load_student(path: Path) -> Backbone:
    """The student that `save_student` wrote, in train mode.

    Raises:
        ConfigError: the file is not a student, or is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_ENTRY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise _not_a_student(path, str(error)) from error
    if text is None:
        raise _not_a_student(path, "it has no `kdcache` entry in its metadata")
    about = json.loads(text)
    red, green, blue = about["mean"]
    mean = (red, green, blue)
    red, green, blue = about["std"]
    return build_backbone(
        about["name"],
        image_size=about["image_size"],
        mean=mean,
        std=(red, green, blue),
        state_dict=tensors,
    )


def _about(backbone: Backbone) -> dict[str, Any]:
    return {
        "name": backbone.name,
        "image_size": backbone.image_size,
        "mean": backbone.mean,
        "std": backbone.std,
        "version": kdcache.__version__,
    }


def _not_a_student(path: Path, reason: str) -> ConfigError:
    return ConfigError(
        f"`{path}` is not a student saved by kdcache: {reason}",
        hint="give the student file that `kdcache train` left in its output folder",
    )
