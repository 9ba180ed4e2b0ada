"""The question: an extraction, and perhaps a student, of which nothing has been run yet."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kdcache.errors import ConfigError
from kdcache.extract import Job, describe
from kdcache.images import ImageIndex, ImageSet
from kdcache.methods import TeacherSide
from kdcache.recipe import Recipe
from kdcache.store import CacheSize, cache_size
from kdcache.views import NUM_WITNESSES, ViewMaker, witnesses_to_arrays


@dataclass(frozen=True)
class Question:
    """What is asked about."""

    job: Job
    """The extraction; its images are a sample of those that there will be."""
    num_images: int
    classes: tuple[str, ...]
    path_bytes: int
    """Of the paths of all images together."""
    made_with: Mapping[str, str]
    student: Recipe | None = None

    def size(self) -> CacheSize:
        """Files and bytes of the cache; of its witnesses the expected number."""
        job, head = self.job, self.job.teacher.head
        total = self.num_images * job.num_views
        about: dict[str, Any] = describe(job)
        about["images"]["num_images"] = self.num_images
        about["images"]["num_classes"] = len(self.classes)
        return cache_size(
            recipe=about,
            arrays=job.array_specs(),
            num_rows=self.num_images,
            num_views=job.num_views,
            classes=self.classes,
            path_bytes=self.path_bytes,
            head=(head.layers, head.to_arrays()) if head is not None else None,
            witness={
                name: ((min(total, NUM_WITNESSES), *array.shape[1:]), array.dtype)
                for name, array in witnesses_to_arrays([]).items()
            },
            made_with=self.made_with,
        )

    def student_maker(self, recipe: Recipe) -> ViewMaker:
        """Renders the sample as the student is to see it."""
        return replace(self.job.maker, size=recipe.student.image_size)

    def teacher_side(self, recipe: Recipe) -> list[TeacherSide]:
        """What the method is told of the teacher; nothing if it has none.

        Raises:
            ConfigError: the cache would not serve the method.
        """
        needs, teacher = recipe.needs, self.job.teacher
        if needs.target is None:
            return []
        if needs.views > self.job.num_views:
            raise ConfigError(
                f"`{recipe.method}` shows {needs.views} views of an image in a step, and "
                f"`{self.job.num_views}` would be cached",
                hint=f"--views {needs.views}, or more",
            )
        dim = teacher.feature_dim if needs.target == "feature" else teacher.embedding_dim
        if dim is None or (needs.head and teacher.head is None):
            raise ConfigError(
                f"`{recipe.method}` learns from an embedding, and `{teacher.name}` has no "
                "projection head",
                hint="give --weights of a file that has one, or --set method.target=feature",
            )
        return [TeacherSide(dim, teacher.head if needs.head else None)]

    def about(self) -> dict[str, str | int]:
        """What rates must be about to be of use here."""
        job, student = self.job, self.student
        arrays = ", ".join(f"{s.name} {s.dim} {s.dtype}" for s in job.array_specs())
        about: dict[str, str | int] = {
            "teacher": job.teacher.name,
            "image_size": job.teacher.image_size,
            "policy": job.policy.name,
            "precision": job.precision,
            "arrays": arrays,
        }
        if student is not None:
            about["method"] = student.method
            about["student"] = student.student.name
            about["student_size"] = student.student.image_size
        return about


@dataclass(frozen=True, eq=False)
class NoImages(ImageSet):
    """The sample of images that nobody has yet."""

    def read(self, row: int) -> bytes:
        """Never called: there are no rows."""
        raise IndexError(row)


def no_images() -> tuple[ImageSet, ImageIndex]:
    """A sample without an image, and its index."""
    labels = np.empty(0, np.int32)
    ids = np.empty((0, 16), np.uint8)
    return NoImages("", [], labels, ()), ImageIndex(ids, np.empty(0, np.int64), {})
