"""What the steps since the last line of the log have found."""

import math
import time
from pathlib import Path

import torch
from torch import Tensor

from kdcache import distributed
from kdcache.errors import TrainingError
from kdcache.train.checkpoint import CHECKPOINT, State


class Recent:
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
        self.unsaved = False
        """Whether steps have been taken since the last checkpoint."""

    def __bool__(self) -> bool:
        """Whether there is something for the log."""
        return bool(self._losses)

    def add(self, loss: Tensor, norm: Tensor, parts: dict[str, Tensor]) -> None:
        self._losses.append(loss)
        self._norms.append(norm)
        self._parts = parts
        self.unsaved = True

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
