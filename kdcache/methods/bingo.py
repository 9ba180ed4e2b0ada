"""BINGO: an image and its neighbour form a bag; the student finds the teacher's keys of both.

Source: Xu et al., "Bag of Instances Aggregation Boosts Self-supervised Distillation", ICLR 2022,
arXiv:2107.01691; official code main_moco.py. Neighbours are those of the cache's kNN graph. The
official teacher runs with batch statistics; a cache holds what it says in evaluation mode, so the
published figures are of slightly other targets. EfficientNet-B0 is trained with a temperature of
0.12 and a weight decay of 4e-5.

Shapes: B batch, E student feature, D teacher embedding, K negatives, S rendered size.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal, final

import torch
from pydantic import Field
from torch import Tensor, nn

from kdcache.methods._base import Batch, Loss, Method, Needs, TeacherSide
from kdcache.methods._heads import two_layer_head
from kdcache.methods._soft_ranking import log_sum_exp
from kdcache.methods._unit import unit
from kdcache.optimisation import Optimisation
from kdcache.settings import Settings
from kdcache.shapes import Float, UInt8


@final
class Bingo(Method):
    """InfoNCE of image, neighbour and a mix of the two, each against both teacher's keys."""

    class Config(Settings):
        """Knobs of BINGO."""

        queue: Annotated[int, Field(ge=1)] | Literal["all"] = 65536
        """Negatives K: the teacher's keys of the last K images; `all`: every row of the cache."""
        temperature: float = Field(default=0.2, gt=0)
        """Divides every similarity."""
        hidden_dim: int = Field(default=2048, ge=0)
        """Width of the head's hidden layer; 0 is the student's own feature width."""
        bag_from_epoch: int = Field(default=11, ge=0)
        """Epochs in which a query has one positive, the other view of its own image."""
        target: Literal["embedding", "feature"] = "embedding"
        """The teacher's embedding (the paper), or its feature where it has no projection head."""
        mask_own: bool = True
        """Hide the queue's earlier views of an image from its bag. The official code does not;
        at K much smaller than the number of images the two are the same."""

    optimisation = Optimisation(epochs=200, lr=0.03)
    views = "moco_v2"

    def __init__(
        self, config: Config, *, student_dim: int, teachers: Sequence[TeacherSide]
    ) -> None:
        super().__init__(config, student_dim=student_dim, teachers=teachers)
        (teacher,) = teachers
        self.head = two_layer_head(student_dim, config.hidden_dim or student_dim, teacher.dim)

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Two views of image and neighbour: the student sees one, the teacher's other is the key.

        The queue is of the second view: the keys of images, not of neighbours.
        """
        return Needs(
            target=config.target,
            views=2,
            rendered=1,
            neighbours=1,
            negatives=config.queue,
            queue_view=1,
            mask_own=config.mask_own,
        )

    def forward(self, student: nn.Module, batch: Batch) -> Loss:
        """Mean over the three queries, and over the batch, of -log softmax of the positives."""
        first, second = batch.images
        _, first_key, _, second_key = (unit(target) for target in batch.targets)
        own_weight = 0.5 if batch.progress >= self.config.bag_from_epoch else 1.0
        mixed, share = cutmix(first, second)
        queries = ((first, own_weight), (second, 1.0 - own_weight), (mixed, share))
        value = torch.zeros((), device=first.device)
        embeddings = []
        for images, weight in queries:
            query: Float[Tensor, "B D"] = unit(self.head(student(images)))
            value = value + self._infonce(query, first_key, second_key, weight, batch) / 3.0
            embeddings.append(query.detach())
        return Loss(
            value,
            {
                "cosine": (embeddings[0] * first_key).sum(1).mean(),
                "neighbour_cosine": (embeddings[0] * second_key).sum(1).mean(),
            },
        )

    def _infonce(
        self,
        query: Float[Tensor, "B D"],
        first_key: Float[Tensor, "B D"],
        second_key: Float[Tensor, "B D"],
        first_weight: float,
        batch: Batch,
    ) -> Float[Tensor, ""]:
        """Two InfoNCE losses against the same negatives, each with one key, weighted."""
        assert batch.negatives is not None
        temperature = self.config.temperature
        with torch.autocast(query.device.type, enabled=False):
            others = log_sum_exp(query, batch.negatives, temperature, batch.own_slots)
            value = torch.zeros((), device=query.device)
            for key, weight in ((first_key, first_weight), (second_key, 1.0 - first_weight)):
                logit = (query * key).sum(1) / temperature
                value = value + weight * (torch.logaddexp(others, logit) - logit).mean()
        return value


def cutmix(
    first: UInt8[Tensor, "B S S 3"], second: UInt8[Tensor, "B S S 3"]
) -> tuple[UInt8[Tensor, "B S S 3"], float]:
    """The first images with a box of the second in them, and the share of pixels that stays.

    One box serves the whole batch. It is drawn from torch's default generator on the CPU, which all
    processes hold in the same state: they draw the same box.

    Source: Yun et al., CutMix, ICCV 2019, arXiv:1905.04899, with the share ~ Beta(2, 2) of BINGO's
    main_moco.py; a box that juts out is cut off, and the share corrected.
    """
    side = first.shape[1]
    wanted = torch.distributions.Beta(2.0, 2.0).sample().item()
    half = int(side * math.sqrt(1.0 - wanted)) // 2
    centre = torch.randint(side, (2,)).tolist()
    top, left = (max(c - half, 0) for c in centre)
    bottom, right = (min(c + half, side) for c in centre)
    mixed = first.clone()
    mixed[:, top:bottom, left:right] = second[:, top:bottom, left:right]
    return mixed, 1.0 - (bottom - top) * (right - left) / side**2
