"""The features that a frozen network gives of labelled images: what every protocol starts from.

Shapes: N images that could be read, F feature.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn

from kdcache.errors import DataError
from kdcache.evals.batches import build_maker, render
from kdcache.images import ImageSet
from kdcache.precision import Precision, autocast
from kdcache.progress import Progress, silent
from kdcache.shapes import Float, Int, Int64, UInt8
from kdcache.views import Policy, ViewMaker, get_policy


@dataclass(frozen=True, eq=False, slots=True)
class Features:
    """Features of a set of images, un-normalised, with the class of each.

    Raises:
        DataError: there are none, or some are NaN or infinite.
    """

    values: Float32[np.ndarray, "N F"]
    labels: Int64[np.ndarray, " N"]
    """Places in `classes`; -1 where there is none."""
    classes: tuple[str, ...]
    source: str
    """Where the images came from."""
    view: str = "center"
    """The policy of the view that the network saw."""
    unreadable: dict[int, str] = field(default_factory=dict)
    """Rows of the image set that are left out, and why; they are never scored."""

    def __post_init__(self) -> None:
        if len(self.values) == 0:
            raise DataError(
                f"not one image of `{self.source}` could be read",
                hint=f"look at what `ls {self.source}` shows, and at the reasons: "
                f"{'; '.join(sorted(set(self.unreadable.values()))[:3]) or 'no images'}",
            )
        check_finite(self.values, self.source)

    def __len__(self) -> int:
        return len(self.values)


def extract_features(
    network: nn.Module,
    images: ImageSet,
    *,
    image_size: int,
    policy: Policy | None = None,
    ids: UInt8[np.ndarray, "N 16"] | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = 256,
    workers: int = 0,
    precision: Precision = "fp32",
    progress: Progress = silent,
) -> Features:
    """What the network, in evaluation mode, says of view 0 of every image.

    Args:
        network: takes uint8 pixels [B, S, S, 3] and gives features [B, F]; it is moved to `device`.
        policy: the centred crop unless another is given.
        ids: the image ids where they are known; else every file is read once more.
        precision: of the network; features are float32 in any case.

    Raises:
        DataError: not one image could be read, or the network gave NaN or infinity.
    """
    policy = policy or get_policy("center")
    maker = build_maker(images, policy, image_size, ids=ids, workers=workers)
    seen = list(
        see(
            network,
            maker,
            np.arange(len(images)),
            device=device,
            batch_size=batch_size,
            workers=workers,
            precision=precision,
            progress=progress,
        )
    )
    parts = [part for part in seen if len(part.rows)]
    rows = np.concatenate([part.rows for part in parts]) if parts else np.empty(0, np.int64)
    return Features(
        values=np.concatenate([p.values for p in parts]) if parts else np.empty((0, 0), np.float32),
        labels=images.labels[rows].astype(np.int64),
        classes=images.classes,
        source=images.source,
        view=policy.name,
        unreadable={row: why for part in seen for row, why in part.unreadable.items()},
    )


class Seen(NamedTuple):
    """What the network said of the readable images of a batch, and why there are no others."""

    rows: Int64[np.ndarray, " R"]
    values: Float32[np.ndarray, "R F"]
    unreadable: dict[int, str]


def see(
    network: nn.Module,
    maker: ViewMaker,
    order: Int64[np.ndarray, " N"],
    *,
    device: torch.device | str,
    batch_size: int = 256,
    workers: int,
    precision: Precision = "fp32",
    progress: Progress = silent,
) -> Iterator[Seen]:
    """What the network, in evaluation mode, says of view 0 of the images in this order."""
    with frozen(network, device):
        for batch in render(maker, order, 0, batch_size=batch_size, workers=workers):
            values = np.empty((0, 0), np.float32)
            if len(batch.rows):
                values = forward(network, batch.pixels, device, precision).cpu().numpy()
            progress(len(batch.rows) + len(batch.unreadable))
            yield Seen(batch.rows, values, batch.unreadable)


def pixel_features(
    images: ImageSet,
    size: int = 16,
    *,
    ids: UInt8[np.ndarray, "N 16"] | None = None,
    workers: int = 0,
    progress: Progress = silent,
) -> Features:
    """The image itself, `size` x `size` RGB in [-1, 1]: the floor that any feature has to clear."""
    return extract_features(
        Pixels(),
        images,
        image_size=size,
        policy=get_policy("full"),
        ids=ids,
        workers=workers,
        progress=progress,
    )


@runtime_checkable
class Labelled(Protocol):
    """Images, or features of images, each with a class."""

    @property
    def labels(self) -> Int[np.ndarray, " N"]:
        """Places in `classes`; -1 where there is none."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names."""

    @property
    def source(self) -> str:
        """Where the images came from."""


def match_classes(known: Labelled, asked: Labelled) -> Int64[np.ndarray, " N"]:
    """The labels of `asked` as places in the classes of `known`, matched by name.

    Raises:
        DataError: images without a class, or classes of which `known` has no image.
    """
    for side in (known, asked):
        unlabelled = int((side.labels < 0).sum())
        if unlabelled:
            raise DataError(
                f"{unlabelled} of {len(side.labels)} images of `{side.source}` have no class",
                hint=f"sort them into one folder a class: {side.source}/<class>/<image>",
            )
    there = {known.classes[label] for label in np.unique(known.labels)}
    wanted = {asked.classes[label] for label in np.unique(asked.labels)}
    missing = sorted(wanted - there)
    if missing:
        some = ", ".join(f"`{name}`" for name in missing[:5]) + (", ..." if missing[5:] else "")
        raise DataError(
            f"{len(missing)} of {len(wanted)} classes of `{asked.source}` are not in "
            f"`{known.source}`: {some}",
            hint="name the class folders alike on both sides, or leave these classes out",
        )
    place = {name: label for label, name in enumerate(known.classes)}
    # Classes that no image of `asked` has may be unknown; their entry is never looked up.
    table = np.array([place.get(name, -1) for name in asked.classes], dtype=np.int64)
    labels: Int64[np.ndarray, " N"] = table[asked.labels]
    return labels


def check_comparable(known: Features, asked: Features) -> Int64[np.ndarray, " N"]:
    """`match_classes` of features that were seen through the same view."""
    assert known.view == asked.view, "both sides must be seen through the same view"
    return match_classes(known, asked)


def unit_rows(values: Float[np.ndarray, "N F"]) -> Float32[np.ndarray, "N F"]:
    """The rows at length 1, in float32 and contiguous; a row of zeros stays one."""
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    return np.ascontiguousarray(values / np.maximum(norms, 1e-12), dtype=np.float32)


def check_finite(values: Float[np.ndarray, "N F"], source: str) -> None:
    """Refuse the features of a network that has diverged.

    Raises:
        DataError: some are NaN or infinite.
    """
    num_bad = len(values) - int(np.isfinite(values).all(axis=1).sum())
    if num_bad:
        raise DataError(
            f"the features of {num_bad} of {len(values)} images of `{source}` are not finite",
            hint="evaluate in float32; if that does not help, take an earlier checkpoint, "
            "since this network has diverged",
        )


@contextmanager
def frozen(network: nn.Module, device: torch.device | str) -> Iterator[None]:
    """The network on `device`, evaluating, without gradients; its modes come back afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.to(device).eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        # One by one: a caller may train with some of its norms frozen.
        for module, training in modes:
            module.training = training


def forward(
    network: nn.Module,
    pixels: UInt8[Tensor, "B S S 3"],
    device: torch.device | str,
    precision: Precision,
) -> Float[Tensor, "B F"]:
    """The features of a batch, in float32, on `device`."""
    with autocast(precision, torch.device(device)):
        features: Tensor = network(pixels.to(device, non_blocking=True))
    return features.float()


class Pixels(nn.Module):
    """The network that says what it sees: RGB in [-1, 1], one number after the other."""

    def forward(self, images: UInt8[Tensor, "B S S 3"]) -> Float[Tensor, "B F"]:
        return images.flatten(1).float() / 127.5 - 1.0
