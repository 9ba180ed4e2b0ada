"""CompRess with one queue (CompReSSA): both networks rank a queue of the teacher's features.

Source: Koohpayegani et al., "CompRess: Self-Supervised Learning by Compressing Representations",
NeurIPS 2020, arXiv:2010.14713; official code train_student_one_queue.py, nn/compress_loss.py.
Unlike SEED there is no column of the image's own, and one temperature serves both sides.

Shapes: B batch, E student feature, D teacher feature, K negatives.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, final

from pydantic import Field
from torch import Tensor, nn

from kdcache.methods._base import Batch, Loss, Method, Needs, TeacherSide
from kdcache.methods._ranking_kl import ranking_kl
from kdcache.methods._sampled_ranking import SamplingSettings, denominator
from kdcache.methods._unit import unit
from kdcache.optimisation import Optimisation
from kdcache.shapes import Float


@final
class Compress1q(Method):
    """Divergence of the student's ranking of the teacher's queue from the teacher's own."""

    class Config(SamplingSettings):
        """Knobs of CompRess-1q."""

        queue: Annotated[int, Field(ge=1)] | Literal["all"] = 128000
        """Bank K: targets of the last K samples; `all`: every row of the cache."""
        temperature: float = Field(default=0.04, gt=0)
        """Divides every similarity, the teacher's and the student's."""
        mask_own: bool = True
        """Hide the bank's earlier views of an image from that image. The official code does not;
        at K much smaller than the number of images the two are the same."""

    optimisation = Optimisation(
        epochs=130, lr=0.01, schedule="step", milestones=[90, 120], decay=0.2
    )
    views = "compress"

    def __init__(
        self, config: Config, *, student_dim: int, teachers: Sequence[TeacherSide]
    ) -> None:
        super().__init__(config, student_dim=student_dim, teachers=teachers)
        (teacher,) = teachers
        self.head = nn.Linear(student_dim, teacher.dim)

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """The teacher's feature of one view, and a queue of earlier ones."""
        return Needs(
            target="feature",
            negatives=config.queue,
            mask_own=config.mask_own,
            temperatures=(config.temperature, config.temperature),
            nprobe=config.nprobe,
            own_column=False,
        )

    def forward(self, student: nn.Module, batch: Batch) -> Loss:
        """Mean over the batch of the divergence, in nats: 0 for a student that ranks as taught."""
        bank = batch.negatives
        assert bank is not None
        embedding: Float[Tensor, "B D"] = unit(self.head(student(batch.images[0])))
        target = unit(batch.targets[0])
        value, entropy = ranking_kl(
            embedding,
            target,
            bank,
            bank,
            self.config.temperature,
            batch.own_slots,
            denominator=denominator(self.config.sampled, self.config.nearest, batch.search),
        )
        cosine = (embedding.detach() * target).sum(1).mean()
        return Loss(value, {"cosine": cosine, "entropy": entropy})
