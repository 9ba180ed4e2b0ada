"""The lesson: one loop that reads from top to bottom."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from kdcache import distributed
from kdcache.errors import KdcacheError, TrainingError, WorkerKilled
from kdcache.methods import Batch, Loss
from kdcache.networks import Backbone
from kdcache.optimisation import learning_rate
from kdcache.precision import autocast
from kdcache.progress import Progress, silent
from kdcache.recipe import Recipe
from kdcache.targets import Queue, QueueSearch, TargetTable
from kdcache.train.batches import batches, build_queues, build_search, on_device
from kdcache.train.checkpoint import State, save_checkpoint
from kdcache.train.data import StepPixels
from kdcache.train.lesson import Lesson
from kdcache.train.log import MetricsLog, open_log
from kdcache.train.recent import Recent
from kdcache.train.stop import Stop, stop_signals
from kdcache.workers import render_ahead


@runtime_checkable
class Watch(Protocol):
    """Examines the student at some epochs; `kdcache.evals.watch` makes one."""

    @property
    def every(self) -> int:
        """Epochs from one time to the next; the last epoch is always one."""

    def __call__(self, student: Backbone, epoch: int) -> dict[str, float]:
        """What goes into the log, under `eval/...`; all processes call it."""


@dataclass(frozen=True)
class Learner:
    """One student, and all that its steps take; made by `open_learner`."""

    recipe: Recipe
    lesson: Lesson
    state: State
    queues: list[Queue]
    """As they stand at the state's step."""
    search: QueueSearch | None
    run: Path
    """The folder that gets checkpoints and metrics."""
    log: MetricsLog | None
    recent: Recent

    @property
    def last(self) -> int:
        """Steps of the whole run."""
        return self.recipe.train.epochs * self.lesson.stream.steps_per_epoch


@contextmanager
def open_learner(recipe: Recipe, lesson: Lesson, state: State, run: Path) -> Iterator[Learner]:
    """A student that goes on from the state's step; its log is open inside.

    Args:
        state: new or from a checkpoint; the student and the method on the device.
    """
    queues = build_queues(recipe, lesson, state.step)
    search = build_search(recipe, lesson, queues)
    with open_log(run, step=state.step) as log:
        yield Learner(recipe, lesson, state, queues, search, run, log, Recent(run, state))


def train(
    learners: Sequence[Learner],
    *,
    device: torch.device,
    workers: int,
    watch: Watch | None = None,
    progress: Progress = silent,
) -> int:
    """Train students side by side, from the step of the one that is behind to the last epoch.

    All are shown the same images (`sharing.refuse_unlike`), which are rendered once; one that is
    ahead of the others, as after a kill between two checkpoints, waits for them.

    Args:
        watch: examines the students now and then, and changes nothing of them.
        progress: told of images.

    Returns:
        0 when the last epoch is done; else the number of the signal, to any of the processes, that
        stopped it before (SIGINT or SIGTERM: the step is finished and checkpoints are written).

    Raises:
        TrainingError: a loss or a gradient is not finite, or another process is gone.
        DataError: an image is missing or has changed.
    """
    first = learners[0]
    plan, last = first.lesson.plan, first.last
    step, saved = min(learner.state.step for learner in learners), time.monotonic()
    with stop_signals() as stop:
        rendered = render_ahead(
            first.lesson.images, range(step, last), workers=workers, pin=device.type == "cuda"
        )
        while True:
            pixels, trouble = _next(rendered, stop) if step < last else (None, None)
            due = time.monotonic() - saved >= first.recipe.run.checkpoint_every_s
            said = distributed.largest(_urgent(trouble, stop, due=due))
            if said:  # all processes at one step, or none
                for learner in learners:
                    _keep(learner)
                saved = time.monotonic()
            if said > _DUE:
                return _stopped(said, trouble)
            present = [learner for learner in learners if learner.state.step == step]
            if watch is not None:
                for learner in present:
                    _watch(watch, learner)
            if pixels is None:
                return 0
            here = on_device(pixels, device)
            for learner in present:
                learn(learner, here, device)
            progress(plan.stream.batch_size)
            step += 1


_DUE, _FAILED = 1, 1000
"""What a process may say before a step; between the two are the numbers of signals."""


def _urgent(trouble: Exception | None, stop: Stop, *, due: bool) -> int:
    return _FAILED if trouble else stop.number or (_DUE if due else 0)


def _stopped(said: int, trouble: Exception | None) -> int:
    """The number of the signal, if it was one."""
    if said != _FAILED:
        return said
    raise trouble or TrainingError(
        "another process of this run has failed",
        hint="do what it says; the same command goes on from the last checkpoint",
    )


def _next(rendered: Iterator[StepPixels], stop: Stop) -> tuple[StepPixels | None, Exception | None]:
    """The next step's views, or why there are none, of which the other processes must know.

    A signal to the whole process group takes the workers as well; then there is nothing to wait
    for, and nothing wrong.
    """
    if stop.number:
        return None, None
    try:
        return next(rendered), None
    except WorkerKilled as error:
        # The signal that took them may be on its way here.
        return None, None if stop.wait(1.0) else error
    except (KdcacheError, OSError) as error:
        return None, error


def learn(learner: Learner, pixels: StepPixels, device: torch.device) -> None:
    """One step of one student: learn, let the queues go on, write the log."""
    recipe, lesson, state = learner.recipe, learner.lesson, learner.state
    steps_per_epoch, last = lesson.stream.steps_per_epoch, learner.last
    lr = learning_rate(recipe.train, state.step, steps_per_epoch)
    parts = batches(recipe, lesson, learner.queues, learner.search, pixels, state.step, device)
    _expect_next(lesson, state.step, last)
    with state.own_random():
        loss, figures, norm = _step(recipe, state, parts, lr, lesson.plan.share.weight, device)
    state.step += 1
    for queue in learner.queues:
        queue.push(lesson.stream.batch_size)
    learner.recent.add(loss, norm, figures)
    if state.step % recipe.run.log_every == 0:
        _write(learner)
    if state.step == last:
        _keep(learner)


def _write(learner: Learner) -> None:
    """The mean loss since the last line of the log, as a line of its own."""
    stream, step = learner.lesson.stream, learner.state.step
    lr = learner.state.optimizer.param_groups[0]["lr"]
    values = learner.recent.summary(stream.batch_size)
    if learner.log is not None:
        learner.log.write(step, {"epoch": step / stream.steps_per_epoch, "lr": lr, **values})


def _keep(learner: Learner) -> None:
    """Write a checkpoint, if there is something new; the log has a line for it."""
    if learner.recent:
        _write(learner)
    if learner.recent.unsaved:
        # All processes have the same state; the first one writes it.
        if distributed.is_first():
            save_checkpoint(learner.run, learner.state)
        learner.recent.unsaved = False


def _expect_next(lesson: Lesson, step: int, last: int) -> None:
    """Let what comes after this epoch be fetched while it trains, if it is far away."""
    stream = lesson.stream
    following = (stream.turn(step) + 1) * stream.repeats * stream.steps_per_epoch
    if following >= last:
        return
    for targets in lesson.targets:
        if isinstance(targets, TargetTable):
            for view in lesson.plan.views(following):
                targets.expect(view)


def _watch(watch: Watch, learner: Learner) -> None:
    """Examine the student if this is the end of an epoch where that is due, and not yet done.

    Its record is its own: those of the loss are the same, with and without it.
    """
    state, log = learner.state, learner.log
    epoch, rest = divmod(state.step, learner.lesson.stream.steps_per_epoch)
    due = epoch % watch.every == 0 or epoch == learner.recipe.train.epochs
    if rest or not epoch or not due:
        return
    if distributed.any_rank(log is not None and state.step in log.watched):
        return
    started = time.monotonic()
    found = watch(state.student, epoch)
    if log is not None:
        log.write(state.step, {"epoch": float(epoch), **found})
    learner.recent.leave_out(time.monotonic() - started)


def _step(
    recipe: Recipe,
    state: State,
    parts: Sequence[Batch],
    lr: float,
    weight: float,
    device: torch.device,
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """One optimiser step: its loss, the method's own figures, and the norm of the gradient.

    Args:
        parts: of the step's batch, equally long; mostly one.
        weight: of this process's mean in that of all processes.
    """
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    state.optimizer.zero_grad(set_to_none=True)
    weight = weight / len(parts)
    losses = []
    for batch in parts:
        with autocast(recipe.run.precision, device), distributed.whole_batch_norm():
            loss = state.method(state.student, batch)
        state.scaler.scale(loss.value * weight).backward()
        losses.append(Loss(loss.value.detach(), loss.parts))
    distributed.mean_gradients(_trained(state))
    state.scaler.unscale_(state.optimizer)
    limit = recipe.run.clip_gradient or math.inf
    norm = torch.nn.utils.clip_grad_norm_(_trained(state), limit)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.method.finish_step(state.student)
    figures = {
        name: torch.stack([loss.parts[name] for loss in losses]).sum(0) * weight
        for name in losses[0].parts
    }
    return torch.stack([loss.value for loss in losses]).sum(0) * weight, figures, norm


def _trained(state: State) -> list[nn.Parameter]:
    return [p for group in state.optimizer.param_groups for p in group["params"]]
