"""What the networks make of held-out images: where each puts them, and which it finds alike.

All networks see view 0 of `center` of the same images, at their own size, in evaluation mode. Their
features are L2-normalised. A map is the first two principal components, found for each network by
itself, scaled so that the mean squared distance from the centre is 1, then turned or mirrored to
lie on the first map as well as it can (orthogonal Procrustes): the axes of all maps are those of
the first. Neighbours are by cosine, among the same images.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image

from kdcache.errors import TeacherError
from kdcache.evals.features import Features, extract_features
from kdcache.images import ImageSet, decode, index_images, open_images, take_rows
from kdcache.nearest import search
from kdcache.progress import Bar
from kdcache.report.read import RunFacts
from kdcache.shapes import Float, Int64, UInt8
from kdcache.students import STUDENT_FILE, load_student
from kdcache.teachers import Teacher, load_teacher

MOST_IMAGES = 1000
"""Of a larger folder so many are taken, evenly over its order, which is that of its classes."""
NEIGHBOURS = 5
_QUERIES = 8
_PICTURE = 56
"""Longer side of a small picture, in pixels."""
_QUALITY = 70


@dataclass(frozen=True)
class HeldOut:
    """Labelled images that took no part in the training, and who is asked about them."""

    data: Path
    teacher: str | None
    """Name of the teacher to ask; None asks the students alone."""
    weights: Path | None
    teacher_size: int | None
    """Side of what the teacher sees; unless given, what it saw when the caches were made."""
    device: torch.device
    workers: int


@dataclass(frozen=True)
class Seer:
    """One network, and where it puts the images."""

    name: str
    run: int | None
    """Place among the runs; None for the teacher."""
    points: Float[np.ndarray, "N 2"]
    explained: float
    """Share of the variance that the two axes of its map hold."""
    neighbours: Int64[np.ndarray, "N K"]
    """The nearest first, never the image itself."""
    same_class: float | None
    """Percent of the neighbours that are of the image's class; None without classes."""
    shared: float | None
    """Percent of the teacher's neighbours that it finds too; None for the teacher or without."""


@dataclass(frozen=True)
class Space:
    """Held-out images as the teacher and the students see them; the teacher, if any, is first."""

    source: str
    num_images: int
    num_taken: int
    labels: Int64[np.ndarray, " N"]
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    seers: tuple[Seer, ...]
    queries: Int64[np.ndarray, " Q"]
    """Images whose neighbours are shown."""
    pictures: dict[int, str]
    """Data addresses of the small pictures of queries and neighbours."""
    left_out: tuple[str, ...]
    """Runs that have no student yet."""
    num_unreadable: int


def look(runs: Sequence[RunFacts], held_out: HeldOut, bar: Bar) -> Space:
    """Show the images to the teacher and to the student of every finished run.

    Raises:
        DataError: there are no images, or a network gives NaN or infinity.
        ConfigError: a student's file is damaged.
        TeacherError: the teacher is not the one that the runs learned from, or cannot be had.
    """
    images = open_images(held_out.data)
    rows = np.unique(
        np.linspace(0, len(images) - 1, min(len(images), MOST_IMAGES)).astype(np.int64)
    )
    part = take_rows(images, rows)
    ids = index_images(part).ids
    asked: list[tuple[str, int | None, Features]] = []
    if held_out.teacher is not None:
        teacher = _open_teacher(runs, held_out, bar)
        features = _ask(teacher.backbone, teacher.image_size, "teacher", part, ids, held_out, bar)
        asked.append((f"teacher {teacher.name}", None, features))
    for place, run in enumerate(runs):
        if run.finished:
            student = load_student(run.path / STUDENT_FILE)
            features = _ask(student, student.image_size, run.name, part, ids, held_out, bar)
            asked.append((run.name, place, features))
    left_out = tuple(run.name for run in runs if not run.finished)
    readable = [row for row in range(len(part)) if not asked or row not in asked[0][2].unreadable]
    seers = _seers(asked, part.labels[readable].astype(np.int64), held_out.teacher is not None)
    num_shown = len(readable)
    places = ((np.arange(_QUERIES) + 0.5) / _QUERIES * num_shown).astype(np.int64)
    queries = np.unique(places) if num_shown > 1 else np.empty(0, np.int64)
    wanted = {int(n) for seer in seers for n in seer.neighbours[queries].ravel()}
    return Space(
        source="/".join(held_out.data.resolve().parts[-2:]),
        num_images=len(images),
        num_taken=num_shown,
        labels=part.labels[readable].astype(np.int64),
        classes=images.classes,
        paths=tuple(part.paths[row] for row in readable),
        seers=tuple(seers),
        queries=queries,
        pictures={
            n: _small_picture(part, readable[n]) for n in sorted(wanted | {*queries.tolist()})
        },
        left_out=left_out,
        num_unreadable=len(part) - num_shown,
    )


def _open_teacher(runs: Sequence[RunFacts], held_out: HeldOut, bar: Bar) -> Teacher:
    """The teacher, checked to be the one that every run recorded under this name."""
    assert held_out.teacher is not None
    told = [t for run in runs for t in run.taught_by if t.name == held_out.teacher]
    size = held_out.teacher_size or next((t.image_size for t in told), None)
    teacher = load_teacher(held_out.teacher, weights=held_out.weights, image_size=size, bar=bar)
    found = teacher.description()["weights"]["sha256"]
    for one in told:
        if one.weights_sha256 not in (None, found):
            raise TeacherError(
                f"`{held_out.teacher}` has the weights `{found[:12]}` here, and the runs learned"
                f" from `{one.weights_sha256[:12]}`",
                hint="give --weights the file that the cache was made with (`kdcache info CACHE`)",
            )
    return teacher


def _ask(
    network: torch.nn.Module,
    image_size: int,
    name: str,
    images: ImageSet,
    ids: UInt8[np.ndarray, "N 16"],
    held_out: HeldOut,
    bar: Bar,
) -> Features:
    with bar(f"held-out images, {name}", total=len(images), unit="images") as progress:
        return extract_features(
            network,
            images,
            image_size=image_size,
            ids=ids,
            device=held_out.device,
            batch_size=64,
            workers=held_out.workers,
            progress=progress,
        )


def _seers(
    asked: Sequence[tuple[str, int | None, Features]],
    labels: Int64[np.ndarray, " N"],
    has_teacher: bool,
) -> list[Seer]:
    found: list[Seer] = []
    for name, place, features in asked:
        unit = _unit(features.values)
        points, explained = plane(unit)
        if found:
            points = turned_onto(points, found[0].points)
        near = nearest_others(unit, min(NEIGHBOURS, len(unit) - 1))
        same = None
        if (labels >= 0).all() and near.size:
            same = 100.0 * float((labels[near] == labels[:, None]).mean())
        of_teacher = found[0].neighbours if has_teacher and found else None
        found.append(Seer(name, place, points, explained, near, same, _shared(near, of_teacher)))
    return found


def _unit(values: Float32[np.ndarray, "N F"]) -> Float32[np.ndarray, "N F"]:
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    return np.ascontiguousarray(values / np.maximum(norms, 1e-12), dtype=np.float32)


def plane(unit: Float32[np.ndarray, "N F"]) -> tuple[Float[np.ndarray, "N 2"], float]:
    """The first two principal components at mean squared length 1, and their share of variance."""
    centred = unit.astype(np.float64) - unit.mean(axis=0, dtype=np.float64)
    left, spectrum, _ = np.linalg.svd(centred, full_matrices=False)
    points = np.zeros((len(unit), 2))
    num_axes = min(2, len(spectrum))
    points[:, :num_axes] = left[:, :num_axes] * spectrum[:num_axes]
    total, size = np.square(spectrum).sum(), np.square(points).sum(axis=1).mean()
    if total <= 1e-12 or size <= 0:
        return np.zeros((len(unit), 2)), 0.0  # all images are one point to it
    return points / np.sqrt(size), float(np.square(spectrum[:2]).sum() / total)


def turned_onto(
    points: Float[np.ndarray, "N 2"], target: Float[np.ndarray, "N 2"]
) -> Float[np.ndarray, "N 2"]:
    """The points turned or mirrored, not stretched, to be nearest to the target in squares."""
    left, _, right = np.linalg.svd(points.T @ target)
    turned: Float[np.ndarray, "N 2"] = points @ (left @ right)
    return turned


def nearest_others(unit: Float32[np.ndarray, "N F"], k: int) -> Int64[np.ndarray, "N K"]:
    """The k other images with the largest cosine, the largest first."""
    if k < 1:
        return np.empty((len(unit), 0), np.int64)
    _, rows = search(unit, unit, k + 1, device="cpu")
    own = rows == np.arange(len(unit))[:, None]
    # Where copies of an image crowd it out of its own list, the last one goes instead.
    own[~own.any(axis=1), -1] = True
    others: Int64[np.ndarray, "N K"] = rows[~own].reshape(len(unit), k).astype(np.int64)
    return others


def _shared(
    near: Int64[np.ndarray, "N K"], of_teacher: Int64[np.ndarray, "N K"] | None
) -> float | None:
    if of_teacher is None or not near.size:
        return None
    return 100.0 * float((near[:, :, None] == of_teacher[:, None, :]).any(axis=2).mean())


def _small_picture(images: ImageSet, row: int) -> str:
    """The image, small, as a data address."""
    picture = Image.fromarray(decode(images.read(row)))
    picture.thumbnail((_PICTURE, _PICTURE))
    buffer = io.BytesIO()
    options: dict[str, Any] = {"quality": _QUALITY}
    picture.save(buffer, format="WEBP", **options)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
