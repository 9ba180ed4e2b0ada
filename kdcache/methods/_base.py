"""The contract that every method keeps: tensors in, a loss out; no cache, queue or process group.

A method is one file of this folder with one class. It owns the heads it trains (and later throws
away) and, where it has one, the slowly moving copy of the student.

Shapes: B batch, S size, D target, K negatives, E slots left out.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from kdcache.optimisation import Optimisation
from kdcache.settings import Settings
from kdcache.shapes import Float, Int64, UInt8


@dataclass(frozen=True)
class Needs:
    """What a method asks of its surroundings; checked before the first step."""

    target: Literal["feature", "embedding"] | None
    """The array of the cache that it learns from; None if it has no teacher."""
    views: int = 1
    """Views of each image a step."""
    negatives: int = 0
    """Length of the queue of teacher targets; 0 if it uses none."""
    mask_own: bool = True
    """Whether the queue's other views of an image are hidden from that image."""


@dataclass(frozen=True)
class Batch:
    """What one step shows. Lists have one entry a view."""

    images: list[UInt8[Tensor, "B S S 3"]]
    """Rendered views, as a student takes them."""
    targets: list[Float[Tensor, "B D"]] = field(default_factory=list)
    """What the teacher said of the same views, un-normalised."""
    negatives: Float[Tensor, "K D"] | None = None
    """The queue: unit-length targets of earlier samples."""
    own_slots: Int64[Tensor, "B E"] | None = None
    """Slots of `negatives` that show the same image; -1 pads."""


@dataclass(frozen=True)
class Loss:
    """What a step is minimised by, and what of it is worth a line in the log."""

    value: Float[Tensor, ""]
    parts: dict[str, Tensor] = field(default_factory=dict)
    """Named scalars on the device, detached."""


class Method(nn.Module, ABC):
    """What is asked of a student."""

    class Config(Settings):
        """Knobs of the method; the defaults are the paper's."""

    optimisation: ClassVar[Optimisation]
    """The paper's own schedule."""
    views: ClassVar[str]
    """The view policy that the paper trains with."""

    @classmethod
    @abstractmethod
    def needs(cls, config: Any) -> Needs:
        """What the method asks for under these settings, a `Config` of its own."""

    @abstractmethod
    def forward(self, student: nn.Module, batch: Batch) -> Loss:
        """The loss of a batch; `student` maps images [B, S, S, 3] to features [B, E]."""

    # The two hooks below do nothing for most methods, so they are not abstract.

    def adopt(self, student: nn.Module) -> None:
        """Called once, before state is loaded: a method with a slow copy makes it here."""

    def finish_step(self, student: nn.Module) -> None:
        """Called after each optimiser step: here slow copies move and queues of keys advance."""
