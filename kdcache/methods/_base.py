"""The contract that every method keeps: tensors in, a loss out; no cache, no files.

A method is one file of this folder with one class. It owns the heads it trains (and later throws
away) and, where it has one, the slowly moving copy of the student. What it asks for is data
(`Needs`), so that a run can refuse a cache that does not serve it before the first step. The one
thing it may know of other processes is `kdcache.distributed`: rows that couple a batch (keys for a
queue of its own, statistics over the batch) are gathered there, and that is the identity in a run
of one process.

Shapes: B batch, S size, D target, K negatives, E slots left out.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from kdcache.heads import ProjectionHead
from kdcache.optimisation import Optimisation
from kdcache.settings import Settings
from kdcache.shapes import Float, Int64, UInt8


@dataclass(frozen=True)
class Needs:
    """What a method asks of its surroundings; checked before the first step."""

    target: Literal["feature", "embedding"] | None
    """The array of the cache that it learns from; None if it has no teacher."""
    views: int = 1
    """Views of each image a step; there is a target for each."""
    rendered: int | None = None
    """How many of the views, from the first, the student looks at; None is all of them."""
    neighbours: int = 0
    """Images beside each image of the batch, drawn from its row of the cache's kNN graph."""
    negatives: int | Literal["all"] = 0
    """Length of the queue of teacher targets; `all`: every row of the cache; 0: none."""
    queue_view: int = 0
    """Which of the step's views the queue holds the targets of."""
    second_queue_view: int | None = None
    """The same for a second queue of the same samples, slot by slot; None: there is none."""
    mask_own: bool = True
    """Whether the queue's other views of an image are hidden from that image."""
    own_keys: int = 0
    """Length of a queue of the student's own keys, in which nothing is masked: at most half of the
    images, or it holds the very images that it is compared with."""
    center: bool = False
    """Whether the mean of the cache's targets is taken off each target."""
    temperatures: tuple[float, float] | None = None
    """The student's and the teacher's, of a method that ranks the queue: for the diagnosis."""
    nprobe: int = 0
    """Lists of an IVF index over the queue that a search of it opens; 0: no index is kept."""
    own_column: bool = True
    """Whether that ranking has a column for the image's own target; for the diagnosis."""
    head: bool = False
    """Whether it works with the teacher's projection head itself."""
    couples_batch: bool = False
    """Whether the loss of an image depends on the others of its batch, other than by batch norm:
    then a batch is neither cut into parts nor made of views of fewer images."""
    several: bool = False
    """Whether it can learn from several teachers at once."""


@dataclass(frozen=True)
class TeacherSide:
    """What a method must know of a teacher before it sees a batch."""

    dim: int
    """Width of its targets."""
    head: ProjectionHead | None = None
    """Its projection head, for a method that needs it: the method's own to keep, frozen or not."""


@dataclass(frozen=True)
class Batch:
    """What one step shows.

    Lists go through the views of the image, then through those of its first neighbour, and so on;
    `targets` does so for each teacher in turn.
    """

    images: list[UInt8[Tensor, "B _ _ 3"]]
    """Rendered views, as a student takes them; small crops have a side of their own."""
    targets: list[Float[Tensor, "B _"]] = field(default_factory=list)
    """What the teacher said of the views, un-normalised."""
    negatives: Float[Tensor, "K D"] | None = None
    """The queue: unit-length targets of earlier samples."""
    own_slots: Int64[Tensor, "B E"] | None = None
    """Slots of the queue, or of both, that show the same image or its neighbours; -1 pads."""
    more_negatives: Float[Tensor, "K D"] | None = None
    """The second queue: another view of the same samples in the same slots."""
    search: Callable[[Tensor, int], Tensor] | None = None
    """From rows [B, D] and a count N: slots [B, N] of the queue with the rows most alike (or nearly
    so), -1 pads; None where the method asked for no index."""
    progress: float = 0.0
    """Epochs done so far, for losses that change on the way."""


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

    def __init__(
        self, config: Any, *, student_dim: int, teachers: Sequence[TeacherSide] = ()
    ) -> None:
        """A method adds its heads here.

        Args:
            config: a `Config` of its own.
            student_dim: width of the student's feature.
            teachers: those of the run; one, unless `needs` says several; none without a target.
        """
        super().__init__()
        self.config = config

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
