"""The way from a teacher's name to a teacher."""

import difflib
from pathlib import Path

import timm
import torch

from kdcache.errors import TeacherError
from kdcache.progress import Bar, silent_bar
from kdcache.teachers.own import is_own, load_own
from kdcache.teachers.registered import load_registered
from kdcache.teachers.registry import get_entry, registered_teachers
from kdcache.teachers.teacher import Teacher
from kdcache.teachers.timm import load_timm

TIMM = "timm:"


def load_teacher(
    name: str,
    *,
    weights: Path | None = None,
    image_size: int | None = None,
    bar: Bar = silent_bar,
) -> Teacher:
    """The teacher on the CPU, frozen; no random numbers of the caller are drawn.

    Args:
        name: one of the registry (`r50`), `timm:MODEL`, `timm:hf-hub:ORG/MODEL`, or
            `module:function` for one's own.
        weights: a file; unless given, the source downloads its own.
        image_size: side in pixels; unless given, the one that the weights were made for.

    Raises:
        TeacherError: there is no such teacher, or its weights cannot be had or do not fit.
    """
    # A student's random weights must not depend on whether its teacher runs live.
    with torch.random.fork_rng(devices=[]):
        if name.startswith(TIMM):
            return load_timm(name.removeprefix(TIMM), weights, image_size)
        if name in registered_teachers():
            return load_registered(get_entry(name), weights, image_size, bar=bar)
        if is_own(name):
            _refuse_weights(name, weights)
            return load_own(name, image_size)
    raise _unknown(name)


def _refuse_weights(name: str, weights: Path | None) -> None:
    if weights is not None:
        raise TeacherError(
            f"`{name}` loads its weights itself, but --weights `{weights}` is given",
            hint="leave --weights out, or load that file in the function",
        )


def _unknown(name: str) -> TeacherError:
    if timm.is_model(name):
        return TeacherError(
            f"there is no teacher `{name}`, but timm has a model of this name",
            hint=f"write `timm:{name}`",
        )
    near = difflib.get_close_matches(name, registered_teachers(), n=1)
    return TeacherError(
        f"there is no teacher `{name}`; known are names of the registry, `timm:MODEL` and "
        "`module:function`",
        hint=f"did you mean `{near[0]}`?" if near else "`kdcache teachers` lists the registry",
    )
