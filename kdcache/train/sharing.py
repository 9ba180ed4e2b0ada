"""May several runs share what is rendered? Only where each would be shown the same, step by step.

*Source* of the idea: Shen and Xing, FKD, ECCV 2022, arXiv:2112.01528, and Simeoni et al., DINOv3,
arXiv:2508.10104, which distils several students at once from one pass.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from kdcache.errors import ConfigError
from kdcache.recipe import Recipe
from kdcache.train.lesson import Lesson


def refuse_unlike(recipes: Sequence[Recipe], lessons: Sequence[Lesson]) -> None:
    """Refuse runs that would not be shown the same views of the same images at every step.

    Raises:
        ConfigError: what differs, and between which.
    """
    first = dict(_shown(recipes[0], lessons[0]))
    for recipe, lesson in zip(recipes[1:], lessons[1:], strict=True):
        for name, here in _shown(recipe, lesson):
            if not _same(first[name], here):
                raise ConfigError(
                    f"`{recipes[0].method}` and `{recipe.method}` cannot share their views: "
                    f"`{name}` differs{_words(first[name], here)}",
                    hint="train them one after the other, or set the same for both",
                )
        if any(alike.images.teacher_maker is not None for alike in (lessons[0], lesson)):
            raise ConfigError(
                "--online asks the teacher of one student, but several are to be trained",
                hint="leave --online out, or give one recipe",
            )


def _shown(recipe: Recipe, lesson: Lesson) -> Iterator[tuple[str, Any]]:
    """All that decides which views a step renders, by the name that a user knows it by."""
    plan, maker = lesson.plan, lesson.images.maker
    yield "train.batch_size", plan.stream.batch_size
    yield "train.epochs", recipe.train.epochs
    yield "train.repeats", plan.stream.repeats
    yield "train.accumulate", plan.accumulate
    yield "run.seed", plan.stream.seed
    yield "student.image_size", maker.size
    yield "policy of the views", maker.policy
    yield "seed of the views", maker.seed
    yield "renderer of the views", (maker.renderer.id, maker.renderer.version)
    yield "views in a step", (plan.schedule.per_step, lesson.images.rendered)
    yield "views shown in turn", plan.schedule.num_cached
    yield "neighbours in a step", plan.num_neighbours
    yield "images", maker.ids[lesson.images.rows]
    yield "graph of neighbours", plan.graph


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return np.array_equal(one, other)
    return bool(one == other)


def _words(one: Any, other: Any) -> str:
    """The two values, where they are short."""
    if not all(isinstance(value, int | tuple) for value in (one, other)):
        return ""
    return f": {one} and {other}"
