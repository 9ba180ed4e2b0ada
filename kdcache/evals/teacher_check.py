"""A teacher's self-check: in a minute on some labelled images, whether its features are of use.

A teacher with the wrong padding, normalisation or file runs and says little; this is where it
shows, before hours are spent on a cache.
"""

from dataclasses import dataclass

import numpy as np
import torch

from kdcache.errors import ConfigError, DataError
from kdcache.evals.features import extract_features, pixel_features
from kdcache.evals.protocols.knn import knn_accuracy
from kdcache.images import ImageSet, take_rows
from kdcache.progress import Bar
from kdcache.shapes import Float, Int64
from kdcache.teachers import Teacher
from kdcache.views import get_policy

NEIGHBOURS = 10
_ALIKE = 0.99
_SPLITS = {"train", "val", "test"}


@dataclass(frozen=True)
class TeacherCheck:
    """What was found; accuracies in %, kNN with k = 10 and a plain vote."""

    num_gallery: int
    num_queries: int
    num_classes: int
    knn: float
    pixel_knn: float
    """Of 16 x 16 pixels, which need no teacher."""
    chance: float
    norm: float
    """Mean length of a feature."""
    mean_cosine: float
    """Between two images."""
    rank: float
    """Directions that the centred features spread over: (sum of variances)^2 / sum of squares."""
    num_features: int
    num_constant: int
    """Features that are the same for every image."""

    def problems(self) -> list[str]:
        """What is wrong with the teacher, empty if nothing shows."""
        found = []
        if self.num_constant == self.num_features or self.mean_cosine > _ALIKE:
            found.append(
                f"all images look alike to it (mean cosine {self.mean_cosine:.3f}): its weights do "
                "not fit its network, or its pixels are normalised wrongly"
            )
        if self.knn <= max(self.pixel_knn, self.chance):
            found.append(
                f"its kNN of {self.knn:.1f} % is no better than that of 16 x 16 pixels "
                f"({self.pixel_knn:.1f} %) or chance ({self.chance:.1f} %)"
            )
        return found

    def lines(self) -> list[str]:
        """The findings, for a person."""
        return [
            f"kNN (k = {NEIGHBOURS}) of {self.num_queries:,} images in {self.num_gallery:,} others,"
            f" {self.num_classes:,} classes: {self.knn:.1f} %",
            f"beside it: 16 x 16 pixels {self.pixel_knn:.1f} %, chance {self.chance:.1f} %",
            f"features: length {self.norm:.3g}, mean cosine of two images {self.mean_cosine:.3f}, "
            f"spread over {self.rank:.1f} of {self.num_features:,} directions, "
            f"{self.num_constant:,} constant",
        ]


def check_teacher(
    teacher: Teacher,
    images: ImageSet,
    *,
    num_images: int,
    policy: str = "center",
    device: torch.device,
    workers: int,
    bar: Bar,
) -> TeacherCheck:
    """Look at up to `num_images` labelled images, evenly of all classes: a half asks the other.

    Raises:
        ConfigError: the folder holds splits instead of classes.
        DataError: there are fewer than two classes or too few images, or the teacher gives NaN or
            infinity.
    """
    _refuse_splits(images)
    gallery, queries = _halves(images, num_images)
    network, view, sides = teacher.backbone, get_policy(policy), []
    for part in (gallery, queries):
        with bar(f"features of {teacher.name}", total=len(part), unit="images") as progress:
            features = extract_features(
                network,
                part,
                image_size=teacher.image_size,
                policy=view,
                device=device,
                batch_size=64,
                workers=workers,
                progress=progress,
            )
        sides.append(features)
    known, asked = sides
    pixels, asked_pixels = (pixel_features(part, workers=workers) for part in (gallery, queries))
    num_classes = len(np.unique(known.labels))
    values = known.values.astype(np.float64)
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    return TeacherCheck(
        num_gallery=len(known),
        num_queries=len(asked),
        num_classes=num_classes,
        knn=knn_accuracy(known, asked, (NEIGHBOURS,))[NEIGHBOURS],
        pixel_knn=knn_accuracy(pixels, asked_pixels, (NEIGHBOURS,))[NEIGHBOURS],
        chance=100 / num_classes,
        norm=float(norms.mean()),
        mean_cosine=_mean_cosine(values / np.maximum(norms, 1e-12)),
        rank=_rank(values),
        num_features=values.shape[1],
        num_constant=int((values.var(axis=0) <= 1e-12 * np.square(values).mean(axis=0)).sum()),
    )


def _mean_cosine(unit: Float[np.ndarray, "N F"]) -> float:
    """Over all pairs of two rows, from the square of their sum."""
    count = len(unit)
    return float((np.square(unit.sum(axis=0)).sum() - count) / (count * (count - 1)))


def _rank(values: Float[np.ndarray, "N F"]) -> float:
    spectrum = np.square(np.linalg.svd(values - values.mean(axis=0), compute_uv=False))
    squares = float(np.square(spectrum).sum())
    return float(spectrum.sum()) ** 2 / squares if squares > 0 else 0.0


def _refuse_splits(images: ImageSet) -> None:
    splits = sorted(_SPLITS & set(images.classes))
    if splits:
        raise ConfigError(
            f"`{images.source}` holds {', '.join(splits)} as its classes: these are splits",
            hint=f"--data {images.source}/{splits[0]}",
        )


def _halves(images: ImageSet, num_images: int) -> tuple[ImageSet, ImageSet]:
    """Gallery and queries, spread evenly over the classes and over the images of each."""
    labels = np.unique(images.labels[images.labels >= 0])
    sides: tuple[list[Int64[np.ndarray, " R"]], ...] = ([], [])
    for label in labels.tolist():
        of_class = np.flatnonzero(images.labels == label)
        count = min(max(num_images // len(labels), 2), len(of_class))
        chosen = of_class[np.linspace(0, len(of_class) - 1, count).astype(np.int64)]
        for start, side in enumerate(sides):
            side.append(chosen[start::2])
    rows = [np.sort(np.concatenate(side)) if side else np.empty(0, np.int64) for side in sides]
    if len(labels) < 2 or len(rows[0]) < NEIGHBOURS or not len(rows[1]):
        raise DataError(
            f"`{images.source}` has {len(labels)} classes, and {sum(map(len, rows))} images of "
            "them are taken: too few to tell a good teacher from a bad one",
            hint="give a folder with a folder of images for each class, and more --images",
        )
    return take_rows(images, rows[0]), take_rows(images, rows[1])
