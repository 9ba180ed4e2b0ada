"""The extraction that made a cache, once more: its teacher, its views, and other hands' images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kdcache.errors import TeacherError
from kdcache.extract.job import Job
from kdcache.images import ImageIndex, ImageSet
from kdcache.shapes import UInt8
from kdcache.teachers import Teacher, load_teacher
from kdcache.views import Policy, ViewMaker, renderer_of


def teacher_of(recipe: Mapping[str, Any], weights: Path | None, cache: Path) -> Teacher:
    """The teacher that a cache names, and no other.

    Args:
        weights: its file, where it was loaded from one.
        cache: named where it is refused.

    Raises:
        TeacherError: these are other weights.
    """
    said = recipe["teacher"]
    teacher = load_teacher(said["name"], weights=weights, image_size=said["image_size"])
    found = teacher.description()["weights"]["sha256"]
    if found != said["weights"]["sha256"]:
        raise TeacherError(
            f"`{cache}` was made by a teacher with the weights `{said['weights']['sha256']}`; "
            f"those at hand are `{found}`",
            hint="give --weights the file that the cache was extracted with",
        )
    return teacher


def maker_of(
    recipe: Mapping[str, Any], images: ImageSet, ids: UInt8[np.ndarray, "N 16"], cache: Path
) -> ViewMaker:
    """Renders the views of a cache as its teacher saw them.

    Args:
        images: those of the cache's rows, in its order.

    Raises:
        CacheMismatch: this code renders otherwise.
        ConfigError: this code does not know the policy.
    """
    views = recipe["views"]
    return ViewMaker(
        images, ids, Policy.from_dict(views["policy"]), views["seed"], renderer_of(recipe, cache),
        recipe["teacher"]["image_size"],
    )  # fmt: skip


def job_again(
    recipe: Mapping[str, Any],
    maker: ViewMaker,
    teacher: Teacher,
    num_views: int,
) -> Job:
    """The job that a cache was made by."""
    (dtype,) = {about["dtype"] for about in recipe["arrays"].values()}
    num_rows = len(maker.ids)
    return Job(
        images=maker.images,
        index=ImageIndex(maker.ids, np.zeros(num_rows, np.int64), {}),
        teacher=teacher,
        policy=maker.policy,
        seed=maker.seed,
        num_views=num_views,
        renderer=maker.renderer,
        dtype=dtype,
        precision=recipe["precision"],
        batch_size=recipe["batch_size"],
        arrays=tuple(recipe["arrays"]),
    )
