"""A job: what is extracted, and the description of it that names the cache."""

from dataclasses import dataclass
from typing import Any

from kdcache.errors import ConfigError
from kdcache.images import ImageIndex, ImageSet, dataset_fingerprint, decoder_description
from kdcache.precision import Precision
from kdcache.store import ArraySpec, Dtype
from kdcache.teachers import Teacher
from kdcache.views import Policy, Renderer, ViewMaker


@dataclass(frozen=True)
class Job:
    """One extraction: which images, seen how, by whom, kept how."""

    images: ImageSet
    index: ImageIndex
    teacher: Teacher
    policy: Policy
    seed: int
    num_views: int
    renderer: Renderer
    dtype: Dtype
    precision: Precision
    batch_size: int
    """Views that the teacher sees at once. Part of the recipe: it can decide last bits."""
    arrays: tuple[str, ...] | None = None
    """Which of `feature` and `embedding` to keep; None keeps all that the teacher gives."""

    @property
    def maker(self) -> ViewMaker:
        """Renders the views as the teacher is to see them."""
        return ViewMaker(
            self.images, self.index.ids, self.policy, self.seed, self.renderer,
            self.teacher.image_size,
        )  # fmt: skip

    def array_specs(self) -> list[ArraySpec]:
        """The arrays of the cache.

        Raises:
            ConfigError: the teacher does not give what is asked for.
        """
        given = {"feature": self.teacher.feature_dim, "embedding": self.teacher.embedding_dim}
        specs = []
        wanted = [name for name, dim in given.items() if dim is not None]
        for name in wanted if self.arrays is None else dict.fromkeys(self.arrays):
            dim = given[name]
            if dim is None:
                raise ConfigError(
                    f"`{self.teacher.name}` gives no `{name}`",
                    hint="it has no projection head: --arrays feature",
                )
            specs.append(ArraySpec(name, dim, self.dtype))
        return specs


def describe(job: Job) -> dict[str, Any]:
    """The recipe: all that decides what the cache holds, and nothing else.

    Two teams that describe the same thing get the same name. The number of views is not part of
    it, for views can be added; nor are paths, hosts, times, or the number of workers.
    """
    return {
        "teacher": job.teacher.description(),
        "precision": job.precision,
        "batch_size": job.batch_size,
        "images": {
            "fingerprint": dataset_fingerprint(job.images, job.index),
            "num_images": len(job.images),
            "num_classes": len(job.images.classes),
        },
        "views": {
            "policy": job.policy.to_dict(),
            "seed": job.seed,
            "renderer": {"id": job.renderer.id, "version": job.renderer.version},
            "decoder": decoder_description(),
        },
        "arrays": {spec.name: {"dim": spec.dim, "dtype": spec.dtype} for spec in job.array_specs()},
    }
