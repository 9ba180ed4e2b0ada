"""Retro: the student learns to speak through the teacher's own projection head, which is frozen.

A reconstruction: no code was published, and the full text was not read for this file. The abstract
and the reviews say: the teacher's head, an adapter of dimensions in front of it, a contrastive loss
against a slow copy of the student, and consistency with the teacher. All constants are DisCo's.

Source: Nguyen and Park, "Retro: Reusing teacher projection head for efficient embedding
distillation on Lightweight Models via Self-supervised Learning", arXiv:2405.15311.

Shapes: B batch, E student feature, F teacher feature, D teacher embedding.
"""

from collections.abc import Sequence
from typing import Literal, final

import torch
from pydantic import Field
from torch import Tensor, nn

from kdcache.methods._base import Batch, Loss, Method, Needs, TeacherSide
from kdcache.methods._infonce import infonce
from kdcache.methods._keys import KeyQueue
from kdcache.methods._slow import follow, slow_copy
from kdcache.methods._unit import squared_distance, unit
from kdcache.optimisation import Optimisation
from kdcache.settings import Settings
from kdcache.shapes import Float


@final
class Retro(Method):
    """DisCo's two terms, from an adapter in front of the teacher's frozen head."""

    class Config(Settings):
        """Knobs of Retro."""

        adapter: Literal["linear", "linear_bn_relu"] = "linear_bn_relu"
        """From the student's feature to the teacher's. A ReLU keeps what the head is given as
        non-negative as the pooled features that it was trained on. A 1x1 convolution before the
        pooling is left out, for students give pooled features: a purely linear one commutes with
        the pooling and is `linear`, but one with batch norm and ReLU is neither of the two."""
        queue: int = Field(default=65536, ge=1)
        """Negatives K: keys of the slow copy, of earlier batches."""
        temperature: float = Field(default=0.2, gt=0)
        """Divides every similarity of the InfoNCE term."""
        momentum: float = Field(default=0.999, ge=0, lt=1)
        """Share of the slow copy that a step leaves as it is."""
        distill_weight: float = Field(default=32.0, ge=0)
        """Of each view's mean squared distance; as in DisCo."""
        symmetric: bool = False
        """Average the InfoNCE term with that of the views exchanged."""

    optimisation = Optimisation(epochs=200, lr=0.03)
    views = "moco_v2"

    def __init__(
        self, config: Config, *, student_dim: int, teachers: Sequence[TeacherSide]
    ) -> None:
        super().__init__(config, student_dim=student_dim, teachers=teachers)
        (teacher,) = teachers
        assert teacher.head is not None
        self.teacher_head = teacher.head.requires_grad_(False).eval()
        self.adapter = _adapter(config.adapter, student_dim, teacher.head.in_dim)
        self.slow_adapter = slow_copy(self.adapter)
        self.slow_student: nn.Module | None = None
        self.queue = KeyQueue(config.queue, teacher.head.out_dim)

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """The teacher's embedding of two views, and its head."""
        return Needs(target="embedding", views=2, head=True, own_keys=config.queue)

    def train(self, mode: bool = True) -> "Retro":
        """As ever, but the teacher's head keeps to its running statistics."""
        super().train(mode)
        self.teacher_head.eval()
        return self

    def adopt(self, student: nn.Module) -> None:
        """Make the slow copy of the backbone."""
        self.slow_student = slow_copy(student)

    def finish_step(self, student: nn.Module) -> None:
        """Let the step's keys into the queue, and move the slow copy a little to the student."""
        assert self.slow_student is not None
        self.queue.advance()
        follow(self.slow_student, student, self.config.momentum)
        follow(self.slow_adapter, self.adapter, self.config.momentum)

    def forward(self, student: nn.Module, batch: Batch) -> Loss:
        """InfoNCE in nats of view 0, and the weighted distances of both; means over the batch."""
        # The head's weights stand still, but gradients go through it to the adapter.
        ours = [unit(self.teacher_head(self.adapter(student(view)))) for view in batch.images]
        pairs = zip(ours, batch.targets, strict=True)
        first, second = (squared_distance(mine, unit(target)) for mine, target in pairs)
        contrast = self._contrast(ours, batch)
        value = contrast + self.config.distill_weight * (first + second)
        cosine = 1.0 - (first + second).detach() / 4.0
        return Loss(value, {"cosine": cosine, "contrast": contrast.detach()})

    def _contrast(self, ours: list[Tensor], batch: Batch) -> Float[Tensor, ""]:
        """InfoNCE of view 0 against the slow copy's view 1, whose keys go into the queue."""
        negatives, temperature = self.queue.filled, self.config.temperature
        key = self._slow_key(batch.images[1])
        contrast = infonce(ours[0], key, negatives, temperature).mean()
        if self.config.symmetric:
            other = self._slow_key(batch.images[0])
            contrast = (contrast + infonce(ours[1], other, negatives, temperature).mean()) / 2.0
        self.queue.hold(key)
        return contrast

    @torch.no_grad()
    def _slow_key(self, images: Tensor) -> Float[Tensor, "B D"]:
        assert self.slow_student is not None
        return unit(self.teacher_head(self.slow_adapter(self.slow_student(images))))


def _adapter(kind: str, in_dim: int, out_dim: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(in_dim, out_dim)]
    if kind == "linear_bn_relu":
        layers += [nn.BatchNorm1d(out_dim), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
