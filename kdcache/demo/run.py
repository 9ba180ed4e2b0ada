"""The demo's run: patches, a teacher made on the spot, its caches, students, a table.

Every step is what the commands do, with settings that fit minutes on two cores. The settings were
chosen on these very patches (with another seed), so the table shows that the machinery works and
what to expect of it in kind; it is no evidence for one method over another.
"""

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from kdcache.demo.patches import cut_patches
from kdcache.evals import (
    Score,
    Splits,
    Subject,
    chance,
    examine,
    examine_pixels,
    open_splits,
    open_subject,
)
from kdcache.extract import Extraction, run_extraction
from kdcache.files import write_atomic
from kdcache.images import ImageSet, open_images
from kdcache.methods import get_method
from kdcache.progress import Bar, Tell
from kdcache.recipe import Recipe, build_recipe
from kdcache.store import open_cache
from kdcache.table import format_table
from kdcache.teachers import load_teacher
from kdcache.train import run_training

IMAGE_SIZE = 32
TEACHER = "resnet10t"
STUDENT = "test_efficientnet"
NUM_VIEWS = 4
METHODS = ("moco", "seed", "disco", "simreg", "retro")
"""The student alone, and the four papers; `kdcache methods` lists their kin."""

_SCHEDULE = {"lr_per_256": False, "warmup_epochs": 1, "per_step": True, "first_epoch": 0}
_TEACHER_TRAIN = {**_SCHEDULE, "epochs": 12, "batch_size": 128, "lr": 0.1}
_STUDENT_TRAIN = {**_SCHEDULE, "epochs": 8, "batch_size": 64}
# What differs from a method's own settings: 3,200 images and 400 steps want a shorter queue, a
# faster slow copy and larger steps than a million images and 100 epochs.
_SETTINGS: dict[str, tuple[dict[str, Any], float]] = {
    "moco": ({"queue": 1024, "momentum": 0.99}, 0.2),
    "seed": ({"queue": 2048, "teacher_temperature": 0.02}, 0.2),
    "disco": ({"queue": 1024, "momentum": 0.99}, 0.2),
    "simreg": ({}, 0.3),
    "retro": ({"queue": 1024, "momentum": 0.99}, 0.2),
}


@dataclass
class Result:
    """What the demo found."""

    scores: dict[str, list[Score]] = field(default_factory=dict)
    """By the name of the table's row, in its order."""
    seconds: dict[str, float] = field(default_factory=dict)
    """By the name of the step."""

    def lines(self, folder: Path) -> list[str]:
        """The table, where the time went, and what to do next."""
        shown = [s for s in next(iter(self.scores.values())) if s.metric == "top1"]
        columns = ["kNN, k = 10" if s.protocol == "knn" else "linear" for s in shown]
        rows = [["chance", *(f"{chance(s):.1f}" for s in shown)]]
        for name, scores in self.scores.items():
            rows.append([name, *(f"{s.value:.1f}" for s in scores if s.metric == "top1")])
        head = f"{shown[0].num_queries} test patches, % right"
        total = sum(self.seconds.values())
        times = [[name, f"{s:.1f}", f"{s / total:.0%}"] for name, s in self.seconds.items()]
        return [
            format_table([head, *columns], rows),
            "",
            format_table([f"{total:.0f} s in all", "seconds", "share"], times),
            "",
            "The teacher looked once; each student was trained from what it said.",
            f"All of it is in {folder}. For your own images:",
            "",
            "  kdcache extract --teacher timm:resnet50 --data IMAGES --views 10 --out my.zarr",
            "  kdcache train --method simreg --cache my.zarr --data IMAGES --student resnet18"
            " --out run",
            "  kdcache eval run --data LABELLED --references",
        ]


def run_demo(
    folder: Path, *, seed: int, device: torch.device, workers: int, bar: Bar, tell: Tell
) -> Result:
    """Run all of it in `folder`; what is there from an earlier run is used.

    Raises:
        MissingExtra: scikit-image is not installed.
    """
    result = Result()
    with _timed(result, "cut patches"):
        cut_patches(folder / "images", seed=seed)
    images = open_images(folder / "images" / "train")
    place = _Place(folder, images, device, workers, bar, tell, seed)

    with _timed(result, f"teach the teacher ({TEACHER})"):
        weights = _make_teacher(place)
    students = {}
    for name in METHODS:
        method = get_method(name)
        cache = None
        if _recipe(name, seed).needs.target is not None:
            cache = folder / f"{method.views}.zarr"
            with _timed(result, f"extract {NUM_VIEWS} `{method.views}` views"):
                _extract(place, weights, method.views, cache)
        with _timed(result, f"train {name}"):
            _train(place, _recipe(name, seed), folder / name, cache)
        students[name] = _Student(folder / name, taught=cache is not None)
    with _timed(result, "evaluate"):
        _examine_all(result, place, weights, students)
    return result


@dataclass(frozen=True)
class _Place:
    folder: Path
    images: ImageSet
    device: torch.device
    workers: int
    bar: Bar
    tell: Tell
    seed: int


@dataclass(frozen=True)
class _Student:
    folder: Path
    taught: bool
    """Whether it had a teacher."""


@contextmanager
def _timed(result: Result, step: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    result.seconds[step] = result.seconds.get(step, 0.0) + time.monotonic() - started


def _recipe(method: str, seed: int) -> Recipe:
    """A student's recipe."""
    config, lr = _SETTINGS[method]
    return build_recipe(
        {
            "method": {"name": method, **config},
            "student": {"name": STUDENT, "image_size": IMAGE_SIZE},
            "train": {**_STUDENT_TRAIN, "lr": lr},
            "run": {"seed": seed, "precision": "fp32"},
        }
    )


def _make_teacher(place: _Place) -> Path:
    """Pretrain the teacher by MoCo v2, and write its weights as MoCo's checkpoints have them."""
    recipe = build_recipe(
        {
            "method": {"name": "moco", **_SETTINGS["moco"][0]},
            "student": {"name": TEACHER, "image_size": IMAGE_SIZE},
            "train": _TEACHER_TRAIN,
            "run": {"seed": place.seed, "precision": "fp32"},
        }
    )
    weights = place.folder / "teacher.pth"
    if weights.exists():
        return weights
    _train(place, recipe, place.folder / "teacher", None)
    kept = torch.load(place.folder / "teacher" / "checkpoint.pt", weights_only=True)
    backbone = {k.removeprefix("model."): v for k, v in kept["student"].items()}
    head = {
        k.replace("head.", "fc.", 1): v for k, v in kept["method"].items() if k.startswith("head.")
    }
    buffer = io.BytesIO()
    torch.save({"state_dict": {**backbone, **head}}, buffer)
    write_atomic(weights, buffer.getvalue())
    return weights


def _train(place: _Place, recipe: Recipe, run: Path, cache: Path | None) -> None:
    outcome = run_training(
        recipe,
        place.images,
        run,
        caches=[open_cache(cache)] if cache is not None else [],
        device=place.device,
        workers=place.workers,
        bar=place.bar,
        tell=place.tell,
    )
    if not outcome.finished:
        raise KeyboardInterrupt  # a signal stopped it; what is done is kept


def _extract(place: _Place, weights: Path, policy: str, out: Path) -> None:
    run_extraction(
        place.images,
        load_teacher(f"timm:{TEACHER}", weights=weights, image_size=IMAGE_SIZE),
        out,
        Extraction(num_views=NUM_VIEWS, policy=policy, seed=place.seed, precision="fp32"),
        device=place.device,
        workers=place.workers,
        bar=place.bar,
    )


def _examine_all(
    result: Result, place: _Place, weights: Path, students: dict[str, "_Student"]
) -> None:
    splits = open_splits(place.folder / "images", bar=place.bar)
    untrained = open_subject(f"untrained:{STUDENT}", image_size=IMAGE_SIZE, seed=place.seed)
    result.scores["16 x 16 pixels"] = examine_pixels(
        splits, ("knn", "linear"), ks=(10,), workers=place.workers, bar=place.bar
    )
    result.scores["student, untrained"] = _examine(place, untrained, splits)
    for name, run in sorted(students.items(), key=lambda item: item[1].taught):
        row = f"student, {name}" if run.taught else f"student without a teacher ({name})"
        result.scores[row] = _examine(place, open_subject(str(run.folder)), splits)
    teacher = open_subject(f"timm:{TEACHER}", weights=weights, image_size=IMAGE_SIZE)
    result.scores["teacher"] = _examine(place, teacher, splits)


def _examine(place: _Place, subject: Subject, splits: Splits) -> list[Score]:
    return examine(
        subject,
        splits,
        ("knn", "linear"),
        ks=(10,),
        device=place.device,
        workers=place.workers,
        bar=place.bar,
    )
