"""CoSS: the student's features point where the teacher's do, row by row and column by column.

Source: Singh and Wang, "Simple Unsupervised Knowledge Distillation With Space Similarity", ECCV
2024, arXiv:2409.13939. Only abstract and summaries were read, and no code known to be theirs: the
two terms and that batches are filled with neighbours are the paper's; the weight, the number of
neighbours, the linear projection between unequal widths and the schedule (SimReg's) are unverified
choices of ours.

Shapes: B batch, R rows of images and neighbours, E student feature, D teacher feature.
"""

from collections.abc import Sequence
from typing import final

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from kdcache.distributed import gather_rows, gather_rows_with_gradient
from kdcache.methods._base import Batch, Loss, Method, Needs, TeacherSide
from kdcache.optimisation import Optimisation
from kdcache.settings import Settings
from kdcache.shapes import Float


@final
class Coss(Method):
    """Negative cosine of each row, and of each dimension over the batch, magnitudes included."""

    class Config(Settings):
        """Knobs of CoSS."""

        space_weight: float = Field(default=1.0, ge=0)
        """lambda: weight of the space similarity. Ours: the paper's is unverified."""
        neighbours: int = Field(default=1, ge=0)
        """Neighbours that each image brings into the batch. Ours as well: unverified."""

    optimisation = Optimisation(epochs=130, lr=0.05, first_epoch=1)
    views = "weak"

    def __init__(
        self, config: Config, *, student_dim: int, teachers: Sequence[TeacherSide]
    ) -> None:
        super().__init__(config, student_dim=student_dim, teachers=teachers)
        (teacher,) = teachers
        same = student_dim == teacher.dim
        self.head = nn.Identity() if same else nn.Linear(student_dim, teacher.dim)

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """The teacher's feature of one view of each image and of its neighbours."""
        return Needs(target="feature", neighbours=config.neighbours, couples_batch=True)

    def forward(self, student: nn.Module, batch: Batch) -> Loss:
        """-mean of the rows' cosines - lambda mean of the dimensions': from -1 - lambda up.

        A dimension is a column over the whole batch, so the rows of all processes are gathered.
        """
        feature: Float[Tensor, "R D"] = self.head(student(torch.cat(batch.images)))
        feature = feature.to(torch.promote_types(feature.dtype, torch.float32))
        target = torch.cat(batch.targets).to(feature.dtype)
        row = functional.cosine_similarity(feature, target, dim=1).mean()
        columns = gather_rows_with_gradient(feature), gather_rows(target)
        space = functional.cosine_similarity(*columns, dim=0).mean()
        value = -row - self.config.space_weight * space
        return Loss(value, {"cosine": row.detach(), "space": space.detach()})
