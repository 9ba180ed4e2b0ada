"""The lesson: one loop that reads from top to bottom."""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from kdcache import distributed
from kdcache.errors import TrainingError, WorkerKilled
from kdcache.methods import Batch
from kdcache.networks import Backbone
from kdcache.optimisation import learning_rate
from kdcache.precision import autocast
from kdcache.progress import Progress, silent
from kdcache.recipe import Recipe
from kdcache.shapes import Int64
from kdcache.targets import AllSamples, Queue, QueueSearch, StreamQueue, TargetTable
from kdcache.targets.queue import Keys
from kdcache.train.checkpoint import CHECKPOINT, State, save_checkpoint
from kdcache.train.data import StepPixels
from kdcache.train.lesson import Lesson
from kdcache.train.log import MetricsLog, open_log
from kdcache.train.online import LiveTargets
from kdcache.workers import render_ahead


@runtime_checkable
class Watch(Protocol):
    """Examines the student at some epochs; `kdcache.evals.watch` makes one."""

    @property
    def every(self) -> int:
        """Epochs from one time to the next; the last epoch is always one."""

    def __call__(self, student: Backbone, epoch: int) -> dict[str, float]:
        """What goes into the log, under `eval/...`; all processes call it."""


def train(
    recipe: Recipe,
    lesson: Lesson,
    state: State,
    queues: list[Queue],
    run: Path,
    *,
    device: torch.device,
    workers: int,
    watch: Watch | None = None,
    progress: Progress = silent,
) -> bool:
    """Train from the state's step until the recipe's last epoch.

    Args:
        state: new or from a checkpoint; the student and the method on `device`.
        queues: as they stand at the state's step.
        run: the folder that gets checkpoints and metrics.
        watch: examines the student now and then, and changes nothing of it.
        progress: told of images.

    Returns:
        True when the last epoch is done; False when a signal stopped the run before (SIGINT or
        SIGTERM: the step is finished and a checkpoint written).

    Raises:
        TrainingError: a loss or a gradient is not finite.
        DataError: an image is missing or has changed.
    """
    stream = lesson.stream
    last = recipe.train.epochs * stream.steps_per_epoch
    search = _build_search(recipe, lesson, queues)
    recent = _Recent(run, state)
    saved, saved_step = time.monotonic(), state.step
    steps, pin = range(state.step, last), device.type == "cuda"
    with open_log(run, step=state.step) as log, _stop_signals() as stop:
        if watch is not None:  # what an interrupted run still owes
            _watch(watch, recipe, lesson, state, log)
        rendered = render_ahead(lesson.images, steps, workers=workers, pin=pin)
        for pixels in _until_stopped(rendered, stop):
            lr = learning_rate(recipe.train, state.step, stream.steps_per_epoch)
            batch = _batch(recipe, lesson, queues, search, pixels, state.step, device)
            _expect_next(lesson, state.step, last)
            loss, parts, norm = _step(recipe, state, batch, lr, device)
            state.step += 1
            for queue in queues:
                queue.push(stream.batch_size)
            recent.add(loss, norm, parts)
            progress(stream.batch_size)

            due = time.monotonic() - saved >= recipe.run.checkpoint_every_s
            stops = distributed.any_rank(stop.is_set())  # all at one step, or none
            ends = distributed.any_rank(due) or stops or state.step == last
            if state.step % recipe.run.log_every == 0 or ends:
                epoch = state.step / stream.steps_per_epoch
                values = recent.summary(stream.batch_size)
                if log is not None:
                    log.write(state.step, {"epoch": epoch, "lr": lr, **values})
            if ends:
                _save(run, state)
                saved, saved_step = time.monotonic(), state.step
            if stops:
                break
            if watch is not None:
                started = time.monotonic()
                _watch(watch, recipe, lesson, state, log)
                recent.leave_out(time.monotonic() - started)
        if state.step > saved_step:  # a signal came while the loop waited for images
            recent.check()
            _save(run, state)
    return state.step == last


def _expect_next(lesson: Lesson, step: int, last: int) -> None:
    """Let what the next epoch looks up be fetched while this one trains, if it is far away."""
    plan = lesson.plan
    following = (plan.epoch(step) + 1) * plan.stream.steps_per_epoch
    if following >= last:
        return
    for targets in lesson.targets:
        if isinstance(targets, TargetTable):
            for view in plan.views(following):
                targets.expect(view)


def _watch(
    watch: Watch, recipe: Recipe, lesson: Lesson, state: State, log: MetricsLog | None
) -> None:
    """Examine the student if this is the end of an epoch where that is due, and not yet done.

    Its record is its own: those of the loss are the same, with and without it.
    """
    epoch, rest = divmod(state.step, lesson.stream.steps_per_epoch)
    due = epoch % watch.every == 0 or epoch == recipe.train.epochs
    if rest or not epoch or not due:
        return
    if distributed.any_rank(log is not None and state.step in log.watched):
        return
    found = watch(state.student, epoch)
    if log is not None:
        log.write(state.step, {"epoch": float(epoch), **found})


def _save(run: Path, state: State) -> None:
    """All processes have the same state; the first one writes it."""
    if distributed.is_first():
        save_checkpoint(run, state)


def _step(
    recipe: Recipe, state: State, batch: Batch, lr: float, device: torch.device
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """One optimiser step: its loss, the method's own figures, and the norm of the gradient."""
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    with autocast(recipe.run.precision, device), distributed.whole_batch_norm():
        loss = state.method(state.student, batch)
    state.optimizer.zero_grad(set_to_none=True)
    state.scaler.scale(loss.value).backward()
    distributed.mean_gradients(_trained(state))
    state.scaler.unscale_(state.optimizer)
    limit = recipe.run.clip_gradient or math.inf
    norm = torch.nn.utils.clip_grad_norm_(_trained(state), limit)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.method.finish_step(state.student)
    return loss.value.detach(), loss.parts, norm


def _trained(state: State) -> list[nn.Parameter]:
    return [p for group in state.optimizer.param_groups for p in group["params"]]


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


def _build_search(recipe: Recipe, lesson: Lesson, queues: list[Queue]) -> QueueSearch | None:
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
            here = epochs == epoch
            view = lesson.plan.schedule.views(int(epoch))[place]
            found[torch.from_numpy(here).to(targets.device)] = targets.take(samples[here], view)
        return functional.normalize(found, dim=1)

    return keys


def _batch(
    recipe: Recipe,
    lesson: Lesson,
    queues: list[Queue],
    search: QueueSearch | None,
    pixels: StepPixels,
    step: int,
    device: torch.device,
) -> Batch:
    """What step `step` shows, on the device."""
    plan = lesson.plan
    samples, views = plan.samples(step), plan.views(step)
    for targets in lesson.targets:
        if isinstance(targets, LiveTargets):
            targets.look(samples, views, pixels.teacher)
    own = None
    if queues and recipe.needs.mask_own:
        # Those of its neighbours too: they are no negatives of an image that is shown with them.
        slots = [queues[0].own_slots(group) for group in samples]
        own = torch.from_numpy(np.concatenate(slots, axis=1)).to(device)
    return Batch(
        images=[view.to(device, non_blocking=True) for view in pixels.student],
        targets=[
            targets.take(group, view)
            for targets in lesson.targets
            for group in samples
            for view in views
        ],
        negatives=queues[0].negatives if queues else None,
        more_negatives=queues[1].negatives if len(queues) > 1 else None,
        own_slots=own,
        search=search,
        progress=step / plan.stream.steps_per_epoch,
    )


class _Recent:
    """Losses and gradients since the last line of the log, on the device until it is written.

    So no step waits for the device, and a value that is not finite is still found, with its step,
    before anything is saved.
    """

    def __init__(self, run: Path, state: State) -> None:
        self._run = run
        self._first = state.step
        # Under fp16 gradients overflow now and then; the scaler leaves those steps out.
        self._scaled = state.scaler.is_enabled()
        self._losses: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._parts: dict[str, Tensor] = {}
        self._since = time.monotonic()

    def add(self, loss: Tensor, norm: Tensor, parts: dict[str, Tensor]) -> None:
        self._losses.append(loss)
        self._norms.append(norm)
        self._parts = parts

    def leave_out(self, seconds: float) -> None:
        """Take time that was not spent on training out of the rate."""
        self._since += seconds

    def summary(self, batch_size: int) -> dict[str, float]:
        """Mean loss and rate since the last call; the last step's gradient norm and parts."""
        losses, norms = self.check()
        now = time.monotonic()
        values = {"loss": sum(losses) / len(losses), "gradient_norm": norms[-1]}
        parts = {name: distributed.mean_scalars(value) for name, value in self._parts.items()}
        values |= {name: float(value) for name, value in parts.items()}
        values["images_per_s"] = len(losses) * batch_size / max(now - self._since, 1e-9)
        self._first += len(losses)
        self._losses, self._norms, self._since = [], [], now
        return values

    def check(self) -> tuple[list[float], list[float]]:
        """The losses and gradient norms since the last summary, all finite."""
        if not self._losses:
            return [], []
        losses = distributed.mean_scalars(torch.stack(self._losses)).tolist()
        norms = torch.stack(self._norms).tolist()
        for at, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
            if not math.isfinite(loss):
                self._refuse(self._first + at, f"the loss is {loss}")
            if not math.isfinite(norm) and not self._scaled:
                self._refuse(self._first + at, f"the gradient's norm is {norm}")
        return losses, norms

    def _refuse(self, step: int, found: str) -> None:
        good = (
            f"the checkpoint in `{self._run}` is from before it"
            if (self._run / CHECKPOINT).exists()
            else "no checkpoint was written before it"
        )
        raise TrainingError(
            f"at step {step} {found}; {good}",
            hint="begin anew with another --out and a smaller --set train.lr=..., with "
            "--set run.clip_gradient=1.0, or with --set run.precision=fp32",
        )


def _until_stopped(rendered: Iterator[StepPixels], stop: threading.Event) -> Iterator[StepPixels]:
    """The same items until `stop` is set.

    A signal to the whole process group takes the workers as well; then there is nothing to wait
    for, and nothing wrong.
    """
    while not stop.is_set():
        try:
            item = next(rendered, None)
        except WorkerKilled:
            if stop.wait(1.0):  # the signal that took them may be on its way here
                return
            raise
        if item is None:
            return
        yield item


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set; a second SIGINT interrupts at once.

    Signals reach the main thread only; elsewhere the event is never set.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, _: object) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
