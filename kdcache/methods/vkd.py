"""V_kD: an orthogonal projection of the student's feature matches the teacher's, layer-normed.

Source: Miles et al., "VkD: Improving Knowledge Distillation using Orthogonal Projections", CVPR
2024, arXiv:2403.06213; official code train.py and engine.py. The paper distils classifiers: a
cross-entropy with labels and a divergence of logits stand beside this term, and are left out here,
for a method is shown no labels and a cache has no logits. So the schedule and the views are not the
paper's but SimReg's, and the rate is ours: a mean over D dimensions has small gradients, and wants
15 times SimReg's rate (docs/results.md).

The official code leaves the parametrisation of the matrix to torch, which takes Householder
reflections, one after the other: forward and backward take 6.3 s a step from 1,024 to 1,280
numbers, and the Cayley transform that is taken here 0.21 s (2 threads of an AMD EPYC). Both reach
every matrix but a set of measure zero, and start at the same one.

Shapes: B batch, E student feature, D teacher feature.
"""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from kdcache.errors import ConfigError
from kdcache.methods._base import Batch, Loss, Method, Needs, TeacherSide
from kdcache.optimisation import Optimisation
from kdcache.settings import Settings
from kdcache.shapes import Float


@final
class Vkd(Method):
    """Smooth L1 distance to the layer-normed target, through a matrix of orthonormal columns."""

    class Config(Settings):
        """V_kD has no knobs without its supervised terms."""

    optimisation = Optimisation(epochs=130, lr=0.75, first_epoch=1)
    views = "weak"

    def __init__(
        self, config: Config, *, student_dim: int, teachers: Sequence[TeacherSide]
    ) -> None:
        """A projection that keeps lengths and angles.

        Raises:
            ConfigError: the student's feature is wider than the teacher's.
        """
        super().__init__(config, student_dim=student_dim, teachers=teachers)
        (teacher,) = teachers
        if student_dim > teacher.dim:
            raise ConfigError(
                f"`vkd` projects {student_dim} numbers of the student to {teacher.dim} of the "
                "teacher: no such matrix has orthonormal columns",
                hint="--method simreg, whose head may be of any shape, or a narrower student",
            )
        self.projector = parametrizations.orthogonal(
            nn.Linear(student_dim, teacher.dim, bias=False), orthogonal_map="cayley"
        )

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """The teacher's feature of one view."""
        return Needs(target="feature")

    def forward(self, student: nn.Module, batch: Batch) -> Loss:
        """Mean over batch and dimensions of the smooth L1 distance (quadratic below one)."""
        feature: Float[Tensor, "B E"] = student(batch.images[0])
        feature = feature.to(torch.promote_types(feature.dtype, torch.float32))
        # In bfloat16 the columns would be orthonormal to two digits only.
        with torch.autocast(feature.device.type, enabled=False):
            prediction: Float[Tensor, "B D"] = self.projector(feature)
        target = batch.targets[0].to(prediction.dtype)
        wanted = functional.layer_norm(target, target.shape[1:])
        value = functional.smooth_l1_loss(prediction, wanted)
        cosine = functional.cosine_similarity(prediction.detach(), wanted, dim=1).mean()
        return Loss(value, {"cosine": cosine})
