"""What a step is given: pixels joined to targets and queues, on the device.

Nothing here makes the host wait for a GPU: copies are asked for and go on beside what it computes.
"""

import functools

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kdcache.methods import Batch
from kdcache.recipe import Recipe
from kdcache.shapes import Int64
from kdcache.targets import AllSamples, Queue, QueueSearch, StreamQueue
from kdcache.targets.queue import Keys
from kdcache.train.data import StepPixels
from kdcache.train.lesson import Lesson
from kdcache.train.online import LiveTargets


def build_queues(recipe: Recipe, lesson: Lesson, step: int) -> list[Queue]:
    """The queues of teacher targets as they stand at a step: one, two or none, as the method asks.

    A second one holds another view of the same samples, slot by slot.
    """
    needs, plan = recipe.needs, lesson.plan
    if needs.negatives == 0:
        return []
    position = step * plan.stream.batch_size
    places = [needs.queue_view]
    if needs.second_queue_view is not None:
        places.append(needs.second_queue_view)
    keys = [_keys(lesson, place) for place in places]
    if needs.negatives == "all":
        return [AllSamples(plan.stream, k, position=position) for k in keys]
    return [StreamQueue(plan.stream, needs.negatives, k, position=position) for k in keys]


def build_search(recipe: Recipe, lesson: Lesson, queues: list[Queue]) -> QueueSearch | None:
    """An index of the first queue, if the method asks for one."""
    nprobe = recipe.needs.nprobe
    if not nprobe:
        return None
    queue, *_ = queues
    at_start = queue if queue.position == 0 else build_queues(recipe, lesson, 0)[0]
    return QueueSearch(queue, first=at_start.negatives, nprobe=nprobe, seed=recipe.run.seed)


def _keys(lesson: Lesson, place: int) -> Keys:
    """What a queue asks the (one) teacher for: unit targets of a step's `place`-th view."""
    (targets,) = lesson.targets

    def keys(samples: Int64[np.ndarray, " B"], epochs: Int64[np.ndarray, " B"]) -> Tensor:
        found = torch.empty(len(samples), targets.dim, device=targets.device)
        for epoch in np.unique(epochs):
            here = np.flatnonzero(epochs == epoch)
            view = lesson.plan.schedule.views(int(epoch))[place]
            index = torch.from_numpy(here).to(targets.device, non_blocking=True)
            found[index] = targets.take(samples[here], view)
        return functional.normalize(found, dim=1)

    return keys


def batches(
    recipe: Recipe,
    lesson: Lesson,
    queues: list[Queue],
    search: QueueSearch | None,
    pixels: StepPixels,
    step: int,
    device: torch.device,
) -> list[Batch]:
    """What step `step` shows, on the device: `train.accumulate` parts of a batch.

    The views of an image stand side by side, as they do in the stream of samples, so that a batch
    is in one order whatever the number of processes.
    """
    plan = lesson.plan
    samples, views = plan.samples(step), plan.views(step)
    for targets in lesson.targets:
        if isinstance(targets, LiveTargets):
            targets.look(samples, views, pixels.teacher)
    length = len(samples[0]) // plan.accumulate
    parts = [slice(start, start + length) for start in range(0, len(samples[0]), length)]
    return [
        Batch(
            images=_images(lesson, [view[rows] for view in pixels.student]),
            targets=_targets(lesson, [group[rows] for group in samples], views),
            negatives=queues[0].negatives if queues else None,
            more_negatives=queues[1].negatives if len(queues) > 1 else None,
            own_slots=(
                _own_slots(lesson, queues[0], [group[rows] for group in samples], device)
                if queues and recipe.needs.mask_own
                else None
            ),
            search=search,
            progress=step / plan.stream.steps_per_epoch,
        )
        for rows in parts
    ]


def _images(lesson: Lesson, seen: list[Tensor]) -> list[Tensor]:
    """For each group of images, and each view of an epoch, the views of all of the step's epochs.

    Args:
        seen: for each group, epoch and view that the student looks at, one tensor.
    """
    rendered = lesson.images.rendered
    length = rendered * lesson.stream.repeats
    groups = [seen[start : start + length] for start in range(0, len(seen), length)]
    return [_side_by_side(group[at::rendered]) for group in groups for at in range(rendered)]


def _targets(
    lesson: Lesson, samples: list[Int64[np.ndarray, " B"]], views: list[int]
) -> list[Tensor]:
    """In the order of the images, for each teacher in turn."""
    per_epoch = lesson.plan.schedule.per_step
    return [
        _side_by_side([targets.take(group, view) for view in views[at::per_epoch]])
        for targets in lesson.targets
        for group in samples
        for at in range(per_epoch)
    ]


def _own_slots(
    lesson: Lesson, queue: Queue, samples: list[Int64[np.ndarray, " B"]], device: torch.device
) -> Tensor:
    """Where the queue shows the same image as a row of the batch; its neighbours too, for they are
    no negatives of an image that is shown with them."""
    slots = np.concatenate([queue.own_slots(group) for group in samples], axis=1)
    slots = np.repeat(slots, lesson.stream.repeats, axis=0)
    return torch.from_numpy(slots).to(device, non_blocking=True)


def _side_by_side(parts: list[Tensor]) -> Tensor:
    """The first row of each part, then the second of each, and so on."""
    return parts[0] if len(parts) == 1 else torch.stack(parts, dim=1).flatten(0, 1)


def on_device(pixels: StepPixels, device: torch.device) -> StepPixels:
    """Copied beside what the GPU still computes of the step before, without waiting for it."""
    if device.type != "cuda":
        return pixels
    beside = _copying(device)
    with torch.cuda.stream(beside):
        moved = StepPixels(*([v.to(device, non_blocking=True) for v in some] for some in pixels))
    computing = torch.cuda.current_stream(device)
    computing.wait_stream(beside)
    for view in [*moved.student, *moved.teacher]:
        view.record_stream(computing)  # its memory is in use there, until that is done
    return moved


@functools.cache
def _copying(device: torch.device) -> torch.cuda.Stream:
    """The stream of copies to a GPU."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
