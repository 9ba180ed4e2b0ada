"""Linear probe: how well one linear layer reads the class off the frozen features.

A fixed normalisation of the features takes the place of a learning rate tuned per network, so one
setting, the preset `simreg`, serves all of them. Its features come from augmented views of every
epoch (the protocol of the paper) or from one centred view (40 times cheaper). The figures of the
two do not compare, so each score names its own.

*Source:* Navaneet et al., "SimReg", BMVC 2021, arXiv:2201.05131; the official code's evaluation of
linear layers, which is that of CompRess (arXiv:2010.14713): L2 norm, then (x - mean) / sqrt(var +
1e-5) with the statistics of the training set's centred views, then a linear layer; SGD 0.01,
momentum 0.9, weight decay 1e-4, batch 256, 40 epochs, rate / 10 after epochs 15 and 30. Augmented
views are random resized crops of scale 0.08 to 1 with flips; the figure is that of the last epoch.

Shapes: B batch, F feature, C classes.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from kdcache.errors import DataError
from kdcache.evals.batches import build_maker, render
from kdcache.evals.features import Features, check_comparable, forward, frozen
from kdcache.evals.result import Score, top_k_percent
from kdcache.images import ImageSet
from kdcache.optimisation import Optimisation, learning_rate
from kdcache.precision import Precision
from kdcache.progress import Progress, silent
from kdcache.shapes import Float, Int64, UInt8
from kdcache.views import get_policy

SIMREG = Optimisation(
    epochs=40,
    batch_size=256,
    lr=0.01,
    momentum=0.9,
    weight_decay=1e-4,
    schedule="step",
    milestones=[15, 30],
    decay=0.1,
)
"""How the linear layer is trained under the preset `simreg`."""

_VARIANCE_FLOOR = 1e-5
_QUERIES_AT_ONCE = 4096
_TOP5_FROM_CLASSES = 10


class Probe(nn.Module):
    """L2 norm, the training set's standardisation, a linear layer."""

    mean: Tensor
    scale: Tensor

    def __init__(
        self, values: Float[Tensor, "N F"], num_classes: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        variance, mean = torch.var_mean(functional.normalize(values), dim=0)
        self.register_buffer("mean", mean)
        self.register_buffer("scale", (variance + _VARIANCE_FLOOR).rsqrt())
        self.linear = nn.Linear(values.shape[1], num_classes)
        # The start that torch gives a linear layer, drawn from our own generator.
        bound = values.shape[1] ** -0.5
        with torch.no_grad():
            for parameter in self.linear.parameters():
                parameter.uniform_(-bound, bound, generator=generator)

    def forward(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B C"]:
        """One logit a class."""
        logits: Tensor = self.linear((functional.normalize(features) - self.mean) * self.scale)
        return logits


def linear_probe(
    train: Features,
    test: Features,
    *,
    optimisation: Optimisation = SIMREG,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> list[Score]:
    """Accuracy of a linear layer trained on features of one fixed view; epochs are its progress.

    Args:
        seed: of the layer's start and the order of the images; the same seed, the same figure.

    Raises:
        DataError: fewer than two training images, images without a class, or unknown classes.
    """
    generator = torch.Generator().manual_seed(seed)
    wanted, probe = _prepare(train, test, generator, device)
    values, labels = torch.from_numpy(train.values), torch.from_numpy(train.labels)

    def epochs() -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
        for _ in range(optimisation.epochs):
            order = torch.randperm(len(values), generator=generator)
            rows = torch.split(order, optimisation.batch_size)
            yield ((values[part].to(device), labels[part].to(device)) for part in rows)
            progress(1)

    _fit(probe, epochs(), optimisation, len(train))
    return _scores(probe, test, wanted, f"cached {train.view} view", len(train.classes), device)


def linear_probe_augmented(
    network: nn.Module,
    images: ImageSet,
    train: Features,
    test: Features,
    *,
    image_size: int,
    ids: UInt8[np.ndarray, "N 16"] | None = None,
    optimisation: Optimisation = SIMREG,
    seed: int = 0,
    device: torch.device | str = "cpu",
    workers: int = 0,
    precision: Precision = "fp32",
    progress: Progress = silent,
) -> list[Score]:
    """Accuracy of a linear layer trained on augmented views, a new view of every image each epoch.

    Args:
        images: the training images, of which epoch e shows view e of the policy `compress`.
        train: their features of the centred view, which only give the standardisation.
        seed: of the views, the layer's start and the order of the images.
        progress: called with images.

    Raises:
        DataError: fewer than two training images, images without a class, or unknown classes.
    """
    assert images.classes == train.classes, "`train` must be features of `images`"
    generator = torch.Generator().manual_seed(seed)
    wanted, probe = _prepare(train, test, generator, device)
    maker = build_maker(
        images, get_policy("compress"), image_size, ids=ids, seed=seed, workers=workers
    )
    readable = np.setdiff1d(np.arange(len(images)), list(train.unreadable))
    labels = torch.from_numpy(images.labels.astype(np.int64))

    def epochs() -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
        for epoch in range(optimisation.epochs):
            order = readable[torch.randperm(len(readable), generator=generator).numpy()]
            yield batches(epoch, order)

    def batches(epoch: int, order: Int64[np.ndarray, " N"]) -> Iterator[tuple[Tensor, Tensor]]:
        size = optimisation.batch_size
        for batch in render(maker, order, epoch, batch_size=size, workers=workers):
            with frozen(network, device):
                features = forward(network, batch.pixels, device, precision)
            # What inference mode makes cannot be saved for a backward pass; a copy can.
            yield features.clone(), labels[torch.from_numpy(batch.rows)].to(device)
            progress(len(batch.rows))

    _fit(probe, epochs(), optimisation, len(readable))
    return _scores(probe, test, wanted, "augmented", len(train.classes), device)


def _prepare(
    train: Features, test: Features, generator: torch.Generator, device: torch.device | str
) -> tuple[Int64[np.ndarray, " Q"], Probe]:
    wanted = check_comparable(train, test)
    if len(train) < 2:
        raise DataError(
            f"`{train.source}` has {len(train)} readable image, a linear layer needs two or more",
            hint="put more images into train/",
        )
    probe = Probe(torch.from_numpy(train.values), len(train.classes), generator)
    return wanted, probe.to(device)


def _fit(
    probe: Probe,
    epochs: Iterator[Iterator[tuple[Tensor, Tensor]]],
    optimisation: Optimisation,
    num_images: int,
) -> None:
    """Train the layer on (features, labels) of each epoch's batches."""
    sgd = torch.optim.SGD(
        probe.linear.parameters(),
        lr=optimisation.lr,
        momentum=optimisation.momentum,
        weight_decay=optimisation.weight_decay,
    )
    steps_per_epoch = math.ceil(num_images / optimisation.batch_size)
    step = 0
    for batches in epochs:
        for features, labels in batches:
            sgd.param_groups[0]["lr"] = learning_rate(optimisation, step, steps_per_epoch)
            sgd.zero_grad()
            loss = functional.cross_entropy(probe(features), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            sgd.step()
            step += 1


@torch.inference_mode()
def _scores(
    probe: Probe,
    test: Features,
    wanted: Int64[np.ndarray, " Q"],
    features: str,
    num_classes: int,
    device: torch.device | str,
) -> list[Score]:
    """Top-1, and top-5 where there are enough classes for it to say something."""
    ks = [1, 5] if num_classes >= _TOP5_FROM_CLASSES else [1]
    right = dict.fromkeys(ks, 0)
    for start in range(0, len(test), _QUERIES_AT_ONCE):
        part = slice(start, start + _QUERIES_AT_ONCE)
        logits = probe(torch.from_numpy(test.values[part]).to(device))
        hits = logits.topk(ks[-1]).indices.cpu() == torch.from_numpy(wanted[part])[:, None]
        for k in ks:
            right[k] += int(hits[:, :k].sum())
    return [
        Score(
            protocol="linear",
            setting={"preset": "simreg", "features": features},
            metric=f"top{k}",
            value=top_k_percent(right[k], len(test)),
            num_queries=len(test),
            num_classes=num_classes,
        )
        for k in ks
    ]
