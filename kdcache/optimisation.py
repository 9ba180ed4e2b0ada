"""How a student is optimised: the settings, and the learning rate as a function of the step."""

import math
from typing import Literal

from pydantic import Field

from kdcache.settings import Settings


class Optimisation(Settings):
    """SGD with momentum; each method brings the values of its paper."""

    epochs: int = Field(default=200, ge=1)
    """Times every image is shown."""
    batch_size: int = Field(default=256, ge=1)
    """Images a step, over all processes."""
    lr: float = Field(default=0.03, gt=0)
    """Peak learning rate."""
    lr_per_256: bool = False
    """Multiply the learning rate by batch_size / 256 (SEED does, the others do not)."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of SGD."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """L2 penalty on every parameter, norms and biases included, as all four papers have it."""
    schedule: Literal["cosine", "step"] = "cosine"
    """`cosine`: to zero over the run; `step`: times `decay` after each epoch in `milestones`."""
    milestones: list[int] = Field(default_factory=list)
    """Epochs after which `step` lowers the learning rate."""
    decay: float = Field(default=0.1, gt=0, le=1)
    """Factor of one step of the schedule `step`."""
    warmup_epochs: int = Field(default=0, ge=0)
    """Epochs over which the learning rate rises linearly from zero."""
    first_epoch: int = Field(default=0, ge=0, le=1)
    """The first epoch's number on the cosine. SimReg's code counts from 1: its last epoch idles."""
    per_step: bool = False
    """Move along the schedule at every step; the papers move once an epoch."""


def learning_rate(settings: Optimisation, step: int, steps_per_epoch: int) -> float:
    """The learning rate of optimiser step `step` (from 0)."""
    peak = settings.lr * (settings.batch_size / 256 if settings.lr_per_256 else 1.0)
    epoch = step / steps_per_epoch
    if epoch < settings.warmup_epochs:
        return peak * (step + 1) / (settings.warmup_epochs * steps_per_epoch)
    if not settings.per_step:
        epoch = math.floor(epoch)
    if settings.schedule == "step":
        return peak * settings.decay ** sum(epoch >= m for m in settings.milestones)
    turn = math.pi * (epoch + settings.first_epoch) / settings.epochs
    return peak * 0.5 * (1.0 + math.cos(turn))
