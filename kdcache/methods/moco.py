"""MoCo v2: a student on its own, the baseline of every table; also makes the demo's teacher.

Source: Chen et al., "Improved Baselines with Momentum Contrastive Learning", arXiv:2003.04297;
official code moco/builder.py and main_moco.py. Queue and slow copy live in this module, because
their content depends on the student; both are saved with it. That code shuffles images between GPUs
before the slow copy's batch norm; here batch norm sees the whole batch, whose order is nothing to
it.

Shapes: B batch, E student feature, D embedding, K negatives.
"""

from collections.abc import Sequence
from typing import final

import torch
from pydantic import Field
from torch import Tensor, nn

from kdcache.methods._base import Batch, Loss, Method, Needs, TeacherSide
from kdcache.methods._heads import two_layer_head
from kdcache.methods._infonce import infonce
from kdcache.methods._keys import KeyQueue
from kdcache.methods._slow import follow, slow_copy
from kdcache.methods._unit import unit
from kdcache.optimisation import Optimisation
from kdcache.settings import Settings
from kdcache.shapes import Float


@final
class MoCo(Method):
    """InfoNCE of one view against the slow copy's embedding of the other, and of earlier images."""

    class Config(Settings):
        """Knobs of MoCo v2."""

        queue: int = Field(default=65536, ge=1)
        """Negatives K: keys of earlier batches."""
        temperature: float = Field(default=0.2, gt=0)
        """Divides every similarity."""
        momentum: float = Field(default=0.999, ge=0, lt=1)
        """Share of the slow copy that a step leaves as it is."""
        hidden_dim: int = Field(default=0, ge=0)
        """Width of the head's hidden layer; 0 is the student's own feature width."""
        embedding_dim: int = Field(default=128, ge=1)
        """Width of the embedding."""

    optimisation = Optimisation(epochs=200, lr=0.03)
    views = "moco_v2"

    def __init__(
        self, config: Config, *, student_dim: int, teachers: Sequence[TeacherSide] = ()
    ) -> None:
        super().__init__(config, student_dim=student_dim, teachers=teachers)
        hidden = config.hidden_dim or student_dim
        self.head = two_layer_head(student_dim, hidden, config.embedding_dim)
        self.slow_head = slow_copy(self.head)
        self.slow_student: nn.Module | None = None
        self.queue = KeyQueue(config.queue, config.embedding_dim)

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Two views of each image, and no teacher."""
        return Needs(target=None, views=2, own_keys=config.queue)

    def adopt(self, student: nn.Module) -> None:
        """Make the slow copy of the backbone."""
        self.slow_student = slow_copy(student)

    def finish_step(self, student: nn.Module) -> None:
        """Let the step's keys into the queue, and move the slow copy a little to the student."""
        assert self.slow_student is not None
        self.queue.advance()
        follow(self.slow_student, student, self.config.momentum)
        follow(self.slow_head, self.head, self.config.momentum)

    def forward(self, student: nn.Module, batch: Batch) -> Loss:
        """Mean over the batch of -log softmax of the positive pair, in nats."""
        query: Float[Tensor, "B D"] = unit(self.head(student(batch.images[0])))
        key = self._slow_key(batch.images[1])
        value = infonce(query, key, self.queue.filled, self.config.temperature).mean()
        self.queue.hold(key)
        return Loss(value, {"cosine": (query.detach() * key).sum(1).mean()})

    @torch.no_grad()
    def _slow_key(self, images: Tensor) -> Float[Tensor, "B D"]:
        assert self.slow_student is not None
        return unit(self.slow_head(self.slow_student(images)))
