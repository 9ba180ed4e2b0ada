"""What a run must keep to go on as if it had never stopped, whole or not there.

A checkpoint holds no queue of teacher targets and no loader state: both follow from the step.
"""

import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcache.errors import TrainingError
from kdcache.files import atomic_file
from kdcache.methods import Method
from kdcache.networks import Backbone

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class Random:
    """The state of torch's generators on the CPU and, where the student is on one, on the GPU."""

    cpu: Tensor
    cuda: Tensor | None

    @classmethod
    def now(cls, device: torch.device) -> "Random":
        """As they are."""
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.get_rng_state(), cuda)

    def restore(self, device: torch.device) -> None:
        """Go on from here."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None and device.type == "cuda":
            torch.cuda.set_rng_state(self.cuda, device)


@dataclass
class State:
    """All that a step changes."""

    student: Backbone
    method: Method
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    random: Random
    """Of the run's own generators, so that no other run beside it takes numbers from them."""
    step: int = 0
    """Optimiser steps taken."""

    def to_dict(self) -> dict[str, Any]:
        """Tensors and plain values only, so that it loads with `weights_only=True`."""
        return {
            "step": self.step,
            "student": self.student.state_dict(),
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": self.random.cpu,
            "random_cuda": self.random.cuda,
        }

    def load(self, kept: dict[str, Any]) -> None:
        """Go on from what `to_dict` gave."""
        self.student.load_state_dict(kept["student"])
        self.method.load_state_dict(kept["method"])
        self.optimizer.load_state_dict(kept["optimizer"])
        self.scaler.load_state_dict(kept["scaler"])
        # A run that was begun without a GPU goes on with the GPU's generator as it is.
        cuda = self.random.cuda if kept["random_cuda"] is None else kept["random_cuda"]
        self.random = Random(kept["random"], cuda)
        self.step = kept["step"]

    @contextmanager
    def own_random(self) -> Iterator[None]:
        """Torch's generators go on, inside, from where this run left them."""
        self.random.restore(self.device)
        yield
        self.random = Random.now(self.device)

    @property
    def device(self) -> torch.device:
        """Where the student is."""
        return next(self.student.parameters()).device


def save_checkpoint(run: Path, state: State) -> None:
    """Replace the run's checkpoint; a crash or a full disk leaves the old one."""
    # By way of memory: torch, writing itself, answers a full disk with an error of its own kind.
    buffer = io.BytesIO()
    torch.save(state.to_dict(), buffer)
    with atomic_file(run / CHECKPOINT) as file:
        file.write(buffer.getbuffer())


def load_checkpoint(run: Path, state: State) -> bool:
    """Take up the run's checkpoint; False if there is none.

    Raises:
        TrainingError: there is one, but it is damaged.
    """
    path = run / CHECKPOINT
    if not path.exists():
        return False
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise TrainingError(
            f"`{path}` is damaged: {str(error).splitlines()[0]}",
            hint=f"put a copy of it back, or begin anew with another --out than `{run}`",
        ) from error
    state.load(kept)
    return True
