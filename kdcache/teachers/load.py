"""The way from a teacher's name to a teacher: the part before the colon says who loads it."""

from collections.abc import Callable
from pathlib import Path

import timm
import torch

from kdcache.errors import TeacherError
from kdcache.teachers.teacher import Teacher
from kdcache.teachers.timm import load_timm

Loader = Callable[[str, Path | None, int | None], Teacher]

_SOURCES: dict[str, Loader] = {"timm": load_timm}


def load_teacher(
    name: str, *, weights: Path | None = None, image_size: int | None = None
) -> Teacher:
    """The teacher `SOURCE:MODEL` on the CPU, frozen; no random numbers of the caller are drawn.

    Args:
        weights: a file; unless given, the source downloads its own.
        image_size: side in pixels; unless given, the one that the weights were made for.

    Raises:
        TeacherError: there is no such teacher, or its weights cannot be had or do not fit.
    """
    source, colon, model = name.partition(":")
    if colon and source in _SOURCES:
        # A student's random weights must not depend on whether its teacher runs live.
        with torch.random.fork_rng(devices=[]):
            return _SOURCES[source](model, weights, image_size)
    if timm.is_model(name):
        raise TeacherError(
            f"there is no teacher `{name}`, but timm has a model of this name",
            hint=f"write `timm:{name}`",
        )
    known = ", ".join(f"`{source}:MODEL`" for source in _SOURCES)
    raise TeacherError(
        f"there is no teacher `{name}`; known are {known}", hint="try `timm:resnet18`"
    )
