"""A teacher's outline: its network and its head, before anybody downloads its weights."""

from pathlib import Path

import torch

from kdcache.errors import ConfigError, TeacherError
from kdcache.heads import ProjectionHead
from kdcache.networks import build_backbone, timm_config
from kdcache.teachers.load import TIMM, load_teacher
from kdcache.teachers.registered import entry_backbone
from kdcache.teachers.registry import Entry, get_entry, registered_teachers
from kdcache.teachers.teacher import Teacher
from kdcache.teachers.timm import provenance


def sketch_teacher(
    name: str, *, weights: Path | None = None, image_size: int | None = None
) -> Teacher:
    """What `load_teacher` gives, but random weights stand in for those that it would download.

    Its sizes and its speed are the teacher's; what it says is not.

    Raises:
        TeacherError: there is no such teacher, or the file of weights does not fit.
    """
    if weights is None and name in registered_teachers():
        return _of_entry(get_entry(name), image_size)
    if weights is None and name.startswith(TIMM):
        return _of_timm(name, image_size)
    return load_teacher(name, weights=weights, image_size=image_size)


def _of_entry(entry: Entry, image_size: int | None) -> Teacher:
    with torch.random.fork_rng(devices=[]):
        try:
            backbone = entry_backbone(entry, image_size or entry.image_size)
        except ConfigError as error:
            raise TeacherError(str(error), hint=error.hint) from error
        head = ProjectionHead(entry.head) if entry.head else None
    num_bytes = sum(tensor.nbytes for tensor in backbone.state_dict().values())
    return Teacher(
        entry.name,
        backbone,
        head,
        weights={"source": "file", "sha256": "0" * 64, "bytes": num_bytes},
        interpolation=entry.interpolation,
        licence=entry.licence,
    )


def _of_timm(name: str, image_size: int | None) -> Teacher:
    with torch.random.fork_rng(devices=[]):
        try:
            backbone = build_backbone(name.removeprefix(TIMM), image_size=image_size)
        except ConfigError as error:
            raise TeacherError(str(error), hint=error.hint) from error
    config = timm_config(backbone.name)
    return Teacher(
        name,
        backbone,
        None,
        weights=provenance(None, backbone, config),
        interpolation=config.interpolation,
        licence=config.license,
    )
