"""A projection head learnt from cached features alone: two views of an image are to be alike.

The backbone is frozen and its answers are in the cache, so a step costs two small matrix products
and no image is opened: minutes on a CPU for any number of images.

Source: the form of the head, Linear-ReLU-Linear, and the loss: Chen et al., "Improved Baselines
with Momentum Contrastive Learning", 2020, arXiv:2003.04297 (MoCo-v2). The negatives are the other
images of the batch, in both directions: Chen et al., "A Simple Framework for Contrastive Learning
of Visual Representations", ICML 2020, arXiv:2002.05709 (less its negatives within a view). Fitting
a head to a frozen teacher is ours, and so are the numbers below.

Shapes: B batch, F teacher feature, D embedding, H hidden.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from kdcache.derive.rows import readable_rows
from kdcache.heads import ProjectionHead
from kdcache.progress import Progress
from kdcache.shapes import Float, Int64
from kdcache.store import Cache

_MOST_EPOCHS = 50
_SMALLEST_DEVIATION = 1e-2  # of the largest: a dimension that hardly moves is not blown up to noise


@dataclass(frozen=True)
class InfoNce:
    """How the head is learnt: the numbers by which kNN gained most on two data sets of 1,000 and
    10,000 images (features of an EfficientNet-Lite0, two weak views)."""

    dim: int = 128
    """Width of the embedding."""
    hidden_dim: int = 0
    """Width of the hidden layer; 0 is the feature's own (MoCo-v2)."""
    temperature: float = 0.2
    """Of the softmax over the batch, MoCo-v2's."""
    steps: int = 300
    """Batches; see `default_steps`."""
    batch_size: int = 512
    """Images a step; all of them where there are fewer."""
    lr: float = 1e-3
    """Peak of AdamW's learning rate, which falls to zero along a cosine."""
    weight_decay: float = 1e-4
    """Decoupled, of AdamW."""


def default_steps(num_images: int) -> int:
    """As many steps as help: 300, but not so many that a head learns few images by heart.

    On 1,000 images kNN had gained after 50 epochs, and after 150 it was below the feature's.
    """
    return min(InfoNce.steps, -(-_MOST_EPOCHS * num_images // min(num_images, InfoNce.batch_size)))


def fit_infonce(
    cache: Cache, settings: InfoNce, *, seed: int, progress: Progress
) -> tuple[ProjectionHead, float]:
    """The head in eval mode, and its loss in nats, the mean of the last tenth of the steps.

    Features are standardised by the cache's own statistics, so that no loud dimension drowns the
    others (taking off the mean alone did as well on the two data sets, and learns far more slowly
    where dimensions differ in scale). This is folded into the first layer: the head takes features
    as they are.

    Args:
        progress: counts steps.
    """
    statistics = cache.statistics("feature")
    mean = torch.tensor(statistics["mean"])
    deviation = torch.tensor(statistics["variance"]).sqrt()
    scale = 1.0 / deviation.clamp(min=_SMALLEST_DEVIATION * float(deviation.max()))
    losses = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = ProjectionHead(_layers(len(mean), settings))
    optimiser = torch.optim.AdamW(
        head.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.steps)
    for rows, views in _batches(cache, settings, np.random.default_rng(seed)):
        one, two = (
            functional.normalize(
                head(((torch.from_numpy(cache.rows("feature", rows, v)) - mean) * scale).float())
            )
            for v in views
        )
        loss = contrast(one, two, settings.temperature)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        progress(1)
    _fold(head[0], mean, scale)
    return head.requires_grad_(False).eval(), float(np.mean(losses[-max(1, len(losses) // 10) :]))


def contrast(
    one: Float[Tensor, "B D"], two: Float[Tensor, "B D"], temperature: float
) -> Float[Tensor, ""]:
    """InfoNCE over the batch in nats: each row finds its partner among the rows of the other."""
    logits = one @ two.T / temperature
    partner = torch.arange(len(one), device=one.device)
    return (
        functional.cross_entropy(logits, partner) + functional.cross_entropy(logits.T, partner)
    ) / 2


def _layers(width: int, settings: InfoNce) -> list[dict[str, object]]:
    hidden = settings.hidden_dim or width
    return [
        {"kind": "linear", "in": width, "out": hidden, "bias": True},
        {"kind": "relu"},
        {"kind": "linear", "in": hidden, "out": settings.dim, "bias": True},
    ]


def _batches(
    cache: Cache, settings: InfoNce, random: np.random.Generator
) -> Iterator[tuple[Int64[np.ndarray, " B"], Int64[np.ndarray, "2 B"]]]:
    """Different images, and two different views of each."""
    rows = readable_rows(cache)
    count = min(settings.batch_size, len(rows))
    left = rows[:0]
    for _ in range(settings.steps):
        if len(left) < count:  # what is left of an epoch would meet itself in a batch
            left = random.permutation(rows)
        batch, left = left[:count], left[count:]
        first = random.integers(0, cache.num_views, count)
        second = (first + random.integers(1, cache.num_views, count)) % cache.num_views
        yield batch, np.stack([first, second])


@torch.no_grad()
def _fold(first: nn.Module, mean: Float[Tensor, " F"], scale: Float[Tensor, " F"]) -> None:
    """Let the first layer do what was done to the features before it."""
    assert isinstance(first, nn.Linear)
    weight = first.weight.double() * scale
    first.bias.copy_(first.bias.double() - weight @ mean)
    first.weight.copy_(weight)
