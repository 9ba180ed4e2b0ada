"""SimReg: the student's prediction points where the teacher's feature points.

Source: Navaneet et al., "SimReg: Regression as a Simple Yet Effective Tool for Self-supervised
Knowledge Distillation", BMVC 2021, arXiv:2201.05131; official code simreg.py and mlp_arch.py.

Shapes: B batch, E student feature, D teacher feature.
"""

from collections.abc import Sequence
from typing import final

from torch import nn
from torch.nn import functional

from kdcache.methods._base import Batch, Loss, Method, Needs, TeacherSide
from kdcache.methods._heads import simreg_head
from kdcache.optimisation import Optimisation
from kdcache.settings import Settings


@final
class SimReg(Method):
    """Squared distance of unit vectors, from a head that is thrown away afterwards."""

    class Config(Settings):
        """SimReg has no knobs: one weakly augmented view, shared with the teacher."""

    optimisation = Optimisation(epochs=130, lr=0.05, first_epoch=1)
    views = "weak"

    def __init__(
        self, config: Config, *, student_dim: int, teachers: Sequence[TeacherSide]
    ) -> None:
        super().__init__(config, student_dim=student_dim, teachers=teachers)
        (teacher,) = teachers
        self.head = simreg_head(student_dim, teacher.dim)

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """The teacher's feature of one view."""
        return Needs(target="feature")

    def forward(self, student: nn.Module, batch: Batch) -> Loss:
        """Mean over the batch of 2 - 2 cos(prediction, target): from 0 to 4."""
        prediction = functional.normalize(self.head(student(batch.images[0])).float(), dim=1)
        target = functional.normalize(batch.targets[0], dim=1)
        cosine = (prediction * target).sum(1).mean()
        return Loss(2.0 - 2.0 * cosine, {"cosine": cosine.detach()})
