"""SimReg: the student's prediction points where the teacher's feature points.

Source: Navaneet et al., "SimReg: Regression as a Simple Yet Effective Tool for Self-supervised
Knowledge Distillation", BMVC 2021, arXiv:2201.05131; official code simreg.py and mlp_arch.py. The
released code knows one teacher; that several have a head each, and that their losses are averaged,
was read about the paper and not in it.

Shapes: B batch, E student feature, D teacher feature.
"""

from collections.abc import Sequence
from typing import final

from torch import nn

from kdcache.methods._base import Batch, Loss, Method, Needs, TeacherSide
from kdcache.methods._heads import simreg_head
from kdcache.methods._unit import squared_distance, unit
from kdcache.optimisation import Optimisation
from kdcache.settings import Settings


@final
class SimReg(Method):
    """Squared distance of unit vectors, from heads that are thrown away afterwards."""

    class Config(Settings):
        """SimReg has no knobs of its own: one weakly augmented view, shared with the teachers."""

        center: bool = False
        """Take the mean of the cache's features off each target. The paper does not."""

    optimisation = Optimisation(epochs=130, lr=0.05, first_epoch=1)
    views = "weak"

    def __init__(
        self, config: Config, *, student_dim: int, teachers: Sequence[TeacherSide]
    ) -> None:
        super().__init__(config, student_dim=student_dim, teachers=teachers)
        self.heads = nn.ModuleList(simreg_head(student_dim, teacher.dim) for teacher in teachers)

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Each teacher's feature of one view."""
        return Needs(target="feature", center=config.center, several=True)

    def forward(self, student: nn.Module, batch: Batch) -> Loss:
        """Mean over teachers and batch of 2 - 2 cos(prediction, target): from 0 to 4."""
        feature = student(batch.images[0])
        pairs = zip(self.heads, batch.targets, strict=True)
        distances = [squared_distance(unit(head(feature)), unit(target)) for head, target in pairs]
        value = sum(distances[1:], start=distances[0]) / len(distances)
        return Loss(value, {"cosine": 1.0 - value.detach() / 2.0})
