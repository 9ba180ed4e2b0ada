"""Linear probe: how well one linear layer reads the class off the features of a frozen network.

What a layer sees is its own affair: the features as they are, or L2-normalised and standardised,
which takes the place of a learning rate tuned per network. Features come from augmented views, a
new one of every image in every epoch (the protocol of all papers, `kdcache eval --protocol
linear:...`), or from one centred view (`fast-linear`, 40 to 120 times cheaper). The figures of the
two do not compare. A figure is that of the last epoch; the papers' code prints the best as well.

*Source:* the presets name theirs: `protocols/linear.py`.

Shapes: B batch, F feature, C classes.
"""

import hashlib
import io
import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from kdcache.errors import DataError
from kdcache.evals.batches import build_maker, render
from kdcache.evals.dataset import LabelledSet
from kdcache.evals.features import Features, check_comparable, forward, frozen
from kdcache.evals.result import Score, accuracy_scores
from kdcache.evals.subject import Subject
from kdcache.files import atomic_file, canonical_json
from kdcache.optimisation import Optimisation, learning_rate
from kdcache.precision import Precision
from kdcache.progress import Progress, silent
from kdcache.shapes import Float, Int64
from kdcache.targets import permutation
from kdcache.views import get_policy

_VARIANCE_FLOOR = 1e-5
_ROWS_AT_ONCE = 4096
_RENDERED_TOGETHER = 256

AUGMENTED = "compress"
"""Random resized crops of scale 0.08 to 1 with flips: torchvision's, which all papers use."""


class ProbeSettings(Optimisation):
    """How a linear layer is trained."""

    features: Literal["raw", "standardised"] = "raw"
    """What the layer sees: pooled features, or L2-normalised ones of which (x - mean) / sqrt(var +
    1e-5) is taken with the statistics of the training images' centred views."""
    start: Literal["normal", "uniform"] = "normal"
    """Weights drawn from N(0, 0.01) and no bias, or torch's own start of a linear layer."""
    final_lr: float = Field(default=0.0, ge=0)
    """What the cosine ends at."""


SIMREG = ProbeSettings(
    epochs=40,
    batch_size=256,
    lr=0.01,
    momentum=0.9,
    weight_decay=1e-4,
    schedule="step",
    milestones=[15, 30],
    decay=0.1,
    features="standardised",
    start="uniform",
)
"""SimReg's and CompRess's layer."""


class Probe(nn.Module):
    """A linear layer, with what it does to features before it looks at them."""

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        values: Float[Tensor, "N F"],
        num_classes: int,
        settings: ProbeSettings,
        generator: torch.Generator,
    ) -> None:
        """
        Args:
            values: features of the training images' centred views.
        """
        super().__init__()
        self.standardised = settings.features == "standardised"
        if self.standardised:
            variance, mean = torch.var_mean(functional.normalize(values), dim=0)
            self.register_buffer("mean", mean)
            self.register_buffer("scale", (variance + _VARIANCE_FLOOR).rsqrt())
        self.linear = nn.Linear(values.shape[1], num_classes)
        with torch.no_grad():
            if settings.start == "normal":
                self.linear.weight.normal_(std=0.01, generator=generator)
                self.linear.bias.zero_()
            else:
                # The start that torch gives a linear layer, drawn from our own generator.
                bound = values.shape[1] ** -0.5
                for parameter in self.linear.parameters():
                    parameter.uniform_(-bound, bound, generator=generator)

    def forward(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B C"]:
        """One logit a class."""
        if self.standardised:
            features = (functional.normalize(features) - self.mean) * self.scale
        logits: Tensor = self.linear(features)
        return logits


class Training:
    """A probe in training: it is fed the features of each epoch and takes its own batches."""

    def __init__(
        self, probe: Probe, settings: ProbeSettings, num_images: int, device: torch.device | str
    ) -> None:
        self.probe = probe.to(device)
        self.settings = settings
        self.step = 0
        self._steps_per_epoch = math.ceil(num_images / settings.batch_size)
        self._sgd = torch.optim.SGD(
            probe.linear.parameters(),
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def feed(self, features: Float[Tensor, "B F"], labels: Int64[Tensor, " B"]) -> None:
        """Take these in; whole batches are learned from, the rest waits for more."""
        self._waiting.append((features, labels))
        size = self.settings.batch_size
        if sum(len(labels) for _, labels in self._waiting) < size:
            return
        everything, names = self._take()
        whole = len(names) // size * size
        for start in range(0, whole, size):
            self._learn(everything[start : start + size], names[start : start + size])
        if whole < len(names):
            self._waiting = [(everything[whole:], names[whole:])]

    def end_epoch(self) -> None:
        """Learn from what is left: the last batch of an epoch may be smaller."""
        if self._waiting:
            self._learn(*self._take())

    def state(self) -> dict[str, Any]:
        """What it takes to go on after an epoch."""
        return {
            "linear": self.probe.linear.state_dict(),
            "sgd": self._sgd.state_dict(),
            "step": self.step,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.probe.linear.load_state_dict(state["linear"])
        self._sgd.load_state_dict(state["sgd"])
        self.step = state["step"]

    def _take(self) -> tuple[Tensor, Tensor]:
        features, labels = zip(*self._waiting, strict=True)
        self._waiting = []
        return torch.cat(features), torch.cat(labels)

    def _learn(self, features: Float[Tensor, "B F"], labels: Int64[Tensor, " B"]) -> None:
        self._sgd.param_groups[0]["lr"] = probe_lr(self.settings, self.step, self._steps_per_epoch)
        self._sgd.zero_grad()
        loss = functional.cross_entropy(self.probe(features), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self._sgd.step()
        self.step += 1


def probe_lr(settings: ProbeSettings, step: int, steps_per_epoch: int) -> float:
    """The learning rate of step `step` (from 0), the end of the cosine being `final_lr`."""
    lr = learning_rate(settings, step, steps_per_epoch)
    peak = settings.lr * (settings.batch_size / 256 if settings.lr_per_256 else 1.0)
    return settings.final_lr + lr * (1.0 - settings.final_lr / peak)


def fit_cached(
    train: Features,
    settings: ProbeSettings = SIMREG,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> Probe:
    """A layer trained on features of one fixed view; epochs are its progress.

    Args:
        seed: of the layer's start and the order of the images; the same seed, the same layer.

    Raises:
        DataError: fewer than two training images.
    """
    generator = torch.Generator().manual_seed(seed)
    values, labels = torch.from_numpy(train.values), torch.from_numpy(train.labels)
    training = _begin(train, settings, len(train), generator, device)
    for _ in range(settings.epochs):
        order = torch.randperm(len(values), generator=generator)
        for rows in torch.split(order, settings.batch_size):
            training.feed(values[rows].to(device), labels[rows].to(device))
        training.end_epoch()
        progress(1)
    return training.probe


def fit_augmented(
    subject: Subject,
    part: LabelledSet,
    centred: Features,
    settings: Sequence[ProbeSettings],
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    workers: int = 0,
    precision: Precision = "fp32",
    keep: Path | None = None,
    progress: Callable[[int], None] = silent,
) -> list[Probe]:
    """Layers trained on augmented views, all at once: the network looks once for all of them.

    Each sees what it would see alone: epoch e shows view e of every image, in the order of (seed,
    epoch).

    Args:
        centred: features of the centred view, for the standardisation and for which can be read.
        seed: of the views, the layers' start and the order of the images.
        keep: a folder where the layers are kept after every epoch, until the last one.
        progress: called with images.

    Raises:
        DataError: fewer than two training images.
    """
    readable = np.setdiff1d(np.arange(len(part.images)), list(centred.unreadable))
    trainings = [
        _begin(centred, one, len(readable), torch.Generator().manual_seed(seed), device)
        for one in settings
    ]
    policy = get_policy(AUGMENTED)
    maker = build_maker(part.images, policy, subject.image_size, ids=part.ids, seed=seed)
    labels = torch.from_numpy(part.images.labels.astype(np.int64))
    place = _place(keep, subject, part, settings, seed) if keep is not None else None
    first = _resume(place, trainings)
    progress(first * len(readable))
    for epoch in range(first, max(one.epochs for one in settings)):
        learning = [t for t in trainings if epoch < t.settings.epochs]
        order = readable[permutation(len(readable), seed=seed, epoch=epoch)]
        for batch in render(maker, order, epoch, batch_size=_RENDERED_TOGETHER, workers=workers):
            with frozen(subject.network, device):
                features = forward(subject.network, batch.pixels, device, precision)
            # What inference mode makes cannot be saved for a backward pass; a copy can.
            seen = features.clone(), labels[torch.from_numpy(batch.rows)].to(device)
            for training in learning:
                training.feed(*seen)
            progress(len(batch.rows))
        for training in learning:
            training.end_epoch()
        if place is not None:
            _save(place, epoch + 1, trainings)
    if place is not None:
        place.unlink(missing_ok=True)
    return [training.probe for training in trainings]


@torch.inference_mode()
def probe_scores(
    probe: Probe,
    train: Features,
    test: Features,
    *,
    protocol: str,
    setting: Mapping[str, str | int | float],
) -> list[Score]:
    """What the layer makes of `test`, whose classes are found in `train` by name.

    Raises:
        DataError: images without a class, or unknown classes.
    """
    wanted = check_comparable(train, test)
    device = probe.linear.weight.device
    logits = [
        probe(torch.from_numpy(test.values[start : start + _ROWS_AT_ONCE]).to(device)).cpu()
        for start in range(0, len(test), _ROWS_AT_ONCE)
    ]
    return accuracy_scores(
        torch.cat(logits), torch.from_numpy(wanted), protocol=protocol, setting=setting
    )


def _begin(
    centred: Features,
    settings: ProbeSettings,
    num_images: int,
    generator: torch.Generator,
    device: torch.device | str,
) -> Training:
    if len(centred) < 2:
        raise DataError(
            f"`{centred.source}` has {len(centred)} readable image, a linear layer needs two or "
            "more",
            hint="put more images into train/",
        )
    values = torch.from_numpy(centred.values)
    probe = Probe(values, len(centred.classes), settings, generator)
    return Training(probe, settings, num_images, device)


def _place(
    keep: Path, subject: Subject, part: LabelledSet, settings: Sequence[ProbeSettings], seed: int
) -> Path:
    """Where layers in training are kept: a name that only this very training has."""
    about = {
        "network": subject.identity(),
        "images": part.fingerprint,
        "settings": [one.model_dump() for one in settings],
        "seed": seed,
    }
    return keep / f"probes-{hashlib.sha256(canonical_json(about)).hexdigest()[:32]}.pt"


def _resume(place: Path | None, trainings: list[Training]) -> int:
    """Epochs that are done already."""
    if place is None or not place.exists():
        return 0
    try:
        kept = torch.load(place, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise DataError(
            f"`{place}` is damaged: {str(error).splitlines()[0]}",
            hint=f"rm {place}; the training of these layers then begins anew",
        ) from error
    for training, state in zip(trainings, kept["trainings"], strict=True):
        training.load(state)
    return int(kept["epochs"])


def _save(place: Path, epochs: int, trainings: list[Training]) -> None:
    buffer = io.BytesIO()
    torch.save({"epochs": epochs, "trainings": [t.state() for t in trainings]}, buffer)
    with atomic_file(place) as file:
        file.write(buffer.getbuffer())
