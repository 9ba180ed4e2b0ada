"""Finetuning: a copy of the network learns labels, a linear layer on top, on augmented views.

Batch normalisation is in training mode, as everywhere where the backbone learns.

*Source:* the protocols that use it name theirs: `protocols/semi_finetune.py`.

Shapes: B batch, C classes.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from kdcache.errors import DataError
from kdcache.evals.batches import build_maker, render
from kdcache.evals.dataset import LabelledSet
from kdcache.evals.exam import Exam
from kdcache.evals.features import check_comparable, extract_features
from kdcache.evals.probe import AUGMENTED
from kdcache.evals.result import Score, accuracy_scores
from kdcache.optimisation import Optimisation, learning_rate
from kdcache.shapes import Float, UInt8
from kdcache.targets import permutation
from kdcache.views import get_policy


class FinetuneSettings(Optimisation):
    """How a network and its new layer are trained."""

    head_lr: float = Field(default=0.0, ge=0)
    """Peak learning rate of the layer; 0: that of the backbone. Both follow one schedule."""
    nesterov: bool = False
    """Nesterov's momentum."""


class Classifier(nn.Module):
    """A network and a layer that names classes: pixels to logits."""

    def __init__(self, network: nn.Module, width: int, num_classes: int) -> None:
        super().__init__()
        self.network = network
        self.linear = nn.Linear(width, num_classes)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, images: UInt8[Tensor, "B S S 3"]) -> Float[Tensor, "B C"]:
        """One logit a class."""
        logits: Tensor = self.linear(self.network(images))
        return logits


def finetune(
    exam: Exam,
    part: LabelledSet,
    test: LabelledSet,
    settings: FinetuneSettings,
    *,
    view: str,
    protocol: str,
    setting: Mapping[str, str | int | float],
) -> list[Score]:
    """The accuracy on `test` after the last epoch on `part`; the exam's network stays as it is.

    Raises:
        DataError: classes that differ, no readable image, or a network that diverged.
    """
    centred = exam.features(part, view)  # tells what can be read, and how wide the features are
    rows = np.setdiff1d(np.arange(len(part.images)), list(centred.unreadable))
    if len(rows) < 2:
        raise DataError(
            f"`{part.images.source}` has {len(rows)} readable image, finetuning needs two or more",
            hint="put more images into train/",
        )
    with _seeded(exam.seed, exam.device):
        network = copy.deepcopy(exam.subject.network).requires_grad_(True)
        model = Classifier(network, centred.values.shape[1], len(part.images.classes))
        _train(exam, model.to(exam.device).train(), part, rows, settings)
    with exam.bar("logits", total=len(test.images), unit="images") as progress:
        logits = extract_features(
            model,
            test.images,
            image_size=exam.subject.image_size,
            policy=get_policy(view),
            ids=test.ids,
            device=exam.device,
            workers=exam.workers,
            progress=progress,
        )
    wanted = torch.from_numpy(check_comparable(centred, logits))
    values = torch.from_numpy(logits.values)
    return accuracy_scores(values, wanted, protocol=protocol, setting=setting)


def _train(
    exam: Exam,
    model: Classifier,
    part: LabelledSet,
    rows: np.ndarray,
    settings: FinetuneSettings,
) -> None:
    peaks = settings.lr, settings.head_lr or settings.lr
    sgd = torch.optim.SGD(
        [
            {"params": model.network.parameters(), "lr": peaks[0]},
            {"params": model.linear.parameters(), "lr": peaks[1]},
        ],
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.nesterov,
    )
    policy = get_policy(AUGMENTED)
    maker = build_maker(part.images, policy, exam.subject.image_size, ids=part.ids, seed=exam.seed)
    labels = torch.from_numpy(part.images.labels.astype(np.int64))
    steps_per_epoch = math.ceil(len(rows) / settings.batch_size)
    total = settings.epochs * len(rows)
    with exam.bar("finetune", total=total, unit="images") as progress:
        step = 0
        for epoch in range(settings.epochs):
            order = rows[permutation(len(rows), seed=exam.seed, epoch=epoch)]
            for batch in render(
                maker, order, epoch, batch_size=settings.batch_size, workers=exam.workers
            ):
                lr = learning_rate(settings, step, steps_per_epoch)
                for group, peak in zip(sgd.param_groups, peaks, strict=True):
                    group["lr"] = lr * peak / settings.lr
                step += 1
                progress(len(batch.rows))
                if len(batch.rows) < 2:  # batch normalisation has no statistics of one image
                    continue
                wanted = labels[torch.from_numpy(batch.rows)].to(exam.device)
                loss = functional.cross_entropy(model(batch.pixels.to(exam.device)), wanted)
                sgd.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                sgd.step()


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers (a layer's start, dropout) from this seed; the caller's stay untouched."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
