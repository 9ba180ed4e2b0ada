"""SEED: the student ranks a queue of the teacher's embeddings as the teacher does.

Source: Fang et al., "SEED: Self-supervised Distillation for Visual Representation", ICLR 2021,
arXiv:2101.04731; official code seed/builder.py, tools/opts.py. The teacher's temperature of 0.01 is
the paper's (as recalled; an independent reproduction uses it); the released code's default is 1e-4.

Shapes: B batch, E student feature, D teacher embedding, K negatives.
"""

from collections.abc import Sequence
from typing import Literal, final

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from kdcache.methods._base import Batch, Loss, Method, Needs, TeacherSide
from kdcache.methods._heads import two_layer_head
from kdcache.methods._soft_ranking import soft_ranking_loss
from kdcache.optimisation import Optimisation
from kdcache.settings import Settings
from kdcache.shapes import Float


@final
class Seed(Method):
    """Cross-entropy of two rankings over the image's own target and the queue."""

    class Config(Settings):
        """Knobs of SEED."""

        queue: int = Field(default=65536, ge=1)
        """Negatives K: targets of the last K samples."""
        student_temperature: float = Field(default=0.2, gt=0)
        """tau_s: softens the student's ranking."""
        teacher_temperature: float = Field(default=0.01, gt=0)
        """tau_t: sharpens the teacher's; 1e-4, the released code's default, is one-hot."""
        hidden_dim: int = Field(default=0, ge=0)
        """Width of the head's hidden layer; 0 is the student's own feature width (the paper)."""
        target: Literal["embedding", "feature"] = "embedding"
        """The teacher's embedding (the paper), or its feature where it has no projection head."""
        mask_own: bool = True
        """Hide the queue's earlier views of an image from that image. The official code does not;
        at K much smaller than the number of images the two are the same."""

    optimisation = Optimisation(epochs=200, lr=0.03, lr_per_256=True)
    views = "moco_v2"

    def __init__(
        self, config: Config, *, student_dim: int, teachers: Sequence[TeacherSide]
    ) -> None:
        super().__init__(config, student_dim=student_dim, teachers=teachers)
        (teacher,) = teachers
        self.head = two_layer_head(student_dim, config.hidden_dim or student_dim, teacher.dim)

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """The teacher's target of one view, and a queue of earlier ones."""
        return Needs(target=config.target, negatives=config.queue, mask_own=config.mask_own)

    def forward(self, student: nn.Module, batch: Batch) -> Loss:
        """Mean over the batch of the cross-entropy, in nats."""
        assert batch.negatives is not None
        embedding: Float[Tensor, "B D"] = self.head(student(batch.images[0]))
        embedding = functional.normalize(embedding.float(), dim=1)
        target = functional.normalize(batch.targets[0], dim=1)
        value = soft_ranking_loss(
            embedding,
            target,
            batch.negatives,
            student_temperature=self.config.student_temperature,
            teacher_temperature=self.config.teacher_temperature,
            own=batch.own_slots,
        )
        return Loss(value, {"cosine": (embedding.detach() * target).sum(1).mean()})
