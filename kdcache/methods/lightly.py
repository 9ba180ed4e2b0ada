"""LightlyTrain's distillation v1: CompRess-1q, milder, with the batch itself in the bank.

Source: LightlyTrain, distillation v1 (library, no paper; the ranking loss is that of CompRess,
arXiv:2010.14713); official code src/lightly_train/_methods/distillation/. Of that code, these are
not here. It mixes images up for both networks, which no cache of clean images can serve. Its
optimiser is LARS (1.8 at a batch of 1536, weight decay 1e-6) on gradients clipped to a norm of 1.0;
SGD with CompRess's schedule stands in (`run.clip_gradient` clips). Its bank of 8,192 starts with
zeros, drops its oldest rows for the batch, and is another one on each GPU; here the bank is full
from the start, the whole batch stands beside it, and all processes share it. Its views are near
`moco_v2`: crops from 0.14, half the change of saturation, no blur.

Shapes: B batch, E student feature, D teacher feature, K bank, W processes, M slots left out.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, final

import torch
from pydantic import Field
from torch import Tensor, nn

from kdcache.distributed import gather_rows
from kdcache.methods._base import Batch, Loss, Method, Needs, TeacherSide
from kdcache.methods._ranking_kl import ranking_kl
from kdcache.methods._unit import unit
from kdcache.optimisation import Optimisation
from kdcache.settings import Settings
from kdcache.shapes import Float


@final
class Lightly(Method):
    """Divergence of two rankings of earlier targets and those of the whole batch."""

    class Config(Settings):
        """Knobs of LightlyTrain's distillation v1."""

        queue: Annotated[int, Field(ge=1)] | Literal["all"] = 8192
        """Bank K: targets of the last K samples; the library takes fewer for less than 20,000
        images, about a quarter to a half of their number; `all`: every row of the cache."""
        temperature: float = Field(default=0.07, gt=0)
        """Divides every similarity, the teacher's and the student's."""
        mask_own: bool = True
        """Hide the bank's earlier views of an image from that image; its target in the batch stays.
        The official code does not; at K much smaller than the number of images the two are the
        same."""

    optimisation = Optimisation(
        epochs=130, lr=0.01, schedule="step", milestones=[90, 120], decay=0.2
    )
    views = "moco_v2"

    def __init__(
        self, config: Config, *, student_dim: int, teachers: Sequence[TeacherSide]
    ) -> None:
        super().__init__(config, student_dim=student_dim, teachers=teachers)
        (teacher,) = teachers
        self.head = nn.Linear(student_dim, teacher.dim)
        nn.init.trunc_normal_(self.head.weight, std=0.02)

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """The teacher's feature of one view, and a queue of earlier ones."""
        return Needs(
            target="feature",
            negatives=config.queue,
            mask_own=config.mask_own,
            temperatures=(config.temperature, config.temperature),
            couples_batch=True,
        )

    def forward(self, student: nn.Module, batch: Batch) -> Loss:
        """Mean over the batch of the divergence, in nats: 0 for a student that ranks as taught."""
        assert batch.negatives is not None
        embedding: Float[Tensor, "B D"] = unit(self.head(student(batch.images[0])))
        target = unit(batch.targets[0])
        bank, own = batch.negatives, None
        if self.config.queue != "all":  # that one holds the batch's own targets, and no earlier
            # Behind the queue, so that the slots to be hidden keep their numbers.
            bank, own = torch.cat([bank, gather_rows(target)]), batch.own_slots
        value, entropy = ranking_kl(embedding, target, bank, bank, self.config.temperature, own)
        cosine = (embedding.detach() * target).sum(1).mean()
        return Loss(value, {"cosine": cosine, "entropy": entropy})
