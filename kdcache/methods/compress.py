"""CompRess with two queues: each network ranks the same earlier images by its own features.

Source: Koohpayegani et al., "CompRess: Self-Supervised Learning by Compressing Representations",
NeurIPS 2020, arXiv:2010.14713; official code train_student.py, train_student_without_momentum.py,
nn/compress_loss.py. The banks start empty where the official code has random vectors, so the first
step's loss is zero. Both are part of a checkpoint: 4 K (D + E) bytes, 1.3 GB for the paper's
ResNet-50 and ResNet-18.

Shapes: B batch, E student feature, D teacher feature.
"""

from collections.abc import Sequence
from typing import final

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdcache.methods._base import Batch, Loss, Method, Needs, TeacherSide
from kdcache.methods._keys import KeyQueue
from kdcache.methods._ranking_kl import ranking_kl
from kdcache.methods._slow import follow, slow_copy
from kdcache.methods._unit import unit
from kdcache.optimisation import Optimisation
from kdcache.settings import Settings
from kdcache.shapes import Float, UInt8


@final
class Compress(Method):
    """Divergence of the student's ranking of its own queue from the teacher's ranking of its own.

    Slot k of both queues is the same image: they advance in step and are read before they do. There
    is no head: the student's feature itself is compared.
    """

    class Config(Settings):
        """Knobs of CompRess-2q."""

        queue: int = Field(default=128000, ge=1)
        """Bank K: earlier samples, in each of the two queues."""
        temperature: float = Field(default=0.04, gt=0)
        """Divides every similarity, the teacher's and the student's."""
        momentum_student: bool = True
        """Fill the student's queue by a slow copy; false: by the student itself."""
        momentum: float = Field(default=0.999, ge=0, lt=1)
        """Share of the slow copy that a step leaves as it is."""

    optimisation = Optimisation(
        epochs=130, lr=0.01, schedule="step", milestones=[90, 120], decay=0.2
    )
    views = "compress"

    def __init__(
        self, config: Config, *, student_dim: int, teachers: Sequence[TeacherSide]
    ) -> None:
        super().__init__(config, student_dim=student_dim, teachers=teachers)
        (teacher,) = teachers
        self.student_queue = KeyQueue(config.queue, student_dim)
        self.teacher_queue = KeyQueue(config.queue, teacher.dim)
        self.slow_student: nn.Module | None = None

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """The teacher's feature of one view; the queues are the method's own."""
        return Needs(target="feature", own_keys=config.queue)

    def adopt(self, student: nn.Module) -> None:
        """Make the slow copy of the student, where there is to be one."""
        if self.config.momentum_student:
            self.slow_student = slow_copy(student)
            self.train(self.training)

    def train(self, mode: bool = True) -> "Compress":
        """Set the mode; the slow copy stays in evaluation, save for its batch norms."""
        super().train(mode)
        if self.slow_student is not None:
            for module in self.slow_student.modules():
                module.training = mode and isinstance(module, _BatchNorm)
        return self

    def finish_step(self, student: nn.Module) -> None:
        """Let the step's rows into both queues, and move the slow copy a little to the student."""
        self.student_queue.advance()
        self.teacher_queue.advance()
        if self.slow_student is not None:
            follow(self.slow_student, student, self.config.momentum)

    def forward(self, student: nn.Module, batch: Batch) -> Loss:
        """Mean over the batch of the divergence, in nats; 0 while the queues are empty."""
        images = batch.images[0]
        feature: Float[Tensor, "B E"] = unit(student(images))
        target = unit(batch.targets[0])
        student_keys, teacher_keys = self.student_queue.filled, self.teacher_queue.filled
        if len(teacher_keys):
            value, entropy = ranking_kl(
                feature, target, student_keys, teacher_keys, self.config.temperature
            )
        else:
            value = feature.sum() * 0.0
            entropy = value.detach()
        self.student_queue.hold(self._key(images, feature))
        self.teacher_queue.hold(target)
        return Loss(value, {"entropy": entropy})

    @torch.no_grad()
    def _key(
        self, images: UInt8[Tensor, "B S S 3"], feature: Float[Tensor, "B E"]
    ) -> Float[Tensor, "B E"]:
        return feature if self.slow_student is None else unit(self.slow_student(images))
