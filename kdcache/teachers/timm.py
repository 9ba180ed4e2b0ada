"""timm's models as teachers: `timm:MODEL`, with timm's published weights or those of a file.

Source: Wightman, "PyTorch Image Models", github.com/huggingface/pytorch-image-models.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from kdcache.errors import ConfigError, TeacherError
from kdcache.files import sha256_of
from kdcache.heads import ProjectionHead
from kdcache.networks import Backbone, build_backbone, parameter_digest, timm_config, timm_model
from kdcache.teachers.checkpoint import read_checkpoint
from kdcache.teachers.layout import split_checkpoint
from kdcache.teachers.teacher import Teacher


def load_timm(model: str, weights: Path | None, image_size: int | None) -> Teacher:
    """The timm model without its classifier; a file may bring a projection head.

    Mean and std are timm's for this model, also for a file. Of a file the licence is not known.

    Raises:
        TeacherError: see `load_teacher`.
    """
    try:
        backbone = build_backbone(model, image_size=image_size)
    except ConfigError as error:
        raise TeacherError(str(error), hint=error.hint) from error
    config = timm_config(model)
    head = None
    if weights is None:
        tensors = _download(backbone)
    else:
        tensors, head = _read(weights, backbone, config.classifier)
    backbone.model.load_state_dict(tensors)
    return Teacher(
        f"timm:{model}",
        backbone,
        head,
        weights=provenance(weights, backbone, config),
        interpolation=config.interpolation,
        licence=config.license if weights is None else None,
    )


def _download(backbone: Backbone) -> dict[str, Tensor]:
    try:
        return timm_model(backbone.name, backbone.image_size, pretrained=True).state_dict()
    except Exception as error:  # the network, its absence and its libraries fail in many ways
        raise TeacherError(
            f"timm's weights for `{backbone.name}` could not be downloaded: {error}",
            hint="give a file of weights: `--weights FILE`",
        ) from error


def _read(
    path: Path, backbone: Backbone, classifier: str | tuple[str, ...] | None
) -> tuple[dict[str, Tensor], ProjectionHead | None]:
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    parts = split_checkpoint(
        read_checkpoint(path),
        backbone.model.state_dict(),
        model=backbone.name,
        classifiers=names,
    )
    return parts.backbone, parts.head


def provenance(path: Path | None, backbone: Backbone, config: Any) -> dict[str, Any]:
    """Where the weights of a backbone are from, for `Teacher.description`."""
    if path is None:
        own = config.tag and not backbone.name.startswith("hf-hub:")
        source = f"timm/{config.architecture}.{config.tag}" if own else backbone.name
        return {"source": source, "sha256": parameter_digest(backbone.model)}
    # Not its name: the same file under another name is the same teacher.
    return {"source": "file", "sha256": sha256_of(path), "bytes": path.stat().st_size}
