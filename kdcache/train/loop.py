"""The lesson: one loop that reads from top to bottom."""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdcache.errors import TrainingError, WorkerKilled
from kdcache.methods import Batch
from kdcache.optimisation import learning_rate
from kdcache.precision import autocast
from kdcache.progress import Progress, silent
from kdcache.recipe import Recipe
from kdcache.targets import SampleStream, StreamQueue, TargetTable
from kdcache.train.checkpoint import CHECKPOINT, State, save_checkpoint
from kdcache.train.data import StepImages
from kdcache.train.log import MetricsLog
from kdcache.workers import render_ahead


@dataclass(frozen=True)
class Lesson:
    """What a run learns from: rendered views, and what the teacher said of them."""

    images: StepImages
    targets: TargetTable | None
    """None for a method without a teacher."""

    @property
    def stream(self) -> SampleStream:
        """The order of the samples."""
        return self.images.stream


def train(
    recipe: Recipe,
    lesson: Lesson,
    state: State,
    run: Path,
    *,
    device: torch.device,
    workers: int,
    progress: Progress = silent,
) -> bool:
    """Train from the state's step until the recipe's last epoch.

    Args:
        state: new or from a checkpoint; the student and the method on `device`.
        run: the folder that gets checkpoints and metrics.
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
    queue = _build_queue(recipe, lesson, state)
    recent = _Recent(run, state)
    saved, saved_step = time.monotonic(), state.step
    steps, pin = range(state.step, last), device.type == "cuda"
    with MetricsLog(run, step=state.step) as log, _stop_signals() as stop:
        rendered = render_ahead(lesson.images, steps, workers=workers, pin=pin)
        for images in _until_stopped(rendered, stop):
            lr = learning_rate(recipe.train, state.step, stream.steps_per_epoch)
            batch = _batch(lesson, queue, images, state.step, device)
            loss, parts, norm = _step(recipe, state, batch, lr, device)
            state.step += 1
            if queue is not None:
                queue.push(stream.batch_size)
            recent.add(loss, norm, parts)
            progress(stream.batch_size)

            due = time.monotonic() - saved >= recipe.run.checkpoint_every_s
            ends = due or stop.is_set() or state.step == last
            if state.step % recipe.run.log_every == 0 or ends:
                epoch = state.step / stream.steps_per_epoch
                values = recent.summary(stream.batch_size)
                log.write(state.step, {"epoch": epoch, "lr": lr, **values})
            if ends:
                save_checkpoint(run, state)
                saved, saved_step = time.monotonic(), state.step
        if state.step > saved_step:  # a signal came while the loop waited for images
            recent.check()
            save_checkpoint(run, state)
    return state.step == last


def _step(
    recipe: Recipe, state: State, batch: Batch, lr: float, device: torch.device
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """One optimiser step: its loss, the method's own figures, and the norm of the gradient."""
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    with autocast(recipe.run.precision, device):
        loss = state.method(state.student, batch)
    state.optimizer.zero_grad(set_to_none=True)
    state.scaler.scale(loss.value).backward()
    state.scaler.unscale_(state.optimizer)
    limit = recipe.run.clip_gradient or math.inf
    norm = torch.nn.utils.clip_grad_norm_(_trained(state), limit)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.method.finish_step(state.student)
    return loss.value.detach(), loss.parts, norm


def _trained(state: State) -> list[Tensor]:
    return [p for group in state.optimizer.param_groups for p in group["params"]]


def _build_queue(recipe: Recipe, lesson: Lesson, state: State) -> StreamQueue | None:
    """The queue as it stands at the state's step, if the method asks for one."""
    needs = recipe.needs
    targets = lesson.targets
    if needs.negatives == 0 or targets is None:
        return None

    def keys(samples: np.ndarray, epochs: np.ndarray) -> Tensor:
        found = torch.empty(len(samples), targets.dim, device=targets.device)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            view = lesson.images.schedule.views(int(epoch))[0]
            found[torch.from_numpy(here).to(targets.device)] = targets.take(samples[here], view)
        return torch.nn.functional.normalize(found, dim=1)

    position = state.step * lesson.stream.batch_size
    return StreamQueue(lesson.stream, needs.negatives, keys, position=position)


def _batch(
    lesson: Lesson,
    queue: StreamQueue | None,
    images: list[Tensor],
    step: int,
    device: torch.device,
) -> Batch:
    """What step `step` shows, on the device."""
    samples = lesson.stream.batch(step)
    views = lesson.images.schedule.views(step // lesson.stream.steps_per_epoch)
    targets = lesson.targets
    own = torch.from_numpy(queue.own_slots(samples)).to(device) if queue is not None else None
    return Batch(
        images=[view.to(device, non_blocking=True) for view in images],
        targets=[targets.take(samples, view) for view in views] if targets is not None else [],
        negatives=queue.negatives if queue is not None else None,
        own_slots=own,
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

    def summary(self, batch_size: int) -> dict[str, float]:
        """Mean loss and rate since the last call; the last step's gradient norm and parts."""
        losses, norms = self.check()
        now = time.monotonic()
        values = {"loss": sum(losses) / len(losses), "gradient_norm": norms[-1]}
        values |= {name: float(value) for name, value in self._parts.items()}
        values["images_per_s"] = len(losses) * batch_size / max(now - self._since, 1e-9)
        self._first += len(losses)
        self._losses, self._norms, self._since = [], [], now
        return values

    def check(self) -> tuple[list[float], list[float]]:
        """The losses and gradient norms since the last summary, all finite."""
        losses = [float(loss) for loss in self._losses]
        norms = [float(norm) for norm in self._norms]
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


def _until_stopped(
    rendered: Iterator[list[Tensor]], stop: threading.Event
) -> Iterator[list[Tensor]]:
    """The same items until `stop` is set.

    A signal to the whole process group takes the workers as well; then there is nothing to wait
    for, and nothing wrong.
    """
    while not stop.is_set():
        try:
            item = next(rendered, None)
        except WorkerKilled:
            if stop.is_set():
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
