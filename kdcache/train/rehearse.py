"""A rehearsal: some steps of a recipe by the real loop, on made-up pixels and targets.

What is timed is what a step costs the process that trains: nothing is decoded, rendered or read.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from kdcache.methods import TeacherSide
from kdcache.recipe import Recipe, settle_precision
from kdcache.shapes import Float, Int64, UInt8
from kdcache.targets import SampleStream
from kdcache.train.data import Plan, StepImages, StepPixels, ViewSchedule
from kdcache.train.lesson import Lesson
from kdcache.train.log import read_metrics
from kdcache.train.loop import open_learner, train
from kdcache.train.run import build_state
from kdcache.views import ViewMaker

_ROWS = 4096
"""Different targets; more would change nothing of the time."""


def rehearse(
    recipe: Recipe,
    maker: ViewMaker,
    teachers: Sequence[TeacherSide],
    *,
    num_samples: int,
    steps: int,
    device: torch.device,
) -> float:
    """Seconds of a step, the mean of `steps` of them after as many that warm up.

    Args:
        maker: of the student's views; asked for their sides alone.
        num_samples: images of the run; they decide how often a queue holds an image.
    """
    once = {"epochs": 1, "warmup_epochs": 0}
    recipe = Recipe(
        recipe.method,
        recipe.method_config,
        recipe.student,
        recipe.train.model_copy(update=once),
        recipe.run.model_copy(update={"log_every": steps, "checkpoint_every_s": math.inf}),
    )
    recipe = settle_precision(recipe, device)
    lesson = _made_up(recipe, maker, teachers, num_samples, steps, device)
    state = build_state(recipe, lesson, device)
    state.step = lesson.stream.steps_per_epoch - 2 * steps
    with TemporaryDirectory(prefix="kdcache-rehearsal-") as folder:
        run = Path(folder)
        with open_learner(recipe, lesson, state, run) as learner:
            if train([learner], device=device, workers=0):
                raise KeyboardInterrupt
        rate: float = read_metrics(run)[-1]["images_per_s"]
    return recipe.train.batch_size / rate


def _made_up(
    recipe: Recipe,
    maker: ViewMaker,
    teachers: Sequence[TeacherSide],
    num_samples: int,
    steps: int,
    device: torch.device,
) -> Lesson:
    needs, batch = recipe.needs, recipe.train.batch_size
    # Whole stretches between two lines of the log, so that the last one is `steps` long.
    whole = batch * steps
    stream = SampleStream(whole * max(2, num_samples // whole), batch, recipe.run.seed)
    random = np.random.default_rng(0)
    graph = None
    if needs.neighbours:
        shape = (stream.num_samples, needs.neighbours)
        graph = random.integers(0, stream.num_samples, shape)
    plan = Plan(stream, ViewSchedule(needs.views, None), graph, needs.neighbours)
    rendered = needs.views if needs.rendered is None else needs.rendered
    sides = [maker.policy.side(view, maker.size) for view in range(rendered)]
    pixels: list[UInt8[Tensor, "B _ _ 3"]] = [
        torch.from_numpy(random.integers(0, 256, (batch, side, side, 3), np.uint8))
        for _ in range(1 + needs.neighbours)
        for side in sides
    ]
    rows = np.arange(stream.num_samples)
    images = _Still(maker, plan, rows, rendered, still=StepPixels(pixels, []))
    targets = [_MadeUpTargets(side.dim, device) for side in teachers]
    return Lesson(images, list(targets), [rows] * len(targets), [side.head for side in teachers])


@dataclass(frozen=True)
class _Still(StepImages):
    """The same pixels at every step."""

    still: StepPixels | None = None

    def __getitem__(self, step: int) -> StepPixels:
        """The pixels, whatever the step."""
        assert self.still is not None
        return self.still


class _MadeUpTargets:
    """Rows drawn at random, looked up as those of a slab are."""

    def __init__(self, dim: int, device: torch.device) -> None:
        self.dim = dim
        self.device = device
        self._rows = torch.randn(_ROWS, dim, generator=torch.Generator().manual_seed(0)).to(device)

    def take(self, samples: Int64[np.ndarray, " B"], view: int) -> Float[Tensor, "B D"]:
        """Targets of `samples`, whatever the view."""
        return self._rows[torch.from_numpy(samples % _ROWS).to(self.device)]
