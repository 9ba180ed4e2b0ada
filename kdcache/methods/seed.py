"""SEED: the student ranks a queue of the teacher's embeddings as the teacher does.

Source: Fang et al., "SEED: Self-supervised Distillation for Visual Representation", ICLR 2021,
arXiv:2101.04731; official code seed/builder.py, tools/opts.py, main_small-patch.py. The teacher's
temperature of 0.01 is the paper's (as recalled; an independent reproduction uses it); the released
code's default is 1e-4.

With small patches (the rows with a SwAV teacher: 6, and the policy `multicrop`), view 0 is the
large crop; the others are ranked against a queue of their own, which holds the first of them only.

Shapes: B batch, E student feature, D teacher embedding, K negatives, P small patches.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, final

import torch
from pydantic import Field
from torch import Tensor, nn

from kdcache.methods._base import Batch, Loss, Method, Needs, TeacherSide
from kdcache.methods._heads import two_layer_head
from kdcache.methods._sampled_ranking import SamplingSettings, Search, denominator
from kdcache.methods._soft_ranking import soft_ranking_loss
from kdcache.methods._unit import unit
from kdcache.optimisation import Optimisation
from kdcache.shapes import Float, Int64


@final
class Seed(Method):
    """Cross-entropy of two rankings over the image's own target and the queue."""

    class Config(SamplingSettings):
        """Knobs of SEED."""

        queue: Annotated[int, Field(ge=1)] | Literal["all"] = 65536
        """Negatives K: targets of the last K samples; `all`: those of every image of the cache."""
        student_temperature: float = Field(default=0.2, gt=0)
        """tau_s: softens the student's ranking."""
        teacher_temperature: float = Field(default=0.01, gt=0)
        """tau_t: sharpens the teacher's; 1e-4, the released code's default, is one-hot."""
        hidden_dim: int = Field(default=0, ge=0)
        """Width of the head's hidden layer; 0 is the student's own feature width (the paper)."""
        small_patches: int = Field(default=0, ge=0)
        """Small crops P of each image beside the large one; the policy must draw as many."""
        target: Literal["embedding", "feature"] = "embedding"
        """The teacher's embedding (the paper), or its feature where it has no projection head."""
        center: bool = False
        """Take the mean of the cache's targets off each of them. The paper does not."""
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
        """The teacher's target of each view, and a queue of earlier ones for each size of view."""
        return Needs(
            target=config.target,
            views=1 + config.small_patches,
            negatives=config.queue,
            second_queue_view=1 if config.small_patches else None,
            mask_own=config.mask_own,
            center=config.center,
            temperatures=(config.student_temperature, config.teacher_temperature),
            nprobe=config.nprobe,
        )

    def forward(self, student: nn.Module, batch: Batch) -> Loss:
        """Mean over the batch of the cross-entropy, in nats; that of the small patches is added."""
        assert batch.negatives is not None
        embedding: Float[Tensor, "B D"] = unit(self.head(student(batch.images[0])))
        target = unit(batch.targets[0])
        value = self._ranking(embedding, target, batch.negatives, batch.own_slots, batch.search)
        parts = {"cosine": (embedding.detach() * target).sum(1).mean()}
        if self.config.small_patches:
            small = self._small(student, batch)
            parts |= {"large": value.detach(), "small": small.detach()}
            value = value + small
        return Loss(value, parts)

    def _small(self, student: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """The same loss for the small patches of all images, as one batch of P * B rows.

        What `batch.search` searches is the other queue, so the nearest are found without it.
        """
        assert batch.more_negatives is not None
        embedding = unit(self.head(student(torch.cat(batch.images[1:]))))
        target, own = unit(torch.cat(batch.targets[1:])), batch.own_slots
        if own is not None:
            own = own.repeat(self.config.small_patches, 1)
        return self._ranking(embedding, target, batch.more_negatives, own, search=None)

    def _ranking(
        self,
        embedding: Float[Tensor, "B D"],
        target: Float[Tensor, "B D"],
        negatives: Float[Tensor, "K D"],
        own: Int64[Tensor, "B E"] | None,
        search: Search | None,
    ) -> Float[Tensor, ""]:
        return soft_ranking_loss(
            embedding,
            target,
            negatives,
            student_temperature=self.config.student_temperature,
            teacher_temperature=self.config.teacher_temperature,
            own=own,
            denominator=denominator(self.config.sampled, self.config.nearest, search),
        )
