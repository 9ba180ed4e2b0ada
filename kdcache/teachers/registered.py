"""Registered teachers: weights fetched or given, and read as their authors' code reads them."""

from pathlib import Path
from typing import Any

from kdcache.errors import ConfigError, TeacherError
from kdcache.files import sha256_of
from kdcache.networks import Backbone, timm_config, timm_model
from kdcache.progress import Bar
from kdcache.teachers.checkpoint import read_checkpoint
from kdcache.teachers.download import fetch
from kdcache.teachers.families import fit_family
from kdcache.teachers.layout import split_checkpoint
from kdcache.teachers.registry import Entry
from kdcache.teachers.resnet import build_resnet, is_resnet
from kdcache.teachers.teacher import Teacher


def load_registered(
    entry: Entry, weights: Path | None, image_size: int | None, *, bar: Bar
) -> Teacher:
    """The teacher of an entry of the registry.

    Args:
        weights: its file; downloaded unless given.

    Raises:
        TeacherError: see `load_teacher`.
    """
    path = weights or _fetched(entry, bar)
    side = image_size or entry.image_size
    try:
        backbone = entry_backbone(entry, side)
    except ConfigError as error:
        raise TeacherError(str(error), hint=error.hint) from error
    own = backbone.model.state_dict()
    parts = split_checkpoint(
        fit_family(entry.family, read_checkpoint(path), own),
        own,
        model=entry.name,
        classifiers=_classifiers(entry.architecture),
        head=entry.head,
    )
    backbone.model.load_state_dict(parts.backbone)
    return Teacher(
        entry.name,
        backbone,
        parts.head,
        weights={"source": "file", "sha256": sha256_of(path), "bytes": path.stat().st_size},
        interpolation=entry.interpolation,
        licence=entry.licence,
    )


def _fetched(entry: Entry, bar: Bar) -> Path:
    if not entry.urls:
        raise TeacherError(
            f"there is no lasting address for the weights of `{entry.name}`: {entry.kept}",
            hint=f"get the file there and give it: --teacher {entry.name} --weights FILE",
        )
    return fetch(entry.urls, digest=entry.digest, bar=bar)


def entry_backbone(entry: Entry, side: int) -> Backbone:
    """The network of an entry, with random weights."""
    name = entry.architecture
    model = build_resnet(name) if is_resnet(name) else timm_model(name, side)
    return Backbone(name, model, side, entry.mean, entry.std)


def _classifiers(architecture: str) -> tuple[str, ...]:
    if is_resnet(architecture):
        return ("fc",)
    names: Any = timm_config(architecture).classifier
    return (names,) if isinstance(names, str) else tuple(names or ())
