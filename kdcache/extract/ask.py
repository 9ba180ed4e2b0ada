"""Asking the teacher: a batch goes to its device, and what it says is fetched when it is needed.

On a GPU nothing here waits: copies run beside the computation of the batch before, through
page-locked memory, and the answers of one batch are fetched while the next one is computed. On a
CPU the same calls are done when they return.

*Source:* PyTorch's tutorial on `pin_memory` and `non_blocking` for which copies may overlap.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kdcache.extract.job import Job
from kdcache.precision import autocast
from kdcache.shapes import Float, UInt8


class Asked:
    """A batch that the teacher has been shown; made by `ask`."""

    def __init__(self, answers: dict[str, Tensor], marks: Sequence[Any]) -> None:
        """
        Args:
            answers: on the CPU; of a GPU, not yet there.
            marks: of the times before the copy, before the teacher and after it.
        """
        self._answers = answers
        self._marks = marks

    def answers(self) -> dict[str, Float[Tensor, "M _"]]:
        """`feature` and `embedding`, those that the teacher gives, in float32 on the CPU."""
        _wait_for(self._marks[-1])
        return self._answers

    def seconds(self) -> tuple[float, float]:
        """For the copy and for the teacher, once the answers are there."""
        before, copied, said = self._marks
        return _between(before, copied), _between(copied, said)


def ask(job: Job, images: Sequence[UInt8[Tensor, "_ S S 3"]], device: torch.device) -> Asked:
    """Show the teacher at most a batch of views of one side.

    It is always shown a whole batch, filled up with black views: the number of views in a batch
    can decide last bits, their places and their company were not seen to.

    Args:
        images: the batch, in parts as they were rendered.
    """
    count = sum(map(len, images))
    assert count <= job.batch_size
    before = _mark(device)
    batch = images[0].new_zeros((job.batch_size, *images[0].shape[1:]), device=device)
    start = 0
    for part in images:
        batch[start : start + len(part)].copy_(part, non_blocking=True)
        start += len(part)
    copied = _mark(device)
    with torch.inference_mode(), autocast(job.precision, device):
        said = job.teacher(batch)
    answers = {
        name: _fetched(values[:count].float())
        for name, values in zip(("feature", "embedding"), said, strict=True)
        if values is not None
    }
    return Asked(answers, (before, copied, _mark(device)))


def hear(
    job: Job, images: UInt8[Tensor, "M S S 3"], device: torch.device
) -> dict[str, Float[Tensor, "M _"]]:
    """What the teacher says of at most a batch of views of one side: float32 on the CPU."""
    return ask(job, [images], device).answers()


def _fetched(values: Float[Tensor, "M D"]) -> Float[Tensor, "M D"]:
    """The values on the CPU; of a GPU, they are there when its work so far is done."""
    if values.device.type != "cuda":
        return values.cpu()
    here = torch.empty_like(values, device="cpu", pin_memory=True)
    return here.copy_(values, non_blocking=True)


def _mark(device: torch.device) -> Any:
    """Now, by the clock of the device."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _wait_for(mark: Any) -> None:
    if isinstance(mark, torch.cuda.Event):
        mark.synchronize()


def _between(start: Any, end: Any) -> float:
    """Seconds."""
    if isinstance(start, torch.cuda.Event):
        return float(start.elapsed_time(end)) / 1e3
    return float(end - start)
