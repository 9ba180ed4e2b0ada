"""DisCo: embeddings of two views go to the teacher's, and to the student's own slow copy.

Source: Gao et al., "DisCo: Remedy Self-supervised Learning on Lightweight Models with Distilled
Contrastive Learning", ECCV 2022, arXiv:2104.09124; official code DisCo/main.py and
moco/builder_kq_mse_largeembedding_2048.py. The published numbers ran the teacher's batch norm on
the statistics of each batch (its code never calls eval); a cache keeps the running statistics, as
SEED and SimReg do. That code shuffles images between GPUs before the slow copy's batch norm; here
batch norm sees the whole batch, whose order is nothing to it.

Shapes: B batch, E student feature, D teacher embedding.
"""

from collections.abc import Sequence
from typing import Literal, final

import torch
from pydantic import Field
from torch import Tensor, nn

from kdcache.methods._base import Batch, Loss, Method, Needs, TeacherSide
from kdcache.methods._heads import two_layer_head
from kdcache.methods._infonce import infonce
from kdcache.methods._keys import KeyQueue
from kdcache.methods._slow import follow, slow_copy
from kdcache.methods._unit import squared_distance, unit
from kdcache.optimisation import Optimisation
from kdcache.settings import Settings
from kdcache.shapes import Float


@final
class DisCo(Method):
    """MoCo's InfoNCE, and the squared distance to the teacher of each of the two views."""

    class Config(Settings):
        """Knobs of DisCo."""

        queue: int = Field(default=65536, ge=1)
        """Negatives K: keys of the slow copy, of earlier batches."""
        temperature: float = Field(default=0.2, gt=0)
        """Divides every similarity of the InfoNCE term."""
        momentum: float = Field(default=0.999, ge=0, lt=1)
        """Share of the slow copy that a step leaves as it is."""
        distill_weight: float = Field(default=32.0, ge=0)
        """Of each view's mean squared distance. The released code sums over the images of one GPU
        and averages over GPUs; with the authors' 8 GPUs of 32 images that is 32 times the mean."""
        distill_only: bool = False
        """Leave the InfoNCE term out (`--only-mse`): then there is no slow copy and no queue."""
        hidden_dim: int = Field(default=2048, ge=0)
        """Width of the head's hidden layer; 0 is the student's own feature width."""
        target: Literal["embedding", "feature"] = "embedding"
        """The teacher's embedding (the paper), or its feature where it has no projection head."""

    optimisation = Optimisation(epochs=200, lr=0.03)
    views = "moco_v2"

    def __init__(
        self, config: Config, *, student_dim: int, teachers: Sequence[TeacherSide]
    ) -> None:
        super().__init__(config, student_dim=student_dim, teachers=teachers)
        (teacher,) = teachers
        self.head = two_layer_head(student_dim, config.hidden_dim or student_dim, teacher.dim)
        if not config.distill_only:
            self.slow_head = slow_copy(self.head)
            self.slow_student: nn.Module | None = None
            self.queue = KeyQueue(config.queue, teacher.dim)

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """The teacher's target of two views."""
        own_keys = 0 if config.distill_only else config.queue
        return Needs(target=config.target, views=2, own_keys=own_keys)

    def adopt(self, student: nn.Module) -> None:
        """Make the slow copy of the backbone."""
        if not self.config.distill_only:
            self.slow_student = slow_copy(student)

    def finish_step(self, student: nn.Module) -> None:
        """Let the step's keys into the queue, and move the slow copy a little to the student."""
        if not self.config.distill_only:
            assert self.slow_student is not None
            self.queue.advance()
            follow(self.slow_student, student, self.config.momentum)
            follow(self.slow_head, self.head, self.config.momentum)

    def forward(self, student: nn.Module, batch: Batch) -> Loss:
        """InfoNCE in nats of view 0, and the weighted distances of both; means over the batch."""
        ours = [unit(self.head(student(images))) for images in batch.images]
        pairs = zip(ours, batch.targets, strict=True)
        first, second = (squared_distance(mine, unit(target)) for mine, target in pairs)
        value = self.config.distill_weight * (first + second)
        parts = {"cosine": 1.0 - (first + second).detach() / 4.0}
        if not self.config.distill_only:
            key = self._slow_key(batch.images[1])
            contrast = infonce(ours[0], key, self.queue.filled, self.config.temperature).mean()
            self.queue.hold(key)
            value, parts["contrast"] = value + contrast, contrast.detach()
        return Loss(value, parts)

    @torch.no_grad()
    def _slow_key(self, images: Tensor) -> Float[Tensor, "B D"]:
        assert self.slow_student is not None
        return unit(self.slow_head(self.slow_student(images)))
