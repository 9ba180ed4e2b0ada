"""MoCo v2: a student on its own, the baseline of every table; also makes the demo's teacher.

Source: Chen et al., "Improved Baselines with Momentum Contrastive Learning", arXiv:2003.04297;
official code moco/builder.py and main_moco.py. Queue and slow copy live in this module, because
their content depends on the student; both are saved with it.

Shapes: B batch, E student feature, D embedding, K negatives.
"""

import copy
from collections.abc import Sequence
from typing import final

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from kdcache.methods._base import Batch, Loss, Method, Needs, TeacherSide
from kdcache.methods._heads import two_layer_head
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

    queue: Tensor

    def __init__(
        self, config: Config, *, student_dim: int, teachers: Sequence[TeacherSide] = ()
    ) -> None:
        super().__init__(config, student_dim=student_dim, teachers=teachers)
        hidden = config.hidden_dim or student_dim
        self.head = two_layer_head(student_dim, hidden, config.embedding_dim)
        self.slow_head = copy.deepcopy(self.head).requires_grad_(False)
        self.slow_student: nn.Module | None = None
        self.register_buffer("queue", torch.zeros(config.queue, config.embedding_dim))
        self._key: Tensor | None = None  # of the step under way
        self._num_keys = 0  # enqueued since the start; plain, so that no step waits for the device

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Two views of each image, and no teacher."""
        return Needs(target=None, views=2)

    def adopt(self, student: nn.Module) -> None:
        """Make the slow copies of backbone and head."""
        self.slow_student = copy.deepcopy(student).requires_grad_(False)

    @torch.no_grad()
    def finish_step(self, student: nn.Module) -> None:
        """Let the step's keys into the queue, and move the slow copy a little to the student."""
        assert self.slow_student is not None
        self._enqueue()
        pairs = ((self.slow_student, student), (self.slow_head, self.head))
        for slow, fast in pairs:
            for mine, other in zip(slow.parameters(), fast.parameters(), strict=True):
                mine.lerp_(other, 1.0 - self.config.momentum)

    def forward(self, student: nn.Module, batch: Batch) -> Loss:
        """Mean over the batch of -log softmax of the positive pair, in nats."""
        assert self.slow_student is not None
        query: Float[Tensor, "B D"] = self.head(student(batch.images[0]))
        query = functional.normalize(query.float(), dim=1)
        with torch.no_grad():
            key: Float[Tensor, "B D"] = self.slow_head(self.slow_student(batch.images[1]))
            key = functional.normalize(key.float(), dim=1)
        positive = (query * key).sum(1, keepdim=True)
        # Before it has gone round once, only the filled part of the queue takes part: no random
        # vectors stand in for images that have not been seen.
        with torch.autocast(query.device.type, enabled=False):
            negative = query @ self.queue[: self._num_keys].T
        logits = torch.cat([positive, negative], dim=1) / self.config.temperature
        wanted = torch.zeros(len(query), dtype=torch.long, device=query.device)
        value = functional.cross_entropy(logits, wanted)
        # The queue is part of the graph until the backward pass is over: the keys wait.
        self._key = key
        return Loss(value, {"cosine": positive.detach().mean()})

    def _enqueue(self) -> None:
        assert self._key is not None
        key = self._key[-self.config.queue :]
        slots = torch.arange(self._num_keys, self._num_keys + len(key), device=key.device)
        self.queue[slots % self.config.queue] = key
        self._num_keys += len(key)
        self._key = None

    def get_extra_state(self) -> dict[str, int]:
        """What a checkpoint keeps besides tensors."""
        return {"num_keys": self._num_keys}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Take up a checkpoint's queue position."""
        self._num_keys = state["num_keys"]
